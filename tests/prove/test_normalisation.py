import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from edgekiln.prove.normalisation import MAX_SAMPLES, better_normalisation
from edgekiln.records import Dataset, Model, Preprocess, Sample, Signature, Source

DIGITS, LABELS = load_digits(return_X_y=True)
PIXELS = DIGITS * (255 / 16)  # 0..255, shape (1797, 64)
TRAINED_ON = 1000


def ways(*names):
    table = {
        "(x-127)/128": {"scale": 1.0, "mean": (127.0,), "std": (128.0,)},
        "(x-127.5)/127.5": {"scale": 1.0, "mean": (127.5,), "std": (127.5,)},
        "x/255": {"scale": 1 / 255},
        "x": {"scale": 1.0},
        "1-x/255": {"scale": -1 / 255, "mean": (-1.0,)},
    }
    return [(n, Preprocess(width=8, height=8, **table[n])) for n in names or table]


def apply(pixels, way):
    return (pixels * way.scale - way.mean[0]) / way.std[0]


def model(way):
    empty = Signature(inputs=(), outputs=())
    source = Source(kind="onnx", files=())
    return Model(
        name="m", path="", sha256="", signature=empty, task="classification", source=source, preprocess=way
    )


def dataset(indices, labelled=True):
    samples = (Sample(path=str(i), sha256="", label=int(LABELS[i]) if labelled else None) for i in indices)
    return Dataset(root="", samples=tuple(samples), rejected=(), sha256="")


@pytest.fixture(scope="module")
def classifier():
    """A real classifier of digits, trained on pixels normalised as (x-127)/128."""
    trained = LogisticRegression(max_iter=300).fit(
        apply(PIXELS[:TRAINED_ON], ways("(x-127)/128")[0][1]), LABELS[:TRAINED_ON]
    )

    def scores(sample, way):
        return trained.decision_function(apply(PIXELS[int(sample.path)], way)[None])

    return scores


def ask(classifier, own, data):
    way = ways(own)[0][1] if own else None
    return better_normalisation(model(way), data, ways(), classifier)


def test_the_normalisation_of_the_training_raises_no_alarm(classifier):
    random = np.random.default_rng(0)
    for count in (20, 200):
        for _ in range(20):
            drawn = random.choice(np.arange(TRAINED_ON, len(LABELS)), count, replace=False)
            assert ask(classifier, "(x-127)/128", dataset(drawn)) is None


@pytest.mark.parametrize(("own", "count"), [("1-x/255", 20), ("1-x/255", 400), ("x", 100), ("x", 400)])
def test_a_wrong_normalisation_is_named_with_the_one_that_fits(classifier, own, count):
    warning = ask(classifier, own, dataset(range(TRAINED_ON, TRAINED_ON + count)))
    assert "(x-127)/128" in warning or "(x-127.5)/127.5" in warning
    assert f"of {min(count, MAX_SAMPLES)} right" in warning


def test_nothing_to_compare_gives_no_alarm(classifier):
    some = range(TRAINED_ON, TRAINED_ON + 20)
    assert ask(classifier, "1-x/255", dataset(some, labelled=False)) is None
    assert ask(classifier, None, dataset(some)) is None
    assert ask(classifier, "1-x/255", dataset([])) is None
    own = ways("1-x/255")
    assert better_normalisation(model(own[0][1]), dataset(some), own, classifier) is None


def scripted(right, likelier):
    """Scores of a two-class model that is right on ``right[way]`` of 20 samples, in order.

    ``likelier[way]`` moves the confidence of every sample.
    """

    def scores(sample, way):
        name = next(n for n, p in ways() if p == way)
        margin = 1.5 + likelier[name]
        return np.array([[0.0, margin if int(sample.path) < right[name] else -margin]])

    return scores


def twenty():
    samples = tuple(Sample(path=str(i), sha256="", label=1) for i in range(20))
    return Dataset(root="", samples=samples, rejected=(), sha256="")


def test_the_known_case_of_twenty_photographs():
    # EfficientNet-Lite0 on 20 photographs: its own 18, x/255 17, torchvision's mean and std 15.
    names = {"(x-127)/128": 18, "x/255": 17, "x": 15}
    scores = scripted(names, {"(x-127)/128": 2, "x/255": 1, "x": 0})
    for own, warned in (("(x-127)/128", False), ("x/255", False), ("x", True)):
        found = better_normalisation(model(ways(own)[0][1]), twenty(), ways(*names), scores)
        assert (found is not None) == warned, own
    assert "(x-127)/128 better than the model's own: 18 of 20 right against 15 of 20" in found


def test_lucky_flips_without_likelier_labels_raise_no_alarm():
    names = {"(x-127)/128": 18, "x": 15}
    scores = scripted(names, {"(x-127)/128": 0, "x": 1})
    assert better_normalisation(model(ways("x")[0][1]), twenty(), ways(*names), scores) is None

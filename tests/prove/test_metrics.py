"""Metrics of tasks: known figures, pycocotools' own definition, and rules that hold for any rows."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekiln.errors import BadInput
from edgekiln.job import MetricOrder
from edgekiln.model.preprocess import unframe
from edgekiln.prove.metrics import METRICS, compare, metric_of, score
from edgekiln.prove.metrics.decoders import Head, detections, suppressed
from edgekiln.prove.metrics.detection import Boxes, Precision
from edgekiln.prove.metrics.embedding import neighbours
from edgekiln.prove.metrics.score import too_few
from edgekiln.prove.metrics.text import distance
from edgekiln.records import Dataset, Model, Preprocess, Sample, Signature, Source, TensorSpec

FRAME = Preprocess(width=64, height=64)


def model(task, *outputs, labels=(), spec=FRAME):
    side = (1, 3, 64, 64)
    made = tuple(TensorSpec(name=f"o{i}", dtype="float32", shape=shape) for i, shape in enumerate(outputs))
    return Model(
        name="m",
        path="m.onnx",
        sha256="0",
        signature=Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=side),), outputs=made),
        task=task,
        source=Source(kind="onnx", files=()),
        preprocess=spec,
        labels=labels,
    )


def truth(*boxes, size=None):
    """From (x, y, w, h, class)."""
    return Boxes(
        boxes=tuple(b[:4] for b in boxes),
        classes=tuple(b[4] for b in boxes),
        areas=tuple(b[2] * b[3] for b in boxes),
        crowd=(False,) * len(boxes),
        size=size,
    )


def found(*rows):
    """From (x, y, w, h, score, class)."""
    return np.asarray(rows, np.float64).reshape(-1, 6)


def whole(n):
    return np.ones((1, n), np.int64)


# ---------------------------------------------------------------- detection: COCO's definition


def test_boxes_that_are_found_exactly_score_one():
    rows = [
        (found((1, 1, 10, 10, 0.9, 0), (30, 30, 5, 8, 0.4, 1)), truth((1, 1, 10, 10, 0), (30, 30, 5, 8, 1)))
    ]
    assert Precision(rows).figures == {"map": pytest.approx(1), "map50": pytest.approx(1)}


@pytest.mark.parametrize(("shift", "steps"), [(1, 7), (2, 4), (3, 1), (4, 0)])
def test_a_shifted_box_counts_at_the_thresholds_that_its_iou_reaches(shift, steps):
    # 10 wide and shifted by s: IoU (10 - s) / (10 + s) = 0.818, 0.667, 0.538, 0.429; steps of 0.05 from 0.5.
    rows = [(found((1 + shift, 1, 10, 10, 0.9, 0)), truth((1, 1, 10, 10, 0)))]
    assert Precision(rows).figures["map"] == pytest.approx(steps / 10)
    assert Precision(rows).figures["map50"] == pytest.approx(1 if steps else 0)


def random_rows(seed, n=12, classes=3):
    """Pictures with up to four boxes, some found with noise, and false detections."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        boxes = [
            (*rng.uniform(0, 40, 2), *rng.uniform(5, 20, 2), int(rng.integers(classes)))
            for _ in range(rng.integers(5))
        ]
        hits = [
            (*(np.array(b[:4]) + rng.normal(0, 1.5, 4)).clip(0.5), rng.random(), b[4])
            for b in boxes
            if rng.random() < 0.8
        ]
        wrong = [
            (*rng.uniform(1, 30, 4), rng.random(), int(rng.integers(classes))) for _ in range(rng.integers(4))
        ]
        rows.append((found(*hits, *wrong), truth(*boxes)))
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_the_resampled_score_with_weights_of_one_is_pycocotools_own(seed):
    scores = Precision(random_rows(seed))
    assert scores.at(whole(12))[0] == pytest.approx(scores.figures["map"], abs=1e-12)


def test_a_picture_counted_twice_is_a_picture_given_twice():
    rows = random_rows(7)
    counts = np.array([[2, 0, 1, 1, 3, 0, 1, 1, 1, 2, 0, 0]])
    repeated = [row for row, times in zip(rows, counts[0], strict=True) for _ in range(times)]
    assert Precision(rows).at(counts)[0] == pytest.approx(Precision(repeated).figures["map"], abs=1e-9)


def test_pictures_without_any_box_have_nothing_to_score():
    assert Precision([(found((1, 1, 5, 5, 0.5, 0)), truth())]).figures == {}
    metric = metric_of("detection", MetricOrder(decoder="yolo"), model("detection", (1, 6, 50)))
    empty = compare(metric, [(found(), truth())], [(found(), truth())], labelled=False)
    assert empty.value is None
    assert "finds nothing" in empty.reason


# ---------------------------------------------------------------- detection: decoders


def yolo_output(*boxes, classes=2, cells=20):
    """(1, 4 + classes, cells) with each (x1, y1, x2, y2, score, class) in a cell of its own."""
    out = np.zeros((1, 4 + classes, cells), np.float32)
    for i, (x1, y1, x2, y2, value, kind) in enumerate(boxes):
        out[0, :4, i] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        out[0, 4 + kind, i] = value
    return out


def test_yolo_boxes_come_out_as_corners_best_first_and_doubles_are_suppressed():
    head = Head(height=64, width=64, order=MetricOrder(decoder="yolo"))
    out = yolo_output(
        (0, 0, 10, 10, 0.5, 0), (20, 20, 40, 30, 0.9, 1), (20, 20, 40, 29, 0.8, 1), (20, 20, 40, 29, 0.7, 0)
    )
    boxes, scores, kinds = detections([out], head)
    assert boxes.tolist() == [[20, 20, 40, 30], [20, 20, 40, 29], [0, 0, 10, 10]]
    assert kinds.tolist() == [1, 0, 0]
    assert scores == pytest.approx([0.9, 0.7, 0.5])


@pytest.mark.parametrize("single", [False, True])
def test_nanodet_distances_are_means_of_their_distribution(single):
    bins, side = 11, 64
    scores = [np.zeros((1, (side // s) ** 2, 3), np.float32) for s in (8, 16, 32)]
    sides = [np.zeros((1, (side // s) ** 2, 4 * bins), np.float32) for s in (8, 16, 32)]
    cell = 1 * 4 + 2  # stride 16: row 1, column 2, so its centre is (40, 24)
    scores[1][0, cell, 2] = 0.8
    for which, steps in enumerate((1, 1, 0.5, 1)):  # left, top, right, bottom in strides
        low = int(steps)
        at = which * bins + low
        sides[1][0, cell, [at] if steps == low else [at, at + 1]] = 50
    outputs = [*scores, *sides]
    if single:
        outputs = [np.concatenate([np.concatenate(pair, 2) for pair in zip(scores, sides, strict=True)], 1)]
    head = Head(height=side, width=side, order=MetricOrder(decoder="nanodet", bins=bins))
    boxes, values, kinds = detections(outputs, head)
    assert boxes == pytest.approx(np.array([[24, 8, 48, 40]]), abs=1e-3)
    assert values == pytest.approx([0.8])
    assert kinds.tolist() == [2]


def test_decoded_boxes_are_taken_in_their_three_forms():
    boxes, scores, kinds = np.array([[1, 2, 30, 40.0]]), np.array([0.9]), np.array([1])
    six = np.concatenate([boxes, scores[:, None], kinds[:, None]], 1)
    for outputs in (
        [six[None]],
        [boxes[None], np.array([[[0, 0.9]]])],
        [boxes[None], scores[None], kinds[None]],
    ):
        head = Head(height=64, width=64, order=MetricOrder(decoder="boxes"))
        got = detections(outputs, head)
        assert (got[0].tolist(), got[1].tolist(), got[2].tolist()) == ([[1, 2, 30, 40]], [0.9], [1])
    head = Head(height=50, width=100, order=MetricOrder(decoder="boxes", normalised=True))
    assert detections([six / [100, 50, 100, 50, 1, 1]], head)[0] == pytest.approx(boxes)


@pytest.mark.parametrize(
    "outputs", [[np.zeros((1, 10, 10, 4))], [np.zeros((1, 50, 3)), np.zeros((1, 40, 32))]]
)
@pytest.mark.parametrize("decoder", ["yolo", "nanodet", "boxes"])
def test_outputs_of_another_head_are_refused(decoder, outputs):
    with pytest.raises(BadInput, match="decoder"):
        detections(outputs, Head(height=64, width=64, order=MetricOrder(decoder=decoder)))


@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
@settings(max_examples=30, deadline=None)
def test_suppression_leaves_no_two_boxes_of_a_class_that_overlap_more(seed, iou):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (15, 2))
    boxes, kinds = np.concatenate([low, low + rng.uniform(1, 20, (15, 2))], 1), rng.integers(0, 2, 15)
    kept = suppressed(boxes, kinds, iou, 15)
    assert kept[0] == 0
    assert suppressed(boxes, kinds, iou, 3).tolist() == kept[:3].tolist(), "the best ones, and no more"
    for i in kept:
        for j in kept:
            if i < j and kinds[i] == kinds[j]:
                both = np.prod(
                    np.clip(
                        np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2]),
                        0,
                        None,
                    )
                )
                areas = [np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j)]
                assert both / (sum(areas) - both) <= iou


@pytest.mark.parametrize(
    ("fit", "crop", "size", "expected"),
    [
        ("stretch", 1.0, (128, 256), (40, 20, 80, 40)),
        ("letterbox", 1.0, (32, 64), (10, 0, 20, 4)),  # 64 x 32 in a 64 x 64 frame: 16 rows of padding above
        ("crop", 0.5, (128, 128), (42, 42, 52, 52)),  # the middle 64 x 64, from 32 on
    ],
)
def test_boxes_go_back_to_the_pictures_pixels(fit, crop, size, expected):
    spec = msgspec.structs.replace(FRAME, fit=fit, crop=crop)
    box = np.array([[10, 10, 20, 20.0]])
    assert unframe(box, spec, size)[0] == pytest.approx(expected)


# ---------------------------------------------------------------- segmentation


def segmenter(**options):
    return metric_of("segmentation", MetricOrder(**options), model("segmentation", (1, 3, 32, 32)))


def test_mean_iou_of_a_known_case():
    metric = segmenter()
    wanted, got = np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 1]], np.uint8)
    wanted[1] = 1  # class 0: 2 of 3, class 1: 1 of 2
    figures = metric.scores([metric.row(got, wanted)]).figures
    assert figures == {"miou": pytest.approx((2 / 3 + 1 / 2) / 2), "pixel_accuracy": 0.75}


maps = st.lists(st.integers(0, 2), min_size=16, max_size=16).map(
    lambda v: np.array(v, np.uint8).reshape(4, 4)
)


@given(st.lists(st.tuples(maps, maps), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_mean_iou_is_symmetric_perfect_only_for_equal_maps_and_blind_to_order(pairs):
    metric = segmenter()

    def miou(rows):
        return metric.scores([metric.row(a, b) for a, b in rows]).figures["miou"]

    value = miou(pairs)
    assert 0 <= value <= 1
    assert value == pytest.approx(miou([(b, a) for a, b in pairs]))
    assert value == pytest.approx(miou(pairs[::-1]))
    assert miou([(a, a) for a, _ in pairs]) == 1
    assert (value == 1) == all((a == b).all() for a, b in pairs)


def write_pair(folder, name, mask, size=(64, 64)):
    for kind in ("pictures", "masks"):
        (folder / kind).mkdir(exist_ok=True)
    Image.new("RGB", size[::-1]).save(folder / "pictures" / f"{name}.png")
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def dataset(root, *names, labels=None):
    labels = labels or [None] * len(names)
    samples = tuple(Sample(path=n, sha256=n, label=k) for n, k in zip(names, labels, strict=True))
    return Dataset(root=str(root), samples=samples, rejected=(), sha256="0")


def test_masks_of_another_size_an_unknown_class_or_no_mask_are_named(tmp_path):
    write_pair(tmp_path, "good", np.full((64, 64), 255, np.uint8))
    write_pair(tmp_path, "small", np.zeros((32, 64), np.uint8))
    write_pair(tmp_path, "class", np.full((64, 64), 9, np.uint8))
    Image.new("RGB", (64, 64)).save(tmp_path / "masks" / "colour.png")
    names = ["good.png", "small.png", "class.png", "colour.png", "none.png"]
    got = segmenter().labels(tmp_path / "masks", dataset(tmp_path / "pictures", *names))
    assert [t is not None for t in got.truths] == [True, False, False, False, False]
    assert "32x64" in got.reasons["small.png"]
    assert "class 9" in got.reasons["class.png"]
    assert "indices" in got.reasons["colour.png"]
    assert "no mask" in got.reasons["none.png"]
    with pytest.raises(BadInput, match="masks"):
        segmenter().labels(None, dataset(tmp_path))


def test_a_mask_is_compared_in_the_frame_and_void_is_left_out(tmp_path):
    mask = np.zeros((32, 64), np.uint8)
    mask[:, 32:], mask[:4] = 2, 255
    write_pair(tmp_path, "a", mask, (32, 64))
    spec = msgspec.structs.replace(FRAME, fit="letterbox")
    metric = metric_of("segmentation", MetricOrder(), model("segmentation", (1, 3, 32, 32), spec=spec))
    (one,) = metric.labels(tmp_path / "masks", dataset(tmp_path / "pictures", "a.png")).truths
    scores = np.zeros((1, 3, 32, 32), np.float32)
    scores[0, 2, :, 16:] = 1  # right in the picture; what it says of the padding must not count
    figures = metric.scores([metric.row(metric.decode({"o0": scores}, {}), one)]).figures
    assert figures == {"miou": 1, "pixel_accuracy": 1}


# ---------------------------------------------------------------- text


def reader(characters="abc", classes=None, **options):
    order = MetricOrder(characters=tuple(characters), **options)
    return metric_of("text", order, model("text", (1, "T", classes or len(characters) + 1)))


@pytest.mark.parametrize(("blank", "steps"), [(0, [1, 1, 0, 1, 3, 0, 2]), (-1, [0, 0, 3, 0, 2, 3, 1])])
def test_repeats_merge_and_blanks_part_them(blank, steps):
    scores = np.eye(4, dtype=np.float32)[steps][None]
    assert reader(blank=blank).decode({"o0": scores}, {}) == "aacb"


def test_word_and_character_errors_of_a_known_case():
    metric = reader()
    rows = [metric.row("the cat sat", "the cat sat on"), metric.row("a dig", "a dog")]
    assert metric.scores(rows).figures == {"wer": 2 / 6, "cer": 4 / 19}
    by_character = reader(unit="character")
    assert next(iter(by_character.scores(rows).figures)) == "cer"


words = st.lists(st.sampled_from("abcd"), max_size=8)


@given(words, words, words)
@settings(max_examples=60, deadline=None)
def test_the_edit_distance_is_a_metric_within_its_bounds(a, b, c):
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


def test_a_model_of_one_class_more_reads_the_space_and_any_other_number_is_refused():
    scores = np.eye(5, dtype=np.float32)[[1, 4, 2]][None]
    assert reader(classes=5).decode({"o0": scores}, {}) == "a b"
    with pytest.raises(BadInput, match="charset"):
        reader(classes=9)
    with pytest.raises(BadInput, match="charset"):
        metric_of("text", MetricOrder(), model("text", (1, "T", 4)))


def test_texts_that_are_missing_or_empty_are_named(tmp_path):
    table = tmp_path / "texts.csv"
    table.write_text('path,text\na.png,"one, two"\nb.png,  \n')
    got = reader().labels(table, dataset(tmp_path, "a.png", "b.png", "c.png"))
    assert got.truths == ("one, two", None, None)
    assert "empty" in got.reasons["b.png"]
    assert "no row" in got.reasons["c.png"]
    table.write_text("path,label\na.png,one\n")
    with pytest.raises(BadInput, match="path,text"):
        reader().labels(table, dataset(tmp_path, "a.png"))


# ---------------------------------------------------------------- embeddings


def test_neighbours_leave_the_sample_itself_out():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    assert neighbours(vectors).tolist() == [1, 0, 3, 2]


def test_retrieval_on_classes_and_agreement_without():
    metric = metric_of("embedding", MetricOrder(), model("embedding", (1, 8)))
    rng = np.random.default_rng(0)
    outputs = [{"o0": rng.normal(size=(1, 8)) + 4 * np.eye(8)[i % 4]} for i in range(40)]
    noisy = [{"o0": o["o0"] + rng.normal(0, 3, (1, 8))} for o in outputs]
    classes = [i % 4 for i in range(40)]
    right = score(metric, [{}] * 40, outputs, outputs, classes)
    assert right.figures["retrieval_top1"] > 0.9
    assert right.drop == 0
    assert score(metric, [{}] * 40, outputs, noisy, classes).drop > 0.2
    same = score(metric, [{}] * 40, outputs, outputs)
    assert same.value == 1
    assert same.figures["embedding_cosine_min"] == pytest.approx(1)
    assert score(metric, [{}] * 40, outputs, noisy).value < 0.8
    assert "agree" in score(metric, [{}], outputs[:1], outputs[:1]).reason


def test_tokens_are_pooled_over_the_mask():
    metric = metric_of("embedding", MetricOrder(pool="mean"), model("embedding", (1, 3, 2)))
    tokens = np.array([[[2, 0], [0, 2], [9, 9]]], np.float32)
    got = metric.decode({"o0": tokens}, {"attention_mask": np.array([[1, 1, 0]])})
    assert got == pytest.approx([2**-0.5, 2**-0.5])


# ---------------------------------------------------------------- every metric


def any_rows(task, seed, n=20):
    """The metric with (float rows, artifact rows), where the artifact is the worse one."""
    rng = np.random.default_rng(seed)
    if task == "detection":
        metric = metric_of(task, MetricOrder(decoder="yolo"), model(task, (1, 7, 50)))
        rows = random_rows(seed, n)
        exact = [
            (found(*((*b, 0.9, k) for b, k in zip(t.boxes, t.classes, strict=True))), t) for _, t in rows
        ]
        return metric, exact, rows
    if task == "segmentation":
        metric = segmenter()
        wanted = rng.integers(0, 3, (n, 8, 8)).astype(np.uint8)
        spoiled = np.where(rng.random(wanted.shape) < 0.3, 0, wanted).astype(np.uint8)
        return (
            metric,
            [metric.row(w, w) for w in wanted],
            [metric.row(*p) for p in zip(spoiled, wanted, strict=True)],
        )
    if task == "text":
        metric = reader()
        return (
            metric,
            [metric.row("ab ba", "ab ba")] * n,
            [metric.row(rng.choice(["ab ba", "ab"]), "ab ba") for _ in range(n)],
        )
    if task == "embedding":
        metric = metric_of(task, MetricOrder(), model(task, (1, 4)))
        vectors = (np.eye(4)[np.arange(n) % 4] + rng.normal(0, 0.1, (n, 4))).astype(np.float32)
        noisy = (vectors + rng.normal(0, 1, (n, 4))).astype(np.float32)
        return metric, [(v, i % 4) for i, v in enumerate(vectors)], [(v, i % 4) for i, v in enumerate(noisy)]
    metric = metric_of(task, MetricOrder(), model(task, (1, 3)))
    return metric, [(True, True)] * n, [(bool(rng.random() < 0.8), True) for _ in range(n)]


@pytest.mark.parametrize("task", METRICS)
@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_hold_their_value_and_the_order_of_samples_does_not_matter(task, seed):
    metric, first, second = any_rows(task, seed)
    got = compare(metric, first, second, labelled=True)
    assert got.interval[0] <= got.value <= got.interval[1]
    assert got.drop_interval[0] <= got.drop <= got.drop_interval[1]
    assert got.drop > 0
    assert got == compare(metric, first, second, labelled=True)
    order = np.random.default_rng(seed).permutation(len(first))
    mixed = compare(metric, [first[i] for i in order], [second[i] for i in order], labelled=True)
    assert mixed.drop == pytest.approx(got.drop)
    assert mixed.value == pytest.approx(got.value)


@pytest.mark.parametrize("task", METRICS)
def test_an_equal_artifact_loses_nothing_and_few_samples_do_not_prove_it(task):
    metric, first, _ = any_rows(task, 0)
    got = compare(metric, first, first, labelled=True)
    assert got.drop == 0
    # Twenty samples without a change leave room for one in six: Wilson's limit.
    assert got.drop_interval[1] > 0.05
    assert compare(metric, [], [], labelled=True).value is None


def test_the_interval_covers_a_known_drop_about_as_often_as_it_says():
    # Word errors with a true rate of 0.10 in one model and 0.16 in the other, on 150 paired lines.
    metric, rng, covered = reader(), np.random.default_rng(3), 0
    for _ in range(100):
        first = rng.random((150, 4)) < 0.10
        second = first | (rng.random((150, 4)) < 0.06 / 0.9)
        rows = [[(int(r.sum()), 4, 0, 9) for r in side] for side in (first, second)]
        low, high = compare(metric, *rows, labelled=True).drop_interval
        covered += low <= 0.06 <= high
    assert 88 <= covered <= 100


def test_too_few_samples_are_told_with_how_many_would_do():
    told = too_few(100, 0.01, (-0.02, 0.04), 0.01, "mAP drop", "labelled ")
    assert "100 labelled samples can't support a bound of 0.01 on the mAP drop" in told
    assert "about 900 would" in told
    assert too_few(100, 0.01, (0.005, 0.015), 0.01, "mAP drop", "") is None
    assert "no practical number" in too_few(10, 0.0, (-0.1, 0.1), 0.0, "mAP drop", "")


@pytest.mark.parametrize(
    ("task", "shape", "why"),
    [
        ("detection", (1, 6, 50), "decoder"),
        ("segmentation", (1, 5), "classes"),
        ("text", (1, 9, 4), "charset"),
    ],
)
def test_what_a_task_needs_and_the_job_does_not_say_is_an_error_that_says_it(task, shape, why):
    with pytest.raises(BadInput, match=why):
        metric_of(task, MetricOrder(), model(task, shape))


# ---------------------------------------------------------------- annotations


def coco(path: Path, **changes):
    table = {
        "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
    }
    path.write_bytes(msgspec.json.encode(table | changes))
    return path


def test_annotations_are_read_by_name_or_by_order(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    order, data = MetricOrder(decoder="yolo"), dataset(tmp_path, "a.png", "b.png")
    for labels, kind in (((), 0), (("dog", "cat"), 1)):
        metric = metric_of("detection", order, model("detection", (1, 6, 50), labels=labels))
        got = metric.labels(coco(tmp_path / "c.json"), data)
        assert got.truths[0].classes == (kind,)
        assert got.truths[0].size == (64, 64)
        assert "not among the images" in got.reasons["b.png"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"annotations": [{"image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4]}]}, "unknown category 4"),
        ({"annotations": [{"image_id": 7, "category_id": 5, "bbox": [1, 2, "3", 4]}]}, "four numbers"),
        ({"annotations": [{"image_id": 7, "category_id": 5, "bbox": [1, 2, 0, 4]}]}, "bbox is"),
        ({"images": [{"id": 7, "file_name": "a.png", "width": 9, "height": 64}]}, "64x9 pixels"),
    ],
)
def test_a_picture_with_a_bad_annotation_is_left_out_with_the_reason(tmp_path, changes, why):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    metric = metric_of("detection", MetricOrder(decoder="yolo"), model("detection", (1, 6, 50)))
    got = metric.labels(coco(tmp_path / "c.json", **changes), dataset(tmp_path, "a.png"))
    assert got.truths == (None,)
    assert why in got.reasons["a.png"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"images": []}', '{"images": 1, "annotations": [], "categories": []}']
)
def test_what_are_no_annotations_is_an_error(tmp_path, text):
    metric = metric_of("detection", MetricOrder(decoder="yolo"), model("detection", (1, 6, 50)))
    (tmp_path / "c.json").write_text(text)
    for path in (tmp_path / "c.json", tmp_path / "absent.json", None):
        with pytest.raises(BadInput, match="COCO"):
            metric.labels(path, dataset(tmp_path, "a.png"))


def test_more_categories_than_the_model_has_classes_is_an_error(tmp_path):
    metric = metric_of("detection", MetricOrder(decoder="yolo"), model("detection", (1, 5, 50)))
    with pytest.raises(BadInput, match="2 categories"):
        metric.labels(coco(tmp_path / "c.json"), dataset(tmp_path, "a.png"))

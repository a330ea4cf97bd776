"""Builds of a small detector and a small segmenter that are chosen on their own metric, labels and all."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgekiln
from edgekiln.errors import BadInput
from edgekiln.intake import take_in
from edgekiln.job import BudgetOrder, Job, MetricOrder, ModelOrder, SearchOrder
from edgekiln.records import Build, Preprocess

SIDE, CELL, CLASSES = 32, 8, ("red", "green", "blue")
SPEC = Preprocess(width=SIDE, height=SIDE)
node = helper.make_node


def save(path: Path, nodes, shape, weights):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))
    held = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def colours(kernel: int) -> np.ndarray:
    """(3, 3, k, k): a channel's mean less the others', so that each output likes one colour."""
    own = np.eye(3) - 0.5 * (1 - np.eye(3))
    return (own[:, :, None, None] * np.ones((kernel, kernel)) / kernel**2).astype(np.float32)


def detector(path: Path) -> None:
    """Colour of each 8 x 8 cell as a class score: (1, 4 + 3, 16) as Ultralytics writes it."""
    n = SIDE // CELL
    y, x = np.mgrid[:n, :n].reshape(2, -1) * CELL + CELL / 2
    boxes = np.stack([x, y, *np.full((2, n * n), float(CELL))])[None].astype(np.float32)
    weights = {
        "w": colours(CELL) * 16,
        "b": np.full(3, -8, np.float32),
        "boxes": boxes,
        "shape": np.array([1, 3, -1]),
    }
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], strides=[CELL, CELL]),
        node("Sigmoid", ["c"], ["s"]),
        node("Reshape", ["s", "shape"], ["r"]),
        node("Concat", ["boxes", "r"], ["y"], axis=1),
    ]
    save(path, nodes, (1, 7, n * n), weights)


def segmenter(path: Path) -> None:
    """(1, 3, 32, 32) scores: each pixel's colour."""
    save(path, [node("Conv", ["x", "w"], ["y"])], (1, 3, SIDE, SIDE), {"w": colours(1)})


def write_data(folder: Path, n: int = 12) -> None:
    """Pictures of coloured cells with COCO annotations and masks, and some without labels."""
    for name in ("data", "eval", "masks"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(2 * n):
        kinds = rng.integers(0, 3, (4, 4))
        there = rng.random((4, 4)) < 0.4
        light = np.where(there, rng.uniform(180, 255, (4, 4)), 30)
        pixels = np.zeros((4, 4, 3))
        np.put_along_axis(pixels, kinds[..., None], light[..., None], 2)
        picture = np.kron(pixels, np.ones((CELL, CELL, 1))).astype(np.uint8)
        Image.fromarray(picture).save(folder / ("eval" if i < n else "data") / f"{i}.png")
        if i >= n:
            continue
        Image.fromarray(np.kron(kinds, np.ones((CELL, CELL))).astype(np.uint8)).save(
            folder / "masks" / f"{i}.png"
        )
        images.append({"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE})
        for r, c in np.argwhere(there).tolist():
            box = [c * CELL, r * CELL, CELL, CELL]
            annotations.append({"image_id": i, "category_id": int(kinds[r, c]) + 1, "bbox": box})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_bytes(msgspec.json.encode(table))


def job(folder: Path, task: str, labelled: bool = True, **metric) -> Job:
    if not (folder / "data").exists():
        write_data(folder)
        detector(folder / "detection.onnx")
        segmenter(folder / "segmentation.onnx")
    return Job(
        model=ModelOrder(source=f"{task}.onnx", task=task),
        data="data",
        eval="eval" if labelled else None,
        out=f"out-{task}-{labelled}",
        preprocess=SPEC,
        metric=MetricOrder(**metric),
        budget=BudgetOrder(max_drop=0.02),
        search=SearchOrder(
            targets=("onnxruntime",), recipes=("fp32", "int8-static-minmax"), threads=1, samples=20
        ),
        base=str(folder),
    )


def built(given: Job, tmp_path: Path) -> Build:
    edgekiln.build(given, cache=tmp_path / "cache")
    return msgspec.json.decode((tmp_path / given.out / "evidence.json").read_bytes(), type=Build)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, data and a cache for the builds that change none of them."""
    return tmp_path_factory.mktemp("metrics")


def chosen(build: Build):
    (choice,) = build.decision.choices
    return next(p for p in build.proofs if p.artifact.id == choice.artifact_id), choice


@pytest.mark.parametrize(
    ("task", "metric", "figure", "title"),
    [
        ("detection", {"decoder": "yolo", "labels": "coco.json"}, "map", "mAP"),
        ("segmentation", {"labels": "masks"}, "miou", "mIoU"),
    ],
)
def test_the_choice_is_made_on_the_tasks_own_metric(folder, task, metric, figure, title):
    build = built(job(folder, task, **metric), folder)
    proof, choice = chosen(build)
    assert proof.value(f"{figure}_float") == pytest.approx(1)
    assert proof.value("metric_drop") <= 0.02
    assert proof.get("metric_drop").environment["metric"] == title
    # Twelve pictures can't prove two points, and the build says so.
    assert "accuracy_drop" in choice.unproven
    assert any(f"on the {title} drop" in w for w in build.warnings)
    report = (folder / f"out-{task}-True" / "report.html").read_text(encoding="utf-8")
    assert f"{title} drop" in report
    assert "Accuracy drop" not in report


def test_an_artifact_that_loses_more_than_the_bound_is_out_for_that_by_the_metrics_name(tmp_path):
    given = job(tmp_path, "segmentation", labels="masks")
    # A fourth channel 300 times as large: with one step of eight bits for all, the colours round to nothing.
    first = np.concatenate([colours(1), np.full((1, 3, 1, 1), 300, np.float32)])
    last = np.concatenate([np.eye(3), np.zeros((3, 1))], 1)[:, :, None, None].astype(np.float32)
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["r"]), node("Conv", ["r", "v"], ["y"])]
    save(tmp_path / "segmentation.onnx", nodes, (1, 3, SIDE, SIDE), {"w": first, "v": last})
    build = built(given, tmp_path)
    by_recipe = {p.artifact.recipe: p for p in build.proofs}
    assert by_recipe["int8-static-minmax"].value("metric_drop") > 0.3
    assert by_recipe["int8-static-minmax"].value("miou_float") == 1
    proof, choice = chosen(build)
    assert proof.artifact.recipe == "fp32"
    assert "breaks the budget: mIoU drop" in choice.losers[0].why


@pytest.mark.parametrize(("task", "metric"), [("detection", {"decoder": "yolo"}), ("segmentation", {})])
def test_without_labels_the_agreement_is_bounded(folder, task, metric):
    build = built(job(folder, task, labelled=False, **metric), folder)
    proof, choice = chosen(build)
    assert proof.value("agreement") >= 0.98
    assert proof.value("metric_drop") is None
    assert "agreement" in choice.unproven
    assert "float model" in proof.get("agreement").environment["metric"]


def test_pictures_without_a_label_are_rejected_rows(tmp_path):
    given = job(tmp_path, "segmentation", labels="masks")
    (tmp_path / "masks" / "3.png").unlink()
    intake = take_in(given, tmp_path / "cache")
    assert len(intake.truths) == len(intake.evaluation.samples) == 11
    assert [(r.path, r.reason) for r in intake.evaluation.rejected] == [("3.png", "it has no mask")]
    for mask in (tmp_path / "masks").iterdir():
        mask.unlink()
    with pytest.raises(BadInput, match="no sample has a usable label"):
        take_in(given, tmp_path / "cache")


# ---------------------------------------------------------------- a real recogniser, real embeddings

LINES = {
    (50, 63): "Let us first determine markers of the coins and the",
    (69, 82): "background. These markers are pixels that we can label",
    (122, 135): "histogram of grey values:",
}


def lines_of_the_page(folder: Path) -> None:
    """Three lines of the page of text inside scikit-image, and what they say."""
    import skimage

    folder.mkdir()
    with Image.open(Path(skimage.__file__).parent / "data" / "page.png") as page:
        for top, bottom in LINES:
            page.convert("RGB").crop((0, top - 3, 384, bottom + 3)).save(folder / f"{top}.png")
    rows = [f'{top}.png,"{text}"' for (top, _), text in LINES.items()]
    (folder.parent / "texts.csv").write_text("\n".join(["path,text", *rows]) + "\n")


def recogniser(folder: Path, **metric) -> Job:
    given = {"charset": "metadata:character", "labels": "texts.csv"} | metric
    half = (0.5, 0.5, 0.5)
    return Job(
        model=ModelOrder(source="package:rapidocr/models/PP-OCRv6_rec_small.onnx", task="text"),
        eval="lines",
        out="out",
        preprocess=Preprocess(
            width=512, height=48, fit="letterbox", colour="BGR", mean=half, std=half, pad=127
        ),
        metric=MetricOrder(**given),
        base=str(folder),
    )


class Outputs:
    """The float model's outputs, one sample's scores replaced, as an artifact that misreads one line."""

    def __init__(self, run, spoiled: int) -> None:
        self.run, self.spoiled, self.number = run, spoiled, -1

    def __call__(self, inputs):
        self.number += 1
        outputs = dict(self.run(inputs))
        if self.number == self.spoiled:
            outputs = {k: np.roll(v, 1, axis=-1) for k, v in outputs.items()}
        return outputs


def test_pp_ocr_reads_a_page_and_a_line_misread_costs_its_share_of_words(tmp_path):
    from edgekiln.baseline import float_runner
    from edgekiln.intake import samples
    from edgekiln.prove.metrics import metric_of, score

    lines_of_the_page(tmp_path / "lines")
    intake = take_in(recogniser(tmp_path), tmp_path / "cache")
    metric = metric_of("text", intake.metric, intake.model)
    runner = float_runner(intake, 1)
    inputs = list(samples(intake, intake.evaluation))
    outputs = [runner(i) for i in inputs]
    right = score(metric, inputs, outputs, outputs, intake.truths)
    assert right.n == 3
    assert right.figures["cer"] < 0.03
    assert right.figures["wer"] < 0.1
    spoiled = Outputs(lambda i: outputs[[x is i for x in inputs].index(True)], 1)
    found = score(metric, inputs, outputs, [spoiled(i) for i in inputs], intake.truths)
    words = [len(t.split()) for t in LINES.values()]
    assert intake.evaluation.samples[1].path == "50.png"
    assert found.drop == pytest.approx(words[0] / sum(words), abs=0.1)
    assert score(metric, inputs, outputs, outputs).value == 1


def test_a_charset_that_is_not_there_is_an_error(tmp_path):
    lines_of_the_page(tmp_path / "lines")
    for charset, why in (
        ("metadata:characters", "character"),
        ("absent.txt", "charset"),
        ("texts.csv", "classes"),
    ):
        with pytest.raises(BadInput, match=why):
            take_in(recogniser(tmp_path, charset=charset), tmp_path / "cache")


def test_embeddings_of_a_transformer_with_random_weights_find_their_class_and_int8_keeps_most(tmp_path):
    write_data(tmp_path)
    rng = np.random.default_rng(0)
    # Four classes: a colour at one place, with noise; folders are the classes.
    for i in range(24):
        kind = i % 4
        pixels = rng.integers(0, 60, (SIDE, SIDE, 3))
        pixels[kind * 8 : kind * 8 + 8, :, kind % 3] += 150
        (tmp_path / "classes" / f"c{kind}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "classes" / f"c{kind}" / f"{i}.png")
    draw = {
        "patch": rng.normal(0, 0.2, (24, 3, 8, 8)),
        "place": rng.normal(0, 0.3, (1, 16, 24)),
        "qkv": rng.normal(0, 0.2, (24, 72)),
        "parts": np.array([24, 24, 24]),
        "flat": np.array([1, 24, 16]),
        "scale": np.float32(24**-0.5),
    }
    draw = {k: v if v.dtype.kind == "i" else np.asarray(v, np.float32) for k, v in draw.items()}
    nodes = [
        node("Conv", ["x", "patch"], ["p"], strides=[8, 8]),
        node("Reshape", ["p", "flat"], ["f"]),
        node("Transpose", ["f"], ["t"], perm=[0, 2, 1]),
        node("Add", ["t", "place"], ["e"]),
        node("MatMul", ["e", "qkv"], ["m"]),
        node("Split", ["m", "parts"], ["q", "k", "v"], axis=2),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["a"]),
        node("Mul", ["a", "scale"], ["as"]),
        node("Softmax", ["as"], ["s"], axis=-1),
        node("MatMul", ["s", "v"], ["o"]),
        node("Add", ["o", "e"], ["y"]),
    ]
    save(tmp_path / "embedding.onnx", nodes, (1, 16, 24), draw)
    detector(tmp_path / "detection.onnx")
    segmenter(tmp_path / "segmentation.onnx")
    given = msgspec.structs.replace(job(tmp_path, "embedding", pool="mean"), eval="classes")
    build = built(given, tmp_path)
    proof, _ = chosen(build)
    assert proof.value("retrieval_top1_float") > 0.8
    assert proof.value("metric_drop") <= 0.02
    assert proof.value("embedding_cosine_min") > 0.95
    assert proof.get("agreement").environment["metric"].startswith("share of samples")

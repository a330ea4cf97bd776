"""Architectures that only their authors' repositories build: read from a folder of checked-out sources.

Give the folder as ``--sources``: each repository lies in ``OWNER+NAME`` below it. Nothing of them is kept
here; commits are in ``SOURCES``. Rows whose repository is not there are left out and named.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

SOURCES = {
    "Qualcomm-AI-research+FFNet": "2291ae7",
    "WongKinYiu+yolov7": "a207844",
    "Megvii-BaseDetection+YOLOX": "6ddff48",
    "chenjun2hao+DDRNet.pytorch": "bc0e193",
    "XuJiacong+PIDNet": "4c158cf",
    "clovaai+ext_portrait_segmentation": "9bc1bad",
    "zmurez+MediaPipePyTorch": "b38dbe3",
    "ultralytics+yolov5": "5081342",
    "meituan+YOLOv6": "e86a483",
    "cavalleria+cavaface": "822651f",
    "ooooverflow+BiSeNet": "284a8f6",
    "quic+aimet-model-zoo": "d09d2b0",
    "quic+ai-hub-models": "52c080d",
    "researchmm+AOT-GAN-for-Inpainting": "2cd1afd",
}
Row = tuple[str, str, Callable[[], nn.Module], tuple[Any, ...], float | None]


@contextlib.contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Import below ``folder`` first, and forget afterwards: many repositories call a package ``models``."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder.name}@{SOURCES.get(folder.name, '?')} is not below --sources")
    before, here = set(sys.modules), Path.cwd()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "") or ""):
                del sys.modules[name]


def table(sources: Path) -> Iterator[Row]:
    """The rows of ``architectures.table``, for what lies below ``sources``."""

    def made(repository: str, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            with imports_from(sources / repository):
                return make()

        return build

    def module(name: str) -> Any:
        return importlib.import_module(name)

    # Where a publisher counts heads that only training has, or a classifier that is not run, the number is
    # that of the network built here: ddrnet23_slim 6.13, pidnet 8.06, bisenet 12.0 are stated.
    city, low = (torch.zeros(1, 3, 1024, 2048),), (torch.zeros(1, 3, 512, 1024),)
    square = lambda n, c=3: (torch.zeros(1, c, n, n),)  # noqa: E731
    for name, called, size, stated in (
        ("ffnet_40s", "segmentation_ffnet40S_dBBB_mobile", city, 13.9),
        ("ffnet_54s", "segmentation_ffnet54S_dBBB_mobile", city, 18.0),
        ("ffnet_78s", "segmentation_ffnet78S_dBBB_mobile", city, 27.5),
        ("ffnet_122ns_lowres", "segmentation_ffnet122NS_CCC_mobile_pre_down", low, 32.1),
    ):
        yield name, "ffnet", made("Qualcomm-AI-research+FFNet", lambda c=called: _ffnet(c)), size, stated
    yield ("ddrnet23_slim", "ddrnet", made("chenjun2hao+DDRNet.pytorch", lambda: _ddrnet(module)), city, 5.7)
    yield (
        "pidnet",
        "pidnet",
        made("XuJiacong+PIDNet", lambda: module("models.pidnet").get_pred_model("pidnet_s", 19)),
        city,
        7.63,
    )
    yield (
        "sinet",
        "sinet",
        made("clovaai+ext_portrait_segmentation", lambda: _sinet(module)),
        square(224),
        0.0919,
    )
    yield (
        "bisenet",
        "bisenet",
        made("ooooverflow+BiSeNet", lambda: _bisenet(module)),
        (torch.zeros(1, 3, 720, 960),),
        12.5,
    )
    yield "yolox", "yolox", made("Megvii-BaseDetection+YOLOX", lambda: _yolox(module)), square(640), 8.98
    yield (
        "yolov7",
        "yolov7",
        made("WongKinYiu+yolov7", lambda: _yolo(module, "cfg/deploy/yolov7-tiny.yaml")),
        square(640),
        6.24,
    )
    yield (
        "yolov5",
        "yolov5",
        made("ultralytics+yolov5", lambda: _yolo(module, "models/yolov5m.yaml")),
        square(640),
        21.2,
    )
    yield (
        "cavaface",
        "irse",
        made("cavalleria+cavaface", lambda: module("backbone.resnet_irse").IR_SE_100([112, 112])),
        square(112),
        65.5,
    )
    blaze = "zmurez+MediaPipePyTorch"
    for name, called, size, stated in (
        ("mediapipe_face/FaceLandmarkDetector", ("blazeface_landmark", "BlazeFaceLandmark"), 192, 0.603),
        ("mediapipe_hand/HandDetector", ("blazepalm", "BlazePalm"), 256, 1.76),
        ("mediapipe_hand/HandLandmarkDetector", ("blazehand_landmark", "BlazeHandLandmark"), 256, 2.01),
        ("mediapipe_pose/PoseDetector", ("blazepose", "BlazePose"), 128, 0.815),
        ("mediapipe_pose/PoseLandmarkDetector", ("blazepose_landmark", "BlazePoseLandmark"), 256, 3.36),
    ):
        network = made(blaze, lambda called=called: getattr(module(called[0]), called[1])())
        yield name, "mediapipe", network, square(size), stated
    hub = "quic+ai-hub-models"
    for name, called, size, stated in (
        (
            "face_det_lite/Lightweight-Face-Detection",
            ("face_det_lite", "FaceDetLite"),
            (1, 1, 480, 640),
            0.878,
        ),
        (
            "facemap_3dmm/Facial-Landmark-Detection",
            ("facemap_3dmm.resnet_score_rgb", "resnet18_wd2"),
            (1, 3, 128, 128),
            5.42,
        ),
    ):
        network = made(hub, lambda called=called: _hub(module, *called))
        yield name, name.partition("/")[0], network, (torch.zeros(*size),), stated
    yield (
        "aotgan",
        "aotgan",
        made("researchmm+AOT-GAN-for-Inpainting/src", lambda: _aotgan(module)),
        (torch.zeros(1, 4, 512, 512),),
        15.2,
    )


def _ffnet(called: str) -> nn.Module:
    real = torch.load
    registry = importlib.import_module("models.model_registry")
    importlib.import_module("models")
    torch.load = lambda *a, **k: {}
    nn_load = nn.Module.load_state_dict
    nn.Module.load_state_dict = lambda self, *a, **k: None  # type: ignore[method-assign, assignment]
    try:
        return registry.model_entrypoint(called)()
    finally:
        torch.load = real
        nn.Module.load_state_dict = nn_load  # type: ignore[method-assign]


def _ddrnet(module: Callable[[str], Any]) -> nn.Module:
    import types

    # lib/models/__init__.py imports what is not there: a bare package stands in for it.
    for name, path in (("lib", "lib"), ("lib.models", "lib/models")):
        stand_in = types.ModuleType(name)
        stand_in.__path__ = [str(Path.cwd() / path)]
        stand_in.__file__ = str(Path.cwd() / path / "stand_in.py")
        sys.modules[name] = stand_in
    slim = module("lib.models.ddrnet_23_slim")
    return slim.DualResNet(
        slim.BasicBlock,
        [2, 2, 2, 2],
        num_classes=19,
        planes=32,
        spp_planes=128,
        head_planes=64,
        augment=False,
    )


def _sinet(module: Callable[[str], Any]) -> nn.Module:
    config = [
        [[3, 1], [5, 1]], [[3, 1], [3, 1]], [[3, 1], [5, 1]], [[3, 1], [3, 1]], [[5, 1], [3, 2]],
        [[5, 2], [3, 4]], [[3, 1], [3, 1]], [[5, 1], [5, 1]], [[3, 2], [3, 4]], [[3, 1], [5, 2]],
    ]  # fmt: skip
    return module("models.SINet").SINet(classes=2, p=2, q=8, config=config, chnn=1)


def _bisenet(module: Callable[[str], Any]) -> nn.Module:
    import torchvision

    real = {name: getattr(torchvision.models, name) for name in ("resnet18", "resnet101")}
    for name, make in real.items():
        setattr(torchvision.models, name, lambda pretrained=False, make=make, **more: make(**more))
    try:
        return module("model.build_BiSeNet").BiSeNet(12, "resnet18")
    finally:
        for name, make in real.items():
            setattr(torchvision.models, name, make)


def _yolox(module: Callable[[str], Any]) -> nn.Module:
    pafpn, head, whole = (module(f"yolox.models.{n}") for n in ("yolo_pafpn", "yolo_head", "yolox"))
    made = whole.YOLOX(pafpn.YOLOPAFPN(0.33, 0.5), head.YOLOXHead(80, 0.5))
    made.head.decode_in_inference = True
    return made


def _yolo(module: Callable[[str], Any], description: str) -> nn.Module:
    made = module("models.yolo").Model(description)
    made.eval()
    if hasattr(made, "fuse"):
        made.fuse()
    made.model[-1].export = False
    return made


def _aotgan(module: Callable[[str], Any]) -> nn.Module:
    import types

    network = module("model.aotgan").InpaintGenerator(types.SimpleNamespace(block_num=8, rates=[1, 2, 4, 8]))

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x[:, :3], x[:, 3:])

    return Joined()


def _hub(module: Callable[[str], Any], name: str, kind: str) -> nn.Module:
    """A network that the publisher's own package defines; what else that package imports is not needed."""
    from unittest import mock

    class Absent(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
            root = fullname.partition(".")[0]
            if root in ABSENT:
                return importlib.machinery.ModuleSpec(fullname, Loader())
            return None

    class Loader(importlib.abc.Loader):
        def create_module(self, spec: Any) -> Any:
            made = mock.MagicMock(name=spec.name)
            made.__path__, made.__spec__, made.__file__ = [], spec, str(Path.cwd() / "absent.py")
            return made

        def exec_module(self, module: Any) -> None:
            pass

    finder = Absent()
    sys.meta_path.insert(0, finder)
    try:
        found = module(f"qai_hub_models.models.{name}" + ("" if "." in name else ".model"))
        return getattr(found, kind)()
    finally:
        sys.meta_path.remove(finder)


ABSENT = frozenset(
    {
        "qai_hub",
        "datasets",
        "h5py",
        "schema",
        "ruamel",
        "gdown",
        "git",
        "boto3",
        "podm",
        "botocore",
        "pycocotools",
        "skimage",
        "prettytable",
        "tabulate",
        "shapely",
        "soundfile",
        "librosa",
        "imageio",
        "deepdiff",
    }
)

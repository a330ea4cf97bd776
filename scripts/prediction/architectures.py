"""The table of architectures: published name, family, how to build it, its inputs, parameters in millions.

Inputs are those of the published runs (Qualcomm AI Hub Models at 52c080d2, get_input_spec; Ultralytics'
pages: 640 x 640). Parameters are the publisher's (info.yaml beside each model there).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import drawn
import torch
from torch import nn

Row = tuple[str, str, Callable[[], nn.Module], tuple[Any, ...], float | None]


def picture(*size: int) -> tuple[torch.Tensor]:
    height, width = (size * 2)[:2]
    return (torch.zeros(1, 3, height, width),)


class Only(nn.Module):
    """``inner`` with keyword outputs taken apart, which the exporter wants as plain tensors."""

    def __init__(self, inner: nn.Module, take: Callable[[Any], Any], names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.inner, self.take, self.names = inner, take, names

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.take(
            self.inner(**dict(zip(self.names, inputs, strict=True)) if self.names else {})
            if self.names
            else self.inner(*inputs)
        )


def table() -> Iterator[Row]:
    yield from _torchvision()
    yield from _timm()
    yield from _drawn()
    yield from _transformers()
    yield from _ultralytics()


def _torchvision() -> Iterator[Row]:
    tv = drawn.torchvision()
    m = tv.models
    for name, family, make, size, stated in (
        ("resnet18", "resnet", m.resnet18, 224, 11.7),
        ("resnet50", "resnet", m.resnet50, 224, 25.5),
        ("resnet101", "resnet", m.resnet101, 224, 44.5),
        ("wideresnet50", "resnet", m.wide_resnet50_2, 224, 68.9),
        ("resnext50", "resnext", m.resnext50_32x4d, 224, 25.0),
        ("resnext101", "resnext", m.resnext101_32x8d, 224, 88.7),
        ("regnet", "regnet", m.regnet_x_3_2gf, 224, 15.3),
        ("densenet121", "densenet", m.densenet121, 224, 7.99),
        ("mnasnet05", "mobilenet", m.mnasnet0_5, 224, 2.21),
        ("mobilenet_v2", "mobilenet", m.mobilenet_v2, 224, 3.49),
        ("mobilenet_v3_large", "mobilenet", m.mobilenet_v3_large, 224, 5.47),
        ("mobilenet_v3_small", "mobilenet", m.mobilenet_v3_small, 224, 2.54),
        ("shufflenet_v2", "shufflenet", m.shufflenet_v2_x0_5, 224, 1.37),
        ("squeezenet1_1", "squeezenet", m.squeezenet1_1, 224, 1.24),
        ("efficientnet_b0", "efficientnet", m.efficientnet_b0, 224, 5.27),
        ("efficientnet_b4", "efficientnet", m.efficientnet_b4, 224, 19.3),
        ("efficientnet_v2_s", "efficientnet", m.efficientnet_v2_s, 224, 21.4),
        ("convnext_tiny", "convnext", m.convnext_tiny, 224, 28.6),
        ("convnext_base", "convnext", m.convnext_base, 224, 88.6),
    ):
        yield name, family, make, picture(size), stated
    yield (
        "googlenet",
        "inception",
        lambda: m.googlenet(aux_logits=False, init_weights=False),
        picture(224),
        6.62,
    )
    inception = lambda: m.inception_v3(aux_logits=False, init_weights=False)  # noqa: E731
    yield "inception_v3", "inception", inception, picture(224), 23.9
    fcn = lambda: Only(m.segmentation.fcn_resnet50(weights_backbone=None), lambda o: o["out"])  # noqa: E731
    yield "fcn_resnet50", "resnet-segmentation", fcn, picture(520), 33.0
    video = (torch.zeros(1, 3, 16, 112, 112),)
    yield "resnet_3d", "video-resnet", m.video.r3d_18, video, 33.4
    yield "resnet_mixed", "video-resnet", m.video.mc3_18, video, 11.7
    yield "resnet_2plus1d", "video-resnet", m.video.r2plus1d_18, video, 31.5


def _timm() -> Iterator[Row]:
    timm = drawn.timm()
    for name, family, called, size, stated in (
        ("dla102x", "dla", "dla102x", 224, 26.3),
        ("efficientformer", "efficientformer", "efficientformer_l1", 224, 12.3),
        ("efficientvit_b2_cls", "efficientvit", "efficientvit_b2", 224, 24.3),
        ("efficientvit_l2_cls", "efficientvit", "efficientvit_l2", 224, 63.7),
        ("levit", "levit", "levit_128s", 224, 7.82),
        ("nasnet", "nasnet", "nasnetalarge", 224, 88.7),
        ("sequencer2d", "sequencer", "sequencer2d_s", 224, 27.6),
        ("fastvit_t8", "fastvit", "fastvit_t8", 256, None),
        ("fastvit_t12", "fastvit", "fastvit_t12", 256, None),
        ("fastvit_s12", "fastvit", "fastvit_s12", 256, None),
        ("fastvit_sa12", "fastvit", "fastvit_sa12", 256, None),
        ("fastvit_sa24", "fastvit", "fastvit_sa24", 256, None),
        ("fastvit_sa36", "fastvit", "fastvit_sa36", 256, None),
    ):
        yield name, family, lambda called=called: timm.create_model(called), picture(size), stated
    yield "hrnet_pose", "hrnet", lambda: drawn.HrnetPose(timm, "hrnet_w32"), picture(256, 192), 28.5
    yield "hrnet_face", "hrnet", lambda: drawn.HrnetFace(timm, "hrnet_w18"), picture(256), 9.68


def _drawn() -> Iterator[Row]:
    small = picture(128)
    yield "quicksrnetsmall", "superresolution", lambda: drawn.quicksrnet(32, 2), small, 0.0333
    yield "quicksrnetmedium", "superresolution", lambda: drawn.quicksrnet(32, 5), small, 0.061
    yield "quicksrnetlarge", "superresolution", lambda: drawn.quicksrnet(64, 11), small, 0.436
    yield "sesr_m5", "superresolution", drawn.Sesr, small, 0.343
    yield "real_esrgan_general_x4v3", "superresolution", drawn.Srvgg, small, 1.21
    yield "real_esrgan_x4plus", "rrdb", drawn.Rrdb, small, 16.7
    yield "esrgan", "rrdb", drawn.Rrdb, small, 16.7
    yield "unet_segmentation", "unet", drawn.Unet, picture(640, 1280), 31.0
    yield "posenet_mobilenet", "mobilenet-v1", drawn.Posenet, picture(513, 257), 3.31
    yield "yamnet", "mobilenet-v1", drawn.Yamnet, (torch.zeros(1, 1, 96, 64),), 3.73
    yield "deeplabv3_plus_mobilenet", "deeplab", drawn.DeeplabMobilenet, picture(520), 5.80


def _transformers() -> Iterator[Row]:
    t = drawn.transformers()
    ids = (torch.zeros(1, 384, dtype=torch.int64), torch.ones(1, 384, dtype=torch.int64))
    asks = ("input_ids", "attention_mask")
    first = lambda o: o[0]  # noqa: E731

    def language(kind: str, config: Any) -> Callable[[], nn.Module]:
        return lambda: Only(getattr(t, kind)(config), first, asks)

    c = t.BertConfig
    yield "bert_base_uncased_hf", "bert", language("BertForMaskedLM", c()), ids, 110
    albert = t.AlbertConfig(
        hidden_size=768, num_attention_heads=12, intermediate_size=3072, embedding_size=128, vocab_size=30000
    )
    yield "albert_base_v2_hf", "bert", language("AlbertForPreTraining", albert), ids, 11.8
    distil = language("DistilBertForMaskedLM", t.DistilBertConfig())
    yield "distil_bert_base_uncased_hf", "bert", distil, ids, None
    electra = t.ElectraConfig(
        embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072
    )
    yield "electra_bert_base_discrim_google", "bert", language("ElectraForPreTraining", electra), ids, 109
    mobile = language("MobileBertModel", t.MobileBertConfig())
    yield "mobile_bert_uncased_google", "mobilebert", mobile, ids, 25.3
    seg = t.SegformerConfig(num_labels=150)
    yield (
        "segformer_base",
        "segformer",
        lambda: Only(t.SegformerForSemanticSegmentation(seg), first),
        picture(512),
        3.75,
    )
    beit = t.BeitConfig(
        use_relative_position_bias=True,
        use_mean_pooling=True,
        num_labels=1000,
        use_absolute_position_embeddings=False,
    )
    yield "beit", "vit", lambda: Only(t.BeitForImageClassification(beit), first), picture(224), 86.5
    mae = t.VideoMAEConfig(num_labels=400, use_mean_pooling=True)
    frames = (torch.zeros(1, 16, 3, 224, 224),)
    yield "video_mae", "vit", lambda: Only(t.VideoMAEForVideoClassification(mae), first), frames, 87.7
    mobile_vit = t.MobileViTConfig(num_labels=1000)
    yield (
        "mobile_vit",
        "mobilevit",
        lambda: Only(t.MobileViTForImageClassification(mobile_vit), first),
        picture(256),
        5.57,
    )
    for name in ("depth_anything", "depth_anything_v2"):
        yield (
            name,
            "depth-anything",
            lambda: Only(t.DepthAnythingForDepthEstimation(_depth(t)), first),
            picture(518),
            24.7,
        )
    for name, depth, dilated in (
        ("detr_resnet50", "resnet50", False),
        ("detr_resnet101", "resnet101", False),
        ("detr_resnet50_dc5", "resnet50", True),
        ("detr_resnet101_dc5", "resnet101", True),
    ):
        config = {"backbone": depth, "dilation": dilated}
        stated = {"detr_resnet50": 41.4, "detr_resnet101": 60.3}.get(name)
        yield name, "detr", lambda config=config: drawn.Detr(t, "Detr", **config), picture(640), stated
    yield (
        "conditional_detr_resnet50",
        "detr",
        lambda: drawn.Detr(t, "ConditionalDetr", backbone="resnet50", dilation=False),
        picture(640),
        43.6,
    )
    for size, width, layers, heads, stated in (
        ("tiny", 384, 4, 6, None),
        ("base", 512, 6, 8, None),
        ("small", 768, 12, 12, None),
    ):
        whisper = t.WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            num_mel_bins=80,
        )
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        mel = (torch.zeros(1, 80, 3000),)
        yield (
            f"whisper_{size}/HfWhisperEncoder",
            "whisper",
            lambda whisper=whisper: Only(WhisperEncoder(whisper), first),
            mel,
            stated,
        )
    yield (
        "openai_clip",
        "vit",
        lambda: drawn.Clip(t),
        (*picture(224), torch.zeros(1, 77, dtype=torch.int64)),
        150,
    )


def _depth(t: Any) -> Any:
    backbone = t.Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        out_indices=[9, 10, 11, 12],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    return t.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_hidden_size=32,
    )


def _ultralytics() -> Iterator[Row]:
    sizes = "nsmlx"
    for generation, family in (("yolov8", "yolov8"), ("yolo11", "yolo11"), ("yolo26", "yolo26")):
        for size in sizes:
            yield f"{generation}{size}", family, drawn.yolo(f"{generation}{size}.yaml"), picture(640), None
    for name, called, family, stated in (
        ("yolov8_det", "yolov8n.yaml", "yolo", 3.18),
        ("yolov8_seg", "yolov8n-seg.yaml", "yolo", 3.43),
        ("yolov10_det", "yolov10n.yaml", "yolo", None),
        ("yolov11_det", "yolo11n.yaml", "yolo", 2.64),
        ("yolov11_seg", "yolo11n-seg.yaml", "yolo", 2.89),
        ("yolov3", "yolov3-tiny.yaml", "yolov3", None),
        ("fastsam_s", "yolov8s-seg.yaml", "yolo", 11.8),
        ("fastsam_x", "yolov8x-seg.yaml", "yolo", 72.2),
    ):
        yield name, family, drawn.yolo(called), picture(640), stated
    for task in ("cls", "obb", "pose", "seg", "sem"):
        size = {"cls": 224, "obb": 1024, "sem": 1024}.get(task, 640)
        yield f"yolo26n-{task}", "yolo26", drawn.yolo(f"yolo26n-{task}.yaml"), picture(size), None

"""A folder with Qwen3-VL's weights, checked before it is used and never completed from the network.

Nothing in the folder is executed: weights are safetensors, the tokenizer is ``tokenizer.json``, code that a
configuration names is not imported, and the chat template runs in transformers' sandbox.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgekiln.arrcoc.qwen.patches import PatchRules
from edgekiln.errors import BadInput, Corrupt, MissingExtra, NotRunnableHere
from edgekiln.files import inside, sha256_bytes
from edgekiln.records import Record

ARCHITECTURE = "qwen3_vl"
VERSIONS = (5, 23)
"""The transformers that this was tested with: routes A and C reach into the model's forward."""
DOING = "loading the model"
MOST_JSON_BYTES = 64 * 2**20
MOST_LAYERS = 512
MOST_PIXELS = 2**26
"""Four times what Qwen3-VL takes: a file that asks for more would have any picture fill the memory."""
IMAGE, VISION_START, VISION_END, TURN_END = (
    "<|image_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|im_end|>",
)
INDEX = "model.safetensors.index.json"


class Loaded(Record, frozen=True, kw_only=True):
    """A model that is ready to be asked. ``template`` is None where the folder has no chat template; an
    answer ends at any id of ``ends``; ``identity`` tells this model's configuration and sizes from
    others'."""

    model: Any
    tokenizer: Any
    rules: PatchRules
    template: str | None
    ends: tuple[int, ...]
    longest: int
    identity: str


def load(folder: Path) -> Loaded:
    """The model in ``folder``, on the CPU, in the type that its weights have.

    Raises MissingExtra("vlm") without transformers and NotRunnableHere for an untested version; BadInput for
    a folder that is absent or incomplete, or another architecture; Corrupt for weights that are damaged or do
    not belong to the configuration.
    """
    check_packages(folder)
    config = _config(folder)
    rules = _patch_rules(folder, config)
    weights = _weight_files(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        _bounded(folder, name)
    for name in ("chat_template.jinja", "generation_config.json"):
        if (folder / name).is_file():
            _bounded(folder, name)
    with _quiet():
        tokenizer = _tokenizer(folder)
        _check_tokens(folder, tokenizer, config)
        model = _model(folder)
    told = [sha256_bytes((folder / "config.json").read_bytes()), *(f.stat().st_size for f in weights)]
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        rules=rules,
        template=_template(folder, tokenizer),
        ends=_ends(model, tokenizer),
        longest=int(model.config.text_config.max_position_embeddings),
        identity=sha256_bytes(msgspec.json.encode(told)),
    )


def check_packages(to: object) -> None:
    """Raise MissingExtra or NotRunnableHere unless a transformers that these routes are tested with is
    here."""
    try:
        version = importlib.metadata.version("transformers")
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(DOING, to, "vlm") from error
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) != VERSIONS:
        known = ".".join(map(str, VERSIONS))
        why = f"transformers {version} is installed; the routes into Qwen3-VL are tested with {known}"
        raise NotRunnableHere(DOING, to, why, "Run: pip install 'edgekiln[vlm]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and its optional packages print while they load."""
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    from transformers.utils import logging as told

    before = told.get_verbosity()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(before)


def _incomplete(folder: Path, name: str) -> BadInput:
    cure = "Give the whole folder of the model: config, safetensors, tokenizer and preprocessor configuration"
    return BadInput(DOING, folder, f"it has no {name}", cure)


# ---------------------------------------------------------------- the folder's own words


def _bounded(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise _incomplete(folder, name)
    if path.stat().st_size > MOST_JSON_BYTES:
        raise BadInput(DOING, path, f"it is larger than {MOST_JSON_BYTES} bytes", "Download it again")
    return path


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = _bounded(folder, name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(DOING, path, f"it is no JSON object ({error})", "Download it again") from error


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        cure = "Download the model first; nothing is fetched here"
        raise BadInput(DOING, folder, "there is no such folder", cure)
    config = _json(folder, "config.json")
    kind = config.get("model_type")
    if kind != ARCHITECTURE:
        why = f"it is a model of type {kind!r}"
        raise BadInput(DOING, folder, why, f"Give a dense Qwen3-VL: its config.json says '{ARCHITECTURE}'")
    for part, key in (("text_config", "num_hidden_layers"), ("vision_config", "depth")):
        inner = config.get(part)
        layers = inner.get(key, 1) if isinstance(inner, dict) else None
        if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
            why = f"its {part} has no {key} in 1 to {MOST_LAYERS}"
            raise BadInput(DOING, folder / "config.json", why, "Download the file again")
    return config


def _patch_rules(folder: Path, config: dict[str, Any]) -> PatchRules:
    """``preprocessor_config.json``, or what ``processor_config.json`` of later versions holds of it."""
    name = "preprocessor_config.json"
    if (folder / name).is_file():
        told = _json(folder, name)
    elif (folder / "processor_config.json").is_file():
        name = "processor_config.json"
        told = _json(folder, name).get("image_processor") or {}
    else:
        raise _incomplete(folder, name)
    if told.get("do_resize") is False:
        raise BadInput(DOING, folder / name, "it says do_resize: false", "Give the model's own file")
    size, vision = told.get("size") or {}, config.get("vision_config") or {}
    least = told.get("min_pixels") or size.get("shortest_edge") or PatchRules().least_pixels
    most = told.get("max_pixels") or size.get("longest_edge") or PatchRules().most_pixels
    plain = told.get("do_normalize") is False
    said = {
        "patch": told.get("patch_size", 16),
        "merge": told.get("merge_size", 2),
        "temporal_patch": told.get("temporal_patch_size", 2),
        "least_pixels": least,
        "most_pixels": most,
        "scale": 1.0 if told.get("do_rescale") is False else told.get("rescale_factor", 1 / 255),
        "mean": (0.0, 0.0, 0.0) if plain else told.get("image_mean", (0.5, 0.5, 0.5)),
        "std": (1.0, 1.0, 1.0) if plain else told.get("image_std", (0.5, 0.5, 0.5)),
        "resampling": told.get("resample", 3),
    }
    try:
        rules = msgspec.convert(said, PatchRules)
    except msgspec.ValidationError as error:
        raise BadInput(DOING, folder / name, str(error), "Download the file again") from error
    sane = 0 < rules.least_pixels <= rules.most_pixels <= MOST_PIXELS
    sane &= all(s > 0 for s in rules.std) and rules.scale > 0
    for ours, theirs in (("patch", "patch_size"), ("merge", "spatial_merge_size")):
        sane &= 0 < getattr(rules, ours) == vision.get(theirs, getattr(PatchRules(), ours))
    sane &= 0 < rules.temporal_patch == vision.get("temporal_patch_size", 2)
    if not sane:
        why = "its sizes contradict each other or config.json"
        raise BadInput(DOING, folder / name, why, "Take both files from the same model")
    return rules


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors of the model, each with a whole header and as long as that says."""
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX).is_file():
        named = _json(folder, INDEX).get("weight_map")
        if not isinstance(named, dict) or not named:
            cure = "Download the file again"
            raise BadInput(DOING, folder / INDEX, "it has no weight_map of tensors and files", cure)
        files = [inside(folder, name, DOING) for name in sorted({str(value) for value in named.values()})]
    else:
        files = [folder / "model.safetensors"]
    if not (folder / INDEX).is_file() and not files[0].is_file():
        others = [p.name for p in sorted(folder.glob("*.bin"))][:1]
        why = "it has no model.safetensors" + (f", only {others[0]}, which could run code" if others else "")
        raise BadInput(DOING, folder, why, "Give a model saved as safetensors")
    for file in files:
        if not file.is_file():
            raise Corrupt(DOING, file, f"{INDEX} names it, and it is not there", "Download the model again")
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            why = f"it is no whole safetensors file ({error})"
            raise Corrupt(DOING, file, why, "Download the file again") from error
    return files


# ---------------------------------------------------------------- tokenizer and model


def _tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises bare Exceptions for a file that it can't read
        why = f"the tokenizer can't be read ({_first_line(error)})"
        raise BadInput(DOING, folder / "tokenizer.json", why, "Download tokenizer.json again") from error


def _check_tokens(folder: Path, tokenizer: Any, config: dict[str, Any]) -> None:
    vocabulary = tokenizer.get_vocab()
    for token in (IMAGE, VISION_START, VISION_END, "<|im_start|>", TURN_END):
        if token not in vocabulary:
            why = f"it has no token {token}"
            raise BadInput(DOING, folder / "tokenizer.json", why, "Give the tokenizer of a Qwen3-VL")
    wrong = vocabulary[IMAGE] != config.get("image_token_id", 151_655)
    size = (config.get("text_config") or {}).get("vocab_size", 151_936)
    if wrong or max(vocabulary.values()) >= size:
        why = "its tokens have other numbers than config.json says"
        raise BadInput(DOING, folder / "tokenizer.json", why, "Take both files from the same model")


def _model(folder: Path) -> Any:
    from transformers import Qwen3VLForConditionalGeneration

    try:
        model, found = Qwen3VLForConditionalGeneration.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="auto",
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:
        why = f"transformers refused it ({_first_line(error)})"
        raise Corrupt(DOING, folder, why, "Take config and weights from the same model") from error
    missing = sorted(found["missing_keys"])
    if missing:
        why = f"the weights lack {len(missing)} tensors that config.json asks for, such as {missing[0]}"
        raise Corrupt(DOING, folder, why, "Take config and weights from the same model")
    return model.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _template(folder: Path, tokenizer: Any) -> str | None:
    """Of the tokenizer (``chat_template.jinja``, ``tokenizer_config.json``), else ``chat_template.json``."""
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    if (folder / "chat_template.json").is_file():
        told = _json(folder, "chat_template.json").get("chat_template")
        return told if isinstance(told, str) else None
    return None


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    said = model.generation_config.eos_token_id
    ids = {tokenizer.get_vocab()[TURN_END], *(said if isinstance(said, list) else [said])}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(i for i in ids if isinstance(i, int)))

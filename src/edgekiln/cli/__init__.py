"""The command line: one verb, one call. Parsing is light; a verb's packages load when it runs.

Exit codes: 0 done, 1 no artifact meets the budget (or a bundle no longer gives its golden outputs),
2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from edgekiln import __version__, interrupt
from edgekiln.cli import arrcoc
from edgekiln.errors import EdgekilnError, MachineFault
from edgekiln.files import disk_errors
from edgekiln.records import TASKS

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code; no traceback reaches the user without ``--debug``."""
    given = parser().parse_args(arguments)
    try:
        with interrupt.watched(), disk_errors("running", f"edgekiln {given.verb}"):
            from edgekiln.cli import commands

            code: int = getattr(commands, given.verb.replace("-", "_"))(given)
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        # An extension module that ran Python source when the key struck leaves CPython believing that nobody
        # caught the interrupt: ``python -m`` would then die of the signal. Running any source resets that.
        exec("")
        print("interrupted: finished steps are kept, run the same command to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; the interpreter must not flush into the broken pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if given.debug:
            raise
        told = _known(error, given.verb)
        _tell(told, given.json)
        return told.exit_code


def _known(error: Exception, verb: str) -> EdgekilnError:
    """``error`` in four parts, whatever it was."""
    if isinstance(error, EdgekilnError):
        return error
    if isinstance(error, MemoryError):
        cure = "Give fewer --threads, less data or a smaller model"
        return MachineFault("running", f"edgekiln {verb}", "memory ran out", cure)
    why = f"{type(error).__name__}: {error}"
    cure = "This is a fault of edgekiln: run again with --debug and report what it prints"
    return EdgekilnError("running", f"edgekiln {verb}", why, cure)


def _tell(error: EdgekilnError, as_json: bool) -> None:
    """Three lines on stderr, and a record on stdout; names in them may come from strangers."""
    from edgekiln.report.numbers import plain

    if as_json:
        import json

        fields = {"doing": error.doing, "to": error.to, "why": error.why, "cure": error.cure}
        print(json.dumps({"error": fields}, ensure_ascii=False))
    print(plain(f"error: {error.doing} {error.to}"), file=sys.stderr)
    print(plain(f"  why:  {error.why}"), file=sys.stderr)
    print(plain(f"  cure: {error.cure}"), file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The grammar of all verbs."""
    top = argparse.ArgumentParser(
        prog="edgekiln",
        description="One trained model in; verified, measured packages for every edge device out.",
        epilog="exit codes: 0 done, 1 no artifact meets the budget, 2 bad input, 130 interrupted",
    )
    top.add_argument("--version", action="version", version=f"edgekiln {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=summary, description=summary, parents=[common])

    _build(verb("build", "build, prove and bundle a model for devices"))
    inspect = verb("inspect", "show a model's signature, operators, cost, and what each target says to it")
    _model(inspect)
    inspect.add_argument("--no-targets", action="store_true", help="do not ask the targets")
    inspect.add_argument("--target", action="append", metavar="NAME", help="ask this one (again for more)")
    devices = verb("devices", "show the catalogue, or one device with the source of every figure")
    devices.add_argument("name", nargs="?", metavar="NAME")
    devices.add_argument("--compare", nargs="+", metavar="NAME", help="two or more devices side by side")
    verify = verb("verify", "check a bundle's hashes, manifest and golden outputs")
    verify.add_argument("bundle", metavar="BUNDLE")
    _run(verb("run", "run pictures through a bundle, or streams of video within a deadline"))
    bench = verb("bench", "time a model or bundle, alone or alternated with another")
    bench.add_argument("model", metavar="MODEL_OR_BUNDLE")
    bench.add_argument("--against", metavar="OTHER")
    bench.add_argument("--input-shape", metavar="1x3x224x224", action="append", default=[])
    bench.add_argument("--threads", type=_count, default=2)
    bench.add_argument("--samples", type=_count, default=200)
    soak = "run it for so long without a pause, with this machine's sensors beside it"
    bench.add_argument("--soak", metavar="30m", help=soak)
    bench.add_argument("--out", metavar="DIR", help="with --soak: write soak.json and soak.html there")
    strict = "do not measure on a machine that is not fit for it"
    bench.add_argument("--strict", action="store_true", help=strict)
    _on_a_device(bench)
    explain = verb("explain", "show which layers lose most to quantisation, and what was done about each")
    explain.add_argument("path", metavar="BUNDLE_OR_OUT")
    explain.add_argument("--all", action="store_true", help="every artifact of a build, not the chosen ones")
    explain.add_argument("--layers", type=_count, default=12, help="rows, the worst first (default 12)")
    _predict(verb("predict", "predict latency, memory and energy on devices that are not here"))
    own = verb(
        "calibrate-device", "turn measurements of one to five models into better predictions of a device"
    )
    own.add_argument("name", metavar="DEVICE")
    own.add_argument("--target", required=True, metavar="NAME")
    own.add_argument("--precision", default="fp32", metavar="fp32")
    anchor = "a model and its median latency there; of the host the time may be left out"
    own.add_argument("--anchor", action="append", default=[], metavar="MODEL=MS", help=anchor)
    own.add_argument("--input-shape", metavar="1x3x224x224", action="append", default=[])
    own.add_argument("--out", metavar="FILE", help="default DEVICE-TARGET-PRECISION.calibration.json")
    _split(verb("split", "show where a model can be cut in two, or cut it: a head here, a tail on a server"))
    arrcoc.verbs(verbs, common)
    verb("doctor", "show which targets can convert and run here, and how to add the others")
    return top


def _run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("bundle", metavar="BUNDLE")
    verb.add_argument("images", metavar="IMAGE", nargs="*")
    verb.add_argument("--threads", type=_count, default=2)
    source = "video.mp4, camera:0, a folder, rtsp:// or http://; repeat for several streams"
    verb.add_argument("--input", action="append", default=[], metavar="SOURCE", help=source)
    deadline = "from a frame's capture to its answer (default 100)"
    verb.add_argument("--latency-ms", type=float, metavar="50", help=deadline)
    share = "share of frames to be answered in time (default 0.99)"
    verb.add_argument("--percentile", type=float, metavar="0.99", help=share)
    verb.add_argument(
        "--power-watts", type=float, metavar="10", help="mean power of the machine to stay below"
    )
    verb.add_argument("--ceiling-c", type=float, metavar="80", help="temperature to stay below")
    modes = ("fixed", "adaptive", "edge", "cloud")
    verb.add_argument("--mode", choices=modes, help="default adaptive; fixed: the best rung, no adaptation")
    verb.add_argument(
        "--least-quality", type=float, metavar="0.8", help="no rung below this share of the best"
    )
    verb.add_argument("--most-every", type=_count, metavar="4", help="skip to every n-th frame at most")
    verb.add_argument("--most-batch", type=_count, metavar="1", help="frames a call at most")
    verb.add_argument("--prefer", choices=("quality", "rate"), help="what counts first (default quality)")
    verb.add_argument("--fps", type=float, metavar="30", help="pace of a file or folder; default its own")
    verb.add_argument("--fast", action="store_true", help="read files as fast as they are answered")
    verb.add_argument("--loop", action="store_true", help="start files over at their end")
    verb.add_argument("--duration", metavar="10m", help="end after so long")
    apart = "which engines run in a process of their own (default after-hang)"
    verb.add_argument("--isolate", choices=("never", "after-hang", "always"), help=apart)
    once = "calls of the engine at once (default: measured for several sources, else 1)"
    verb.add_argument("--calls", type=_count, metavar="2", help=once)
    verb.add_argument("--server", metavar="URL", help="offload to this Open Inference Protocol v2 server")
    verb.add_argument("--server-model", metavar="NAME", help="its model; default the bundle's")
    better = "how good its answers are, as a share of the best (default 1)"
    verb.add_argument("--server-quality", type=float, metavar="1.0", help=better)
    _leaving(verb)
    verb.add_argument("--idle-watts", type=float, metavar="4", help="power at rest, for energy per inference")
    verb.add_argument("--out", metavar="DIR", help="write summary.html, summary.json and answers.jsonl there")
    verb.add_argument("--log", metavar="FILE", help="events and snapshots as JSON lines")
    verb.add_argument("--metrics-port", type=_count, metavar="9100", help="Prometheus metrics on 127.0.0.1")


def _leaving(verb: argparse.ArgumentParser) -> None:
    """What may leave the machine for ``--server``, and by which way."""
    rules = ("raw", "reduced", "features-only")
    rule = "what may leave: the input tensor (raw, the default), a small JPEG, or what a head computed"
    verb.add_argument("--privacy", choices=rules, help=rule)
    most = "with --privacy reduced: pixels of that JPEG at most (default 76800)"
    verb.add_argument("--most-pixels", type=_count, metavar="76800", help=most)
    split = "with --privacy features-only: the split model whose head runs here (edgekiln split)"
    verb.add_argument("--split", metavar="FOLDER", help=split)
    authority = "certificates (PEM) to trust the https:// server by, in place of the system's"
    verb.add_argument("--server-ca", metavar="FILE", help=authority)
    verb.add_argument("--server-proxy", metavar="URL", help="http://host:port to reach the server through")


def _on_a_device(verb: argparse.ArgumentParser) -> None:
    place = "measure a bundle there: ssh://[user@]host[:port] or adb://SERIAL"
    verb.add_argument("--on", metavar="ADDRESS", help=place)
    program = "the benchmark program to run on an Android device"
    verb.add_argument("--runner", metavar="PROGRAM", help=program)
    verb.add_argument("--remote-python", metavar="PATH", help="the Python there that has the engine")
    trust = "trust a device that was never seen; one whose key changed is refused all the same"
    verb.add_argument("--accept-new-host-key", action="store_true", help=trust)
    rest = "rest before, for the power at idle (default 5)"
    verb.add_argument("--idle-seconds", type=float, metavar="5", help=rest)


def _model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", metavar="MODEL", help="model.onnx, package.module:factory, or program.pt2")
    verb.add_argument("--weights", metavar="FILE", help="state dict (.pth) or .safetensors for a factory")
    verb.add_argument(
        "--input-shape",
        metavar="1x3x224x224",
        action="append",
        default=[],
        help="fixes the input's shape; NAME=1x3x224x224 for one of several",
    )


def _predict(verb: argparse.ArgumentParser) -> None:
    _model(verb)
    verb.add_argument("--device", action="append", required=True, metavar="NAME", help="repeat for several")
    verb.add_argument("--target", metavar="NAME", help="only this one; default all that the device takes")
    verb.add_argument("--precision", metavar="fp16", help="fp32, fp16, int8 or w8a16; default all published")
    verb.add_argument("--measured", action="append", default=[], metavar="FILE", help="of calibrate-device")


def _split(verb: argparse.ArgumentParser) -> None:
    _model(verb)
    at = "cut here (again for more); left out, the places are shown"
    verb.add_argument("--at", action="append", default=[], metavar="TENSOR", help=at)
    told = "an input that the tail gets as it is, besides the features: a question (again for more)"
    verb.add_argument("--beside", action="append", default=[], metavar="INPUT", help=told)
    pictures = "pictures (or .npz) like those of the field, to compare the parts with the whole on"
    verb.add_argument("--data", metavar="DIR", help=pictures)
    verb.add_argument("--out", metavar="DIR", default="edgekiln-split", help="default edgekiln-split")


def _build(verb: argparse.ArgumentParser) -> None:
    _model(verb)
    verb.add_argument(
        "--size",
        action="append",
        metavar="224",
        help="an input size, 224 or HEIGHTxWIDTH; repeat for several, the first is the base",
    )
    verb.add_argument("--device", action="append", metavar="NAME", help="repeat for several; default host")
    verb.add_argument("--data", metavar="DIR", help="pictures (or .npz) like those of the field")
    verb.add_argument("--holdout", metavar="DIR", help="others, on which agreement is judged")
    verb.add_argument("--calibration", metavar="FILE", help="calibration.npz of an earlier build")
    verb.add_argument("--eval", metavar="DIR", help="labelled: class folders, or a CSV with path,label")
    held = "where a search holds its bound; labelled as --eval, or not"
    verb.add_argument("--validation", metavar="DIR", help=held)
    verb.add_argument("--labels", metavar="FILE", help="class names, one a line")
    verb.add_argument("--task", choices=TASKS)
    verb.add_argument("--max-drop", type=float, metavar="0.01", help="top-1 that may be lost, as a share")
    verb.add_argument("--agreement", type=float, metavar="0.97", help="least agreement with the float model")
    verb.add_argument("--sqnr-db", type=float, metavar="20", help="least signal to quantisation noise")
    verb.add_argument("--latency-ms", type=float, metavar="50", help="95th percentile")
    verb.add_argument("--size-mb", type=float, metavar="20")
    verb.add_argument("--memory-mb", type=float, metavar="200", help="peak of the process")
    verb.add_argument("--target", action="append", metavar="NAME", help="only these targets")
    verb.add_argument("--recipe", action="append", metavar="NAME", help="only these recipes")
    verb.add_argument("--threads", type=_count)
    verb.add_argument("--samples", type=_count, help="timed calls of each artifact")
    tune = "search this machine's engine options for so long; 0, the default, does not"
    verb.add_argument("--tune-seconds", type=float, metavar="20", help=tune)
    verb.add_argument("--out", metavar="DIR", help="default edgekiln-out")
    verb.add_argument("--cache", metavar="DIR", help="finished steps; default is the user's cache folder")
    verb.add_argument("--quiet", action="store_true", help="no progress")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number

"""From published measurements to the profiles that ship: fits, validates, writes
src/edgekiln/forecast/profiles.json.

    PYTHONPATH=src python scripts/prediction/fit.py --table ../shared/data/published.csv
    ... --check       prints the validation table and writes nothing
    ... --scatter docs/images/prediction-scatter.svg

The table is not kept in this repository; its SHA-256 stands in the result. Architectures come from zoo.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import numpy as np
import pooled
import table
import validate
from power import powers
from scatter import draw
from table import Architecture, Data, Row

from edgekiln.devices import load
from edgekiln.forecast import profiles
from edgekiln.forecast.latency import predict
from edgekiln.forecast.memory import arena_bytes
from edgekiln.forecast.terms import FULL


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=table.TABLE)
    parser.add_argument("--check", action="store_true", help="print the validation, write nothing")
    parser.add_argument("--scatter", type=Path)
    given = parser.parse_args()
    known = table.zoo()
    found, left = table.rows(given.table, known, "latency_ms")
    print(f"{len(found)} latencies of {len({r.model for r in found})} models; left out:")
    for reason, n in left.items():
        print(f"  {n}: {reason}")
    groups, made, heard = {}, [], []
    print(
        f"\n{'held out':<44} {'rows':>5} {'models':>6} {'MAPE':>6} {'median':>6} "
        f"{'90 % interval':>14} {'covers':>6} {'order':>6}"
    )
    for group in table.GROUPS:
        data = table.data(group, found, known)
        held, told = _validated(data)
        groups[group.name] = told
        heard.append(held)
        made += _profiles(data, found)
    _memory(given.table, known)
    _elsewhere(known)
    if given.scatter:
        draw(heard, given.scatter)
    if given.check:
        return
    whole = profiles.Data(
        schema=1,
        provenance={
            "made by": "scripts/prediction/fit.py",
            "table": f"published.csv, SHA-256 {table.digest(given.table)}",
            "architectures": f"zoo.json, SHA-256 {table.digest(table.ZOO)}",
        },
        models={
            m: profiles.Known(
                family=known[m].family, amounts=tuple(_short(known[m].amounts[t]) for t in FULL)
            )
            for m in sorted({m for p in made for m in p.published})
        },
        groups=groups,
        profiles=tuple(made),
        power=powers(given.table),
    )
    profiles.DATA.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n")
    print(f"\nwrote {len(made)} profiles, {profiles.DATA.stat().st_size:,} bytes")


def _validated(data: Data) -> tuple[validate.Held, profiles.Group]:
    """What was held out, told line by line, and the group that ships."""
    held = validate.families_out(data)
    every = np.ones(len(data.y), dtype=bool)
    like = validate.supported(data)[data.m] if data.group.held == "family" else every
    fallen = ~np.isfinite(held.predicted)
    good = like & ~fallen
    precision = np.array([k.precision for k in data.keys])[data.p]
    own = {}
    for name in sorted(set(precision)):
        use = good & (precision == name)
        own[name] = validate.spread(held, use, f"one {data.group.held} of {data.group.name}")
        _line(f"{data.group.name} {name}: one {data.group.held}", own[name], validate.ordered(held, use))
    if not like.all():
        print("  refused for want of like families:", ", ".join({data.models[m] for m in data.m[~like]}))
    _margins(held)
    anchored = {}
    for count, out in validate.devices_out(data).items():
        all_of = np.ones(len(out.data.y), dtype=bool)
        anchored[count] = validate.spread(out, all_of, f"one device of {data.group.name}")
        words = "scaled by bandwidth" if count == "0" else f"{count} anchor{'s' if count != '1' else ''}"
        _line(f"{data.group.name}: one device, {words}", anchored[count], None)
    whole = pooled.fit(data, every)
    falls = validate.fallbacks(data, whole.each, every) if data.group.held == "family" else {}
    for label, kinds in falls.items():
        print(f"  left to the CPU by {label}: {', '.join(kinds)}; graphs that have them are refused")
    if fallen.any():
        print(f"  {fallen.sum()} held-out rows refused for that reason, as known without their family")
    shape = whole.shape
    told = profiles.Group(
        terms=data.group.terms,
        shape=tuple(_short(v) for v in shape),
        own=own,
        anchored=anchored,
        falls_back=falls,
    )
    return validate.Held(data, np.where(good, held.predicted, np.nan)), told


def _margins(held: validate.Held) -> None:
    """How often a figure lies over a limit that its prediction keeps with a margin."""
    ratio = held.ratio[np.isfinite(held.predicted)]
    told = ", ".join(f"{m:g}: {100 * np.mean(ratio > m):.0f} %" for m in (1, 1.25, 1.5, 2))
    print(f"  {held.data.group.name}, published over a limit that is so many times the prediction: {told}")


def _line(label: str, found: profiles.Spread, order: tuple[float, int] | None) -> None:
    covers = "" if found.coverage is None else f"{found.coverage:.1f} %"
    right = "" if order is None or not order[1] else f"{order[0]:.1f} %"
    between = f"{found.low:.2f} to {found.high:.2f}"
    print(
        f"{label:<44} {found.n:>5} {found.models:>6} {found.mape:>5.1f}% {found.median:>5.1f}% {between:>14} "
        f"{covers:>6} {right:>6}",
        flush=True,
    )


def _profiles(data: Data, found: list[Row]) -> list[profiles.Profile]:
    each = pooled.fit(data, np.ones(len(data.y), dtype=bool)).each
    made = []
    for at, key in enumerate(data.keys):
        rows = sorted((r for r in found if r.key == key), key=lambda r: r.model)
        made.append(
            profiles.Profile(
                group=data.group.name,
                chip=key.chip,
                device=key.device,
                runtime=key.runtime,
                precision=key.precision,
                mode=key.mode,
                coefficients=tuple(_short(v) for v in each[at]),
                published={r.model: r.value for r in rows},
                source=_source(rows),
                date=max(r.date for r in rows),
            )
        )
    return made


def _source(rows: list[Row]) -> str:
    """One source for all rows: paths that differ in the model's folder alone are written with a star."""
    told = sorted({r.source for r in rows})
    if len(told) == 1:
        return told[0]
    hub = [t for t in told if "qai_hub_models/models/" in t]
    others = [t for t in told if t not in hub]
    start = {t.split(" ")[0] for t in hub}
    return "; ".join([*(f"{s} qai_hub_models/models/*/perf.yaml" for s in sorted(start)), *others])


def _memory(path: Path, known: dict[str, Architecture]) -> None:
    """Say how published peaks follow the arena bound: they do not, so that none is fitted to them."""
    rows, _ = table.rows(path, known, "peak_mem_mb_max")
    for runtime, precision in sorted({(r.key.runtime, r.key.precision) for r in rows}):
        mine = [r for r in rows if (r.key.runtime, r.key.precision) == (runtime, precision) and r.value > 0]
        if len(mine) < 20:
            continue
        arena = np.array([arena_bytes(known[r.model].work, precision) / 1e6 for r in mine])
        peak = np.array([r.value for r in mine])
        order = np.corrcoef(arena.argsort().argsort(), peak.argsort().argsort())[0, 1]
        below = 100 * np.mean(peak < arena)
        print(
            f"published peak memory, {runtime} {precision}: "
            f"rank correlation {order:.2f} with the arena bound, "
            f"{below:.0f} % below it, n = {len(mine)}"
        )


ELSEWHERE = (
    ("resnet50", "jetson-agx-orin-64gb", "int8", 0.636227, "MLPerf Inference 3.1, Orin_TRT, SingleStream"),
    ("yolov8n", "jetson-orin-nano-8gb", "fp32", 8.36, "hokwangchoi/jetson-orin-nano-benchmarks, MAXN_SUPER"),
    ("yolov8n", "jetson-orin-nano-8gb", "fp16", 4.43, "hokwangchoi/jetson-orin-nano-benchmarks, MAXN_SUPER"),
    ("yolov8n", "jetson-orin-nano-8gb", "int8", 3.49, "hokwangchoi/jetson-orin-nano-benchmarks, MAXN_SUPER"),
)
"""TensorRT figures of other publishers, which no fit saw: other harnesses, other models."""


def _elsewhere(known: dict[str, Architecture]) -> None:
    for model, device, precision, published, source in ELSEWHERE:
        figure = predict(known[model].work, load(device), "tensorrt", precision)[0].get("latency_p50_ms")
        assert figure.value is not None
        assert figure.interval is not None
        low, high = figure.interval
        print(
            f"not fitted: {model} {precision} on {device}, "
            f"predicted {figure.value:.2f} ms ({low:.2f} to {high:.2f}), published {published:g}, {source}"
        )


def _short(value: float) -> float:
    """Six significant digits: more would be noise, and noise in a diff."""
    return float(f"{value:.6g}")


if __name__ == "__main__":
    main()

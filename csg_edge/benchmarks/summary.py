"""From raw samples to figures: per scenario over its rounds, and per stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from csg_edge.benchmarks import intervals

Record = dict[str, Any]


def summarise_scenario(runs: Sequence[Record], name: str, *, seed: int) -> Record | None:
    """Figures of one scenario over its rounds, None if there is no sample.

    Latencies are per query; of offline, where a latency would only say how many images came before, they are the
    times from one image to the next.
    """
    parts = [run["scenarios"][name] for run in runs if run.get("scenarios", {}).get(name, {}).get("samples")]
    parts = [part for part in parts if part["samples"]["finished"]]
    if not parts:
        return None
    rounds = [latencies_ms(part["samples"], offline=name == "offline") for part in parts]
    blocks = [intervals.block_medians(values, max(1, intervals.BLOCKS // len(rounds))) for values in rounds]
    low, high = intervals.median_interval(blocks, seed=seed)
    images = [sum(part["samples"]["samples"]) for part in parts]
    spans = [1e-9 * (part["samples"]["finished"][-1] - part["samples"]["issued"][0]) for part in parts]
    energy = [part["energy_joules"] for part in parts if part.get("energy_joules")]
    counters = sorted({counter for found in energy for counter in found})
    return {
        "unit": "ms from one image to the next" if name == "offline" else "ms per query",
        "samples_per_query": parts[0]["samples"]["samples"][0],
        "latency_ms": intervals.summarise(np.concatenate(rounds)),
        "median_interval_ms": [low, high],
        "repeatability": intervals.repeatability(blocks),
        "median_of_rounds_ms": [intervals.percentile(values, 0.5) for values in rounds],
        "images": sum(images),
        "images_per_second": sum(images) / sum(spans),
        "images_per_second_of_rounds": [count / span for count, span in zip(images, spans, strict=True)],
        "joules_per_image_estimated": {
            counter: sum(found.get(counter, 0.0) for found in energy) / sum(images) for counter in counters
        } or None,
        "blocks_ms": [[round(value, 4) for value in found] for found in blocks],
        "own_clock_ms": _own_clock(parts),
        "loadgen": [part["loadgen"] for part in parts if "loadgen" in part],
    }  # fmt: skip


def _own_clock(parts: Sequence[Record]) -> dict[str, Any] | None:
    """What queries took by the clock of a stand-in; None for an engine, which has none."""
    sums: list[float] = []
    for part in parts:
        own, begin = part.get("own_ms", []), 0
        for images in part["samples"]["samples"] if own else ():
            sums.append(sum(own[begin : begin + images]))
            begin += images
    return intervals.summarise(np.asarray(sums)) if sums else None


def latencies_ms(samples: Mapping[str, Sequence[int]], *, offline: bool) -> intervals.Values:
    """(N,) of one run."""
    finished, issued = np.asarray(samples["finished"], np.float64), np.asarray(samples["issued"], np.float64)
    return 1e-6 * (np.diff(finished, prepend=issued[0]) if offline else finished - issued)


def runtime_milliseconds(row: Mapping[str, Any]) -> float | None:
    """Median time inside the runtime: of single-stream without what the host does around it."""
    host, single = row.get("host"), row["scenarios"].get("single-stream")
    if host is None:
        return None
    around = max(host["generate"] - host["runtime_call"], 0.0)
    runtime: float = host["runtime_call"] if single is None else single["latency_ms"]["p50"] - around
    return runtime if runtime > 0 else None


def stage_times(row: Mapping[str, Any]) -> dict[str, float] | None:
    """Milliseconds per stage of one image: those of the graph, scaled from the profile, and those of the host."""
    runtime_ms, profile = runtime_milliseconds(row), row.get("profile") or {}
    if runtime_ms is None or "stages_ms" not in profile:
        return None
    scale = runtime_ms / profile["profiled_ms"]
    host = row["host"]
    around = max(host["generate"] - host["runtime_call"], 0.0)
    known = {"host: noise": host["noise"], "host: checks and resizing": host["check_and_resize"]}
    return {
        **{stage: scale * ms for stage, ms in sorted(profile["stages_ms"].items())},
        **known,
        "host: copies and calls": max(around - sum(known.values()), 0.0),
    }

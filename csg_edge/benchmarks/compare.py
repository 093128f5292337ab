"""Two records side by side: ratios of medians with intervals, and whether anything got slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from csg_edge.benchmarks.intervals import ratio_interval
from csg_edge.errors import InputError


@dataclass(frozen=True)
class Ratio:
    """Time of the second record over that of the first for one engine and scenario; above 1 is slower.

    low, high: 95 % interval. `verdict` is same, slower, faster, REGRESSION or LOST (measured before, not any more).
    """

    label: str
    scenario: str
    first_ms: float
    second_ms: float | None
    ratio: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str = ""


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], *, fail_above: float | None, seed: int = 0
) -> list[Ratio]:
    """Every engine and scenario of the first record.

    A regression is a ratio above `fail_above` whose interval lies above 1 as a whole. Raises InputError if the two have
    no engine in common, or for a limit below 1.
    """
    if fail_above is not None and not fail_above >= 1.0:
        raise InputError(f"--fail-above {fail_above}: give a ratio of 1 or more, for example 1.05")
    later = {row["label"]: row for row in second["engines"]}
    if not any(row["label"] in later for row in first["engines"] if row["scenarios"]):
        raise InputError("the two records have no engine in common; compare runs of the same targets and steps")
    found = []
    for row in first["engines"]:
        for name, before in row["scenarios"].items():
            if row["label"] not in later:
                continue
            other = later[row["label"]]
            after = other["scenarios"].get(name)
            if after is None or other["status"] == "failed":
                reason = f"{other['status']}: {other['reason']}" if other["reason"] else other["status"]
                found.append(
                    Ratio(row["label"], name, before["latency_ms"]["p50"], None, None, None, None, "LOST", reason)
                )
                continue
            ratio, low, high = ratio_interval(before["blocks_ms"], after["blocks_ms"], seed=seed)
            verdict = "slower" if low > 1.0 else "faster" if high < 1.0 else "same"
            if fail_above is not None and ratio > fail_above and low > 1.0:
                verdict = "REGRESSION"
            times = before["latency_ms"]["p50"], after["latency_ms"]["p50"]
            found.append(Ratio(row["label"], name, *times, ratio, low, high, verdict))
    return found


def notes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What a reader must know: another machine, other software, a busy machine, a partial record."""
    lines = []
    for key, what in (("processor", "processor"), ("cores_available", "number of cores"), ("flags", "CPU flags")):
        if first["machine"][key] != second["machine"][key]:
            lines.append(
                f"another {what}: {first['machine'][key]} and {second['machine'][key]}; ratios compare machines"
            )
    versions = (first["machine"]["versions"], second["machine"]["versions"])
    for name in sorted(set(versions[0]) | set(versions[1])):
        if versions[0].get(name) != versions[1].get(name):
            lines.append(f"{name}: {versions[0].get(name, 'absent')} and {versions[1].get(name, 'absent')}")
    if first["threads_asked"] != second["threads_asked"]:
        lines.append(f"threads: {first['threads_asked'] or 'default'} and {second['threads_asked'] or 'default'}")
    if first.get("bundle_manifest_sha256") != second.get("bundle_manifest_sha256"):
        lines.append("the bundles differ")
    for which, record in (("first", first), ("second", second)):
        lines += [f"{which} record: {warning}" for warning in record["warnings"]]
    return lines


def failed(ratios: Sequence[Ratio]) -> bool:
    """Whether anything regressed or was lost."""
    return any(ratio.verdict in ("REGRESSION", "LOST") for ratio in ratios)


def ratio_lines(ratios: Sequence[Ratio]) -> list[str]:
    """One line per ratio for a terminal, in aligned columns."""
    rows = []
    for item in ratios:
        after = "-" if item.second_ms is None else f"{item.second_ms:.2f}"
        figure = "-" if item.ratio is None else f"{item.ratio:.3f} [{item.low:.3f}, {item.high:.3f}]"
        rows.append(
            (item.verdict, item.label, item.scenario, f"{item.first_ms:.2f} -> {after} ms", figure, item.reason)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)), row[5]]).rstrip()
        for row in rows
    ]

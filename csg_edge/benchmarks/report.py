"""The report of a benchmark: a Markdown table, and one HTML page with its plots inside; needs no network, no script."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from csg_edge.benchmarks.files import SAMPLES, file_name

TABLE, PAGE = "bench.md", "bench.html"
TEMPLATES = Path(__file__).parent / "templates"
QUALITY = ("kid", "dice", "c2st")  # figures of a validation quoted beside the speed
PLOTTED = 4000  # points of one engine in a plot
DASH = "\N{EN DASH}"

Row = Mapping[str, Any]


def write_report(record: Mapping[str, Any], out: Path) -> None:
    """Write OUT/bench.md and OUT/bench.html from a record and the raw samples beside it."""
    from csg_edge.quality import pages

    pages.write_text(out / TABLE, markdown(record))
    pages.write_text(out / PAGE, page(record, out))


def table_rows(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and one row for each engine: what a reader compares."""
    headings = [
        "engine", "status", "precision in force", "p50 [95 %]", "two runs", "p90 (bound)", "p99 (bound)", "queries",
        "multi-stream p50", "offline img/s", "first image cold / cached", "peak memory", "of peak", "quality",
    ]  # fmt: skip
    return headings, [_table_row(row) for row in record["engines"]]


def summary_lines(record: Mapping[str, Any]) -> list[str]:
    """For a terminal: one line for each engine, and the warnings."""
    lines = []
    for row in record["engines"]:
        single = row["scenarios"].get("single-stream")
        line = f"{row['status']:<12}{row['label']}"
        if single:
            low, high = single["median_interval_ms"]
            found = single["latency_ms"]
            line += (
                f": p50 {found['p50']:.2f} ms [{low:.2f}, {high:.2f}], p90 {found['p90']:.2f}, p99 {found['p99']:.2f}, "
                f"{found['count']} queries"
            )
        if offline := row["scenarios"].get("offline"):
            line += f", offline {offline['images_per_second']:.1f} images/s"
        lines.append(line + (f" ({row['reason']})" if row["reason"] else ""))
    return lines + [f"warning: {warning}" for warning in record["warnings"]]


def markdown(record: Mapping[str, Any]) -> str:
    """The table with what is needed to read it."""
    headings, rows = table_rows(record)
    lines = [f"# Latency of {record['bundle']}", "", f"{_where(record)}.", ""]
    if record["state"] != "complete":
        lines += ["**Partial: stopped before the end.**", ""]
    lines += [f"**Warning: {warning}**\n" for warning in record["warnings"]]
    lines += ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in reading_notes(record)), ""]
    return "\n".join(lines)


def reading_notes(record: Mapping[str, Any]) -> list[str]:
    """How to read the figures."""
    plan = record["plan"]
    notes = [
        f"Mode {plan['mode']}: {plan['rounds']} rounds, engines taking turns, a fresh process each visit; one query is "
        "one `Generator.generate` call, noise and checks included.",
        "p50 in ms with the 95 % interval of the median: the wider of what blocks of neighbouring queries and what the "
        "medians of the rounds say. Two runs: by how much another such run may differ, from the scatter of the rounds "
        "(repeatability limit of ISO 5725). Bounds of p90 and p99: MLPerf's early-stopping estimate at 99 % "
        "confidence, a dash where there were too few queries.",
        "Offline counts images; cold and cached are medians from starting a process to its first image, without and "
        "with our cache of compiled engines.",
        "Absolute times hold for this machine alone; quote ratios of one run.",
    ]
    if any(row.get("roofline") for row in record["engines"]):
        peaks = record["peaks"]
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in peaks["gflops"].items())
        notes.append(
            f"Of peak: arithmetic of the graph per time in the runtime, over the measured peak of this machine in that "
            f"number format ({rates} GFLOP/s; memory {peaks['bandwidth_gb_s']:.1f} GB/s; {peaks['threads']} threads)."
        )
    if any(_energy(row) for row in record["engines"]):
        notes.append("Energy is *estimated*: counters of the whole package or board, other work included.")
    return notes


def page(record: Mapping[str, Any], out: Path) -> str:
    """The HTML page."""
    from markupsafe import Markup

    from csg_edge.benchmarks import plots
    from csg_edge.quality import pages
    from csg_edge.quality.plots import DASHES, assign_looks
    from csg_edge.quality.report import flatten

    headings, rows = table_rows(record)
    measured = [row for row in record["engines"] if row["scenarios"]]
    looks = assign_looks([row["label"] for row in measured], [])
    samples = {row["label"]: read_samples(out / SAMPLES / f"{file_name(row['label'])}.csv") for row in measured}
    drawings: list[tuple[str, str, Any]] = []
    for scenario in ("single-stream", "multi-stream"):
        found = {label: kept[scenario] for label, kept in samples.items() if scenario in kept}
        if found:
            every = {label: [ms for _, values in rounds for ms in values] for label, rounds in found.items()}
            text = "Share of queries answered within a time."
            drawings.append((f"Latency, {scenario}", text, Markup(plots.draw_distribution(every, looks, scenario))))
            text = "Latency over time; a rise within a round is throttling or other work on the machine."
            thinned = {
                label: [_thin(*part, PLOTTED // len(rounds)) for part in rounds] for label, rounds in found.items()
            }
            drawings.append(
                (f"Latency over time, {scenario}", text, Markup(plots.draw_course(thinned, looks, scenario)))
            )
    stages = {row["label"]: row["stages"] for row in measured if row.get("stages")}
    if stages:
        text = "From the runtime's profiler, scaled to the unprofiled median; the host's part is timed around the call."
        drawings.append(("Where the time goes", text, Markup(plots.draw_stages(stages))))
    for name in QUALITY[:2]:
        points = {
            row["label"]: (row["scenarios"]["single-stream"]["latency_ms"]["p50"], *row["quality"]["figures"][name])
            for row in measured
            if row.get("quality") and name in row["quality"]["figures"] and "single-stream" in row["scenarios"]
        }
        if points:
            text = "Of the same bundle, from its validation record, with 95 % intervals over groups."
            drawings.append((f"Speed against quality: {name}", text, Markup(plots.draw_quality(points, looks, name))))
    return pages.render(
        "bench.html", folder=TEMPLATES, record=record, where=_where(record), headings=headings, rows=rows,
        drawings=drawings, looks=looks, dashes=DASHES, notes=reading_notes(record),
        operators={row["label"]: _operators(row) for row in measured if "operators_ms" in (row.get("profile") or {})},
        rooflines={row["label"]: row["roofline"] for row in measured if row.get("roofline")},
        colds={row["label"]: row["cold"] for row in measured if "no_cache" in (row.get("cold") or {})},
        verdicts=[(row["label"], name, index + 1, found) for row in measured
                  for name, scenario in row["scenarios"].items() for index, found in enumerate(scenario["loadgen"])],
        machine=flatten(record["machine"]), plan=flatten(record["plan"]),
        clocks={row["label"]: _clocks(row) for row in measured},
        artefacts=[(row["label"], row["file"], row["sha256"]) for row in record["engines"] if "sha256" in row],
        style=Markup(pages.read_asset("report.css")),
    )  # fmt: skip


def read_samples(path: Path) -> dict[str, list[tuple[list[float], list[float]]]]:
    """Scenario -> per round (seconds since its start, latencies in ms)."""
    found: dict[str, dict[int, tuple[list[float], list[float]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rounds = found.setdefault(row["scenario"], {})
            seconds, values = rounds.setdefault(int(row["round"]), ([], []))
            seconds.append(1e-3 * float(row["issued_ms"]))
            values.append(float(row["latency_ms"]))
    return {name: [rounds[turn] for turn in sorted(rounds)] for name, rounds in found.items()}


def _thin(seconds: Sequence[float], values: Sequence[float], most: int) -> tuple[Sequence[float], Sequence[float]]:
    every = max(1, -(-len(values) // max(1, most)))
    return seconds[::every], values[::every]


def _where(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    busy, stolen = record.get("busy_before"), record.get("stolen")
    threads = record["threads_asked"] or "default"
    return (
        f"{machine['processor']}{flags}, {machine['cores_available']} cores, threads {threads}, {record['began']}"
        + (f", {100 * busy:.0f} % of the processor busy before" if busy is not None else "")
        + (f", {100 * stolen:.1f} % taken by other guests meanwhile" if stolen is not None else "")
    )


def _table_row(row: Row) -> list[str]:
    scenarios = row["scenarios"]
    single, multi, offline = (scenarios.get(name) for name in ("single-stream", "multi-stream", "offline"))
    status = row["status"] + (f": {row['reason']}" if row["reason"] else "")
    cells = [row["label"], status, row.get("effective_precision") or DASH]
    if single:
        found, (low, high) = single["latency_ms"], single["median_interval_ms"]
        cells.append(f"{found['p50']:.2f} [{low:.2f}, {high:.2f}] ms")
        limit = single.get("repeatability")
        cells.append(DASH if limit is None else f"within {100 * (limit - 1):.1f} %")
        cells += [f"{found[name]:.2f} ({_number(found[f'{name}_bound'])})" for name in ("p90", "p99")]
        cells.append(str(found["count"]))
    else:
        cells += [DASH] * 5
    cells.append(f"{multi['latency_ms']['p50']:.1f} ms for {multi['samples_per_query']}" if multi else DASH)
    cells.append(f"{offline['images_per_second']:.1f}" if offline else DASH)
    cold = row.get("cold") or {}
    cells.append(
        f"{cold['no_cache']['to_first_image_ms']['median']:.0f} / "
        f"{cold['warm_cache']['to_first_image_ms']['median']:.0f} ms" if "no_cache" in cold else DASH
    )  # fmt: skip
    memory = (row.get("memory_mb") or {}).get("peak")
    cells.append(f"{memory:.0f} MB" if memory else DASH)
    cells.append(f"{100 * row['roofline']['fraction']:.0f} %" if row.get("roofline") else DASH)
    cells.append(quality_line(row))
    return cells


def quality_line(row: Row) -> str:
    """The figures of this engine's validation in a few words."""
    quality = row.get("quality")
    if not quality:
        return "not validated" if "quality" in row else DASH
    figures = [f"{name} {quality['figures'][name][0]:.2f}" for name in QUALITY if name in quality["figures"]]
    failed = len(quality["gates_failed"])
    return ", ".join(figures) + (f"; {failed} gates failed" if failed else "")


def _operators(row: Row) -> list[tuple[str, float, float]]:
    """(operator, profiled ms, share) from the largest."""
    profile = row["profile"]
    return [(name, ms, ms / profile["profiled_ms"]) for name, ms in profile["operators_ms"].items() if ms > 0][:10]


def _clocks(row: Row) -> list[str]:
    lines = []
    for turn, found in enumerate(row["clocks"], start=1):
        parts = []
        for when in ("before", "after"):
            snapshot = found[when]
            mhz = f"{max(snapshot['mhz']):.0f} MHz" if snapshot["mhz"] else "clock unreadable"
            heat = f"{max(snapshot['celsius'].values()):.0f} °C" if snapshot["celsius"] else "temperature unreadable"
            parts.append(f"{when} {mhz}, {heat}")
        lines.append(f"round {turn}: " + "; ".join(parts))
    return lines


def _energy(row: Row) -> Mapping[str, float] | None:
    found: Mapping[str, float] | None = (row["scenarios"].get("single-stream") or {}).get("joules_per_image_estimated")
    return found


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"

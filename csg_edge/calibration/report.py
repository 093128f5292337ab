"""What a calibration leaves behind: tables and pictures for people, one JSON file for programs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csg_edge import __version__
from csg_edge.bundle.manifest import Bundle
from csg_edge.calibration.outcome import Outcome, Row, Settings
from csg_edge.calibration.search import Attempt
from csg_edge.calibration.sensitivity import draw_ranking, write_table
from csg_edge.machine import processor_name
from csg_edge.quality.record import Gate

HEADER = (
    "engine", "steps", "MB", "p50 ms", "p90 ms", "PSNR to fp32, dB", "SSIM", "KID", "Dice", "spectrum gap, nats",
    "verdict",
)  # fmt: skip


def write(outcome: Outcome, settings: Settings, bundle: Bundle) -> None:
    """Write report.md, report.json and, per number of steps, sensitivity-steps-N.csv and .png."""
    folder = settings.report
    for steps, ranking in outcome.rankings.items():
        kept = {item.target: set(item.kept) for item in outcome.chosen if item.steps == steps}
        write_table(folder / f"sensitivity-steps-{steps}.csv", ranking, kept)
        draw_ranking(folder / f"sensitivity-steps-{steps}.png", ranking)
    _replace(folder / "report.json", json.dumps(to_json(outcome, settings, bundle), indent=2, allow_nan=False) + "\n")
    _replace(folder / "report.md", "\n".join(_page(outcome, settings, bundle)) + "\n")


def to_json(outcome: Outcome, settings: Settings, bundle: Bundle) -> dict[str, Any]:
    """Everything but the pictures."""
    return {
        "bundle": bundle.manifest.name,
        "csg_edge": __version__,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "samples": len(outcome.samples),
        "samples_sha256": outcome.fingerprint,
        "images_judged": settings.images,
        "recipe": asdict(settings.recipe),
        "passed": outcome.passed,
        "engines": [_row_json(row) for row in outcome.rows],
        "agreement": [asdict(pair) for pair in outcome.agreements],
        "attempts": [_attempt_json(attempt) for attempt in outcome.attempts],
    }


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown lines: every engine in one run."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    for row in rows:
        quality, timing = row.quality, row.timing
        cells = [
            row.target, str(row.steps), f"{row.size / 1e6:.1f}",
            "" if timing is None else f"{timing.median:.1f}", "" if timing is None else f"{timing.p90:.1f}",
            "" if quality.psnr is None else "equal" if math.isinf(quality.psnr) else f"{quality.psnr:.1f}",
            "" if quality.ssim is None else f"{quality.ssim:.4f}", f"{quality.kid.value:.3f}", f"{quality.dice:.3f}",
            f"{quality.spectrum_gap:.3f}", row.verdict,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def gate_line(steps: int, gate: Gate) -> str:
    """One condition for people."""
    mark = "passed" if gate.passed else "FAILED"
    value = "" if gate.value is None else f" {gate.value:.4g}"
    return f"{mark} {gate.subject}, steps {steps}: {gate.name}{value}, wanted {gate.limit}" + (
        f"; {gate.reason}" if gate.reason else ""
    )


def _page(outcome: Outcome, settings: Settings, bundle: Bundle) -> list[str]:
    lines = [
        f"# Calibration of {bundle.manifest.name}", "",
        f"{len(outcome.samples)} samples of train groups (samples.csv), recipe {settings.recipe.name}: "
        f"{settings.recipe.about}. Judged on {settings.images} images for held-out masks. {processor_name()}, "
        f"{os.cpu_count()} cores. Engines of one runtime were timed in turns.", "",
        *table(outcome.rows), "", "## Conditions", "",
    ]  # fmt: skip
    for attempt in outcome.attempts:
        lines += [
            f"- {attempt.target}, steps {attempt.steps}, {len(attempt.kept)} nodes in 16 or 32 bit, computing in "
            f"{attempt.precision}:",
            *(f"    - {gate_line(attempt.steps, gate)}" for gate in attempt.gates),
        ]
    if outcome.agreements:
        lines += [
            "",
            "## Agreement of the int8 engines",
            "",
            "Root mean square of the differences, in grey levels.",
            "",
        ]
        lines += ["| steps | engines | apart | first to fp32 | second to fp32 |", "|---|---|---|---|---|"]
    for pair in outcome.agreements:
        lines.append(
            f"| {pair.steps} | {pair.first}, {pair.second} | {pair.apart:.2f} | {pair.first_to_fp32:.2f} "
            f"| {pair.second_to_fp32:.2f} |"
        )
    for steps in outcome.rankings:
        lines += ["", f"![error that each layer alone makes, steps {steps}](sensitivity-steps-{steps}.png)"]
    return lines


def _row_json(row: Row) -> dict[str, Any]:
    timing = None if row.timing is None else {"p50_ms": row.timing.median, "p90_ms": row.timing.p90}
    return {
        "target": row.target, "steps": row.steps, "bytes": row.size, "timing": timing,
        "quality": _finite(asdict(row.quality)), "verdict": row.verdict,
    }  # fmt: skip


def _attempt_json(attempt: Attempt) -> dict[str, Any]:
    return {
        "target": attempt.target, "steps": attempt.steps, "kept": attempt.kept, "precision": attempt.precision,
        "passed": attempt.passed, "speed_up": attempt.speed_up, "over": attempt.best,
        "milliseconds": {name: timing.milliseconds for name, timing in attempt.timings.items()},
        "gates": [asdict(gate) for gate in attempt.gates], "quality": _finite(asdict(attempt.quality)),
        "golden": attempt.golden.to_json(), "made_with": attempt.artefact.made_with,
    }  # fmt: skip


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: the PSNR of equal images becomes None."""
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in values.items()}


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)

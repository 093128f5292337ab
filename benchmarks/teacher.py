"""A teacher on the held-out groups of the real sets, beside an earlier teacher and real images against real images.

    python benchmarks/teacher.py --data ../shared/data --teacher export/msk-256.teacher --guidance 1.5 \
        --earlier runs/skeleton/teacher --earlier-guidance 2 [--sheet sheet.png]

Every held-out mask once for each of three sampling seeds, with a context of another group. Writes
`benchmarks/results/teacher.json`: every figure for every seed, their means, and the gates of a teacher. The sheet shows
40 real images above 40 samples: do not commit it.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import csg_edge
from csg_edge.conditions.files import write_png
from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.generation.doctor import processor_name
from csg_edge.labels import MSK_SCHEMA
from csg_edge.quality.cases import Cases, plan_cases, read_real
from csg_edge.quality.evaluators import load_evaluators
from csg_edge.quality.measure import Yardstick, measure_control, measure_generated
from csg_edge.training.reference import TeacherReference

SEEDS = (0, 1, 2)
C2ST, KID_RATIO, DICE_MARGIN, CONTEXT_HITS = 0.75, 0.5, 0.03, 0.9
SHEET_IMAGES = 40


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--earlier", type=Path, help="a teacher that the new one should beat")
    parser.add_argument("--earlier-guidance", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/teacher.json"))
    parser.add_argument("--sheet", type=Path, help="40 real images above 40 samples; never commit it")
    arguments = parser.parse_args()

    real = read_real([arguments.data], MSK_SCHEMA, size=256)
    yardstick = Yardstick.prepare(real, load_evaluators(schema=MSK_SCHEMA), seed=0)
    cases = [plan_cases(real.held_out, count=len(real.held_out), seed=seed, spare=real.train) for seed in SEEDS]
    control = {
        name: figure.value
        for name, figure in measure_control(yardstick, pixels=True, note=quiet).subject.figures.items()
    }
    record: dict[str, Any] = {
        "csg_edge": csg_edge.__version__, "processor": processor_name(), "cores": os.cpu_count(),
        "held_out_images": len(real.held_out), "held_out_groups": real.groups, "sampling_seeds": len(SEEDS),
        "real against real": control,
    }  # fmt: skip
    made, record["teacher"] = measure(arguments.teacher, arguments.guidance, cases, yardstick)
    earlier = None
    if arguments.earlier:
        _, earlier = measure(arguments.earlier, arguments.earlier_guidance, cases, yardstick)
        record["earlier teacher"] = earlier
    record["gates"] = judge(record["teacher"]["mean"], earlier and earlier["mean"], control)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({"gates": record["gates"], "mean": record["teacher"]["mean"]}, indent=2))
    if arguments.sheet:
        write_png(arguments.sheet, sheet(real.held_out, made))


def measure(
    folder: Path, guidance: float, cases: list[Cases], yardstick: Yardstick
) -> tuple[LabelledSet, dict[str, Any]]:
    """Samples of the first seed, and the figures of every seed with their means."""
    rows, first = [], None
    for seed, drawn in zip(SEEDS, cases, strict=True):
        made = TeacherReference(folder, guidance).make(drawn)
        first = first or made
        found = measure_generated(
            str(folder), "teacher", made, drawn, yardstick, pixels=seed == SEEDS[0], note=quiet
        )  # the test on pixels trains a network each time: once is enough
        row = {name: figure.value for name, figure in found.subject.figures.items()}
        # Of images, where context_hit_rate is of pairs of an image and another context.
        row["nearer_to_own_context_than_to_most"] = float((found.style.shares > 0.5).mean())
        rows.append(row)
    mean = {name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[0]}
    assert first is not None
    return first, {"folder": folder.name, "guidance": guidance, "mean": mean, "seeds": rows}


def judge(
    found: dict[str, float], earlier: dict[str, float] | None, control: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Each gate of a teacher: its figure, its limit, whether it holds."""
    gates = {
        "c2st": (found["c2st"], C2ST),
        "distance of Dice to that of real images": (abs(found["dice"] - control["dice"]), DICE_MARGIN),
    }
    if earlier:
        for name in ("kid", "kid_joint"):
            gates[name] = (found[name], max(KID_RATIO * earlier[name], control[name]))
    judged = {
        name: {"value": value, "at_most": limit, "holds": value <= limit} for name, (value, limit) in gates.items()
    }
    for name in ("context_hit_rate", "nearer_to_own_context_than_to_most"):
        judged[name] = {"value": found[name], "at_least": CONTEXT_HITS, "holds": found[name] >= CONTEXT_HITS}
    return judged


def sheet(real: LabelledSet, made: LabelledSet) -> np.ndarray:
    """40 real images, a bar, 40 samples."""
    rows = []
    for samples in (real, made):
        chosen = np.linspace(0, len(real) - 1, SHEET_IMAGES).astype(int)
        cells = [cv2.resize(samples.images[index], (192, 192), interpolation=cv2.INTER_AREA) for index in chosen]
        rows += [np.hstack(cells[start : start + 10]) for start in range(0, SHEET_IMAGES, 10)]
    bar = np.full((12, rows[0].shape[1]), 255, np.uint8)
    return np.vstack([*rows[:4], bar, *rows[4:]])


def quiet(stage: str) -> None:
    """Say nothing of the stages of a measurement."""


if __name__ == "__main__":
    main()

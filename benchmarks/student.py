"""Students at every number of steps beside their teacher, on the held-out groups of the real sets.

    python benchmarks/student.py --data ../shared/data --teacher export/msk-256.teacher --guidance 1.5 \
        --bundle msk-256 --images runs/student-images [--sheet sheet.png]

Every held-out mask once for each of eight seeds, with a context of another group, through the engine of a bundle; the
teacher makes the same cases from the same noise. (The mean C2ST accuracy over three seeds was uncertain
by 0.03, as wide as its gate.) Writes `benchmarks/results/student.json`: figures per seed, with intervals resampled by
group; their means and the standard errors of these over seeds; two sets of gates; and how each number of steps differs
from one step, seed by seed. A sheet of real images, teacher and students side by side is not to be committed.

    python benchmarks/student.py --table

prints the record's tables, as they stand in README.md, docs/student.md and the model cards.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import csg_edge
from csg_edge.bundle.manifest import Target, find_bundle, read_bundle
from csg_edge.conditions.files import write_png
from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.generation.doctor import processor_name
from csg_edge.generation.loading import load
from csg_edge.labels import MSK_SCHEMA
from csg_edge.quality.cases import Cases, fingerprint, make_with_engine, plan_cases, read_real
from csg_edge.quality.evaluators import load_evaluators
from csg_edge.quality.measure import Measured, Yardstick, measure_control, measure_generated
from csg_edge.training.reference import TeacherReference

SEEDS = tuple(range(8))
LIMITS = {
    "one step": {
        "kid": 1.25, "c2st": 0.08, "dice": 0.03, "style_error": 1.10, "spectrum_gap": 1.3, "diversity": 0.15,
    },
    "design": {
        "kid": 1.10, "c2st": 0.05, "dice": 0.02, "style_error": 1.05, "spectrum_gap": 1.2, "diversity": 0.10,
    },
}  # fmt: skip
"""Ratios to the teacher; for C2ST accuracy and Dice a distance, to the teacher and to real images."""
COLUMNS = 8
ROWS = {
    "kid": ("KID", 3),
    "kid_joint": ("KID with masks", 3),
    "c2st": ("C2ST accuracy (0.5 is ideal)", 3),
    "dice": ("Dice of an independent segmenter", 3),
    "spectrum_gap": ("spectrum gap, nats", 3),
    "style_error": ("style error against the context", 3),
    "diversity": ("diversity", 3),
    "context_hit_rate": ("own context nearer in style than another of its set", 3),
    "nearer_to_own_context_than_to_most": ("own context nearer than most", 3),
    "memorisation_rate": ("memorisation rate (0.05 is expected)", 3),
}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the tables of the record and do nothing else")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--bundle", action="append", default=[], help="may be repeated")
    parser.add_argument("--target", default="openvino:CPU:bf16", help="engine of the bundles")
    parser.add_argument("--images", type=Path, help="folder where images are kept, so that a run goes on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/student.json"))
    parser.add_argument("--no-pixels", action="store_true", help="leave out the C2ST that is trained on pixels")
    parser.add_argument("--sheet", type=Path, help="never commit it")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n\n".join(tables(json.loads(arguments.out.read_text()))))
        return
    if None in (arguments.data, arguments.teacher, arguments.images) or not arguments.bundle:
        parser.error("give --data, --teacher, --images and --bundle")

    real = read_real([arguments.data], MSK_SCHEMA, size=256)
    yardstick = Yardstick.prepare(real, load_evaluators(schema=MSK_SCHEMA), seed=0)
    cases = [plan_cases(real.held_out, count=len(real.held_out), seed=seed, spare=real.train) for seed in SEEDS]
    pixels = not arguments.no_pixels
    control = {
        name: figure.value
        for name, figure in measure_control(yardstick, pixels=pixels, note=quiet).subject.figures.items()
    }
    record: dict[str, Any] = {
        "csg_edge": csg_edge.__version__, "processor": processor_name(), "cores": os.cpu_count(),
        "target": arguments.target, "held_out_images": len(real.held_out), "held_out_groups": real.groups,
        "sampling_seeds": len(SEEDS), "limits": LIMITS, "real against real": control,
    }  # fmt: skip

    def teacher(drawn: Cases) -> LabelledSet:
        return TeacherReference(arguments.teacher, arguments.guidance).make(drawn)

    sheets = [real.held_out.take(range(COLUMNS))]
    label = f"{arguments.teacher.name}-{arguments.guidance:g}"
    made, record["teacher"] = measure(label, teacher, cases, yardstick, arguments.images, pixels=pixels)
    sheets.append(made)
    record["students"] = {}
    for name in arguments.bundle:
        bundle = read_bundle(find_bundle(name))
        for steps in bundle.manifest.steps:
            target = Target.parse(arguments.target)
            with load(
                name, runtime=target.runtime, device=target.device, precision=target.precision, steps=steps
            ) as generator:
                digest = bundle.manifest.files[generator.engine.file].sha256[:12]
                title = f"{bundle.manifest.name}, {steps} step{'s' * (steps > 1)}"

                def student(drawn: Cases, generator: Any = generator, title: str = title) -> LabelledSet:
                    return make_with_engine(generator, drawn, label=title)

                label = f"{bundle.manifest.name}-{steps}-{arguments.target.replace(':', '-')}-{digest}"
                made, found = measure(label, student, cases, yardstick, arguments.images, pixels=pixels)
            sheets.append(made)
            found["gates"] = {
                gates: judge(found["mean"], record["teacher"]["mean"], control, limits)
                for gates, limits in LIMITS.items()
            }
            record["students"][title] = found
            if one_step := record["students"].get(f"{bundle.manifest.name}, 1 step"):
                found["less one step"] = against(one_step, found)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=2) + "\n")
            print(title, json.dumps({key: found[key] for key in found if key != "seeds"}, indent=1), flush=True)
    if arguments.sheet:
        write_png(arguments.sheet, np.vstack([row(samples) for samples in sheets]))


def measure(
    label: str, make: Callable[[Cases], LabelledSet], cases: list[Cases], yardstick: Yardstick, folder: Path, *,
    pixels: bool,
) -> tuple[LabelledSet, dict[str, Any]]:  # fmt: skip
    """Samples of the first seed, and the figures of every seed, with intervals, and their means."""
    rows, first = [], None
    for seed, drawn in zip(SEEDS, cases, strict=True):
        made = kept(folder / f"{label}-{fingerprint(drawn)}.npy", drawn, make)
        first = first or made
        # The test on pixels trains a network each time: once is enough.
        found: Measured = measure_generated(
            label, "engine", made, drawn, yardstick, pixels=pixels and seed == SEEDS[0], note=quiet
        )
        row: dict[str, Any] = {
            name: [figure.value, figure.low, figure.high] for name, figure in found.subject.figures.items()
        }
        assert found.style is not None
        row["nearer_to_own_context_than_to_most"] = [float((found.style.shares > 0.5).mean()), None, None]
        rows.append(row)
    values = {name: np.array([row[name][0] for row in rows if name in row]) for name in rows[0]}
    mean = {name: float(found.mean()) for name, found in values.items()}
    errors = {name: standard_error(found) for name, found in values.items()}
    assert first is not None
    return first, {"mean": mean, "standard_error": errors, "seeds": rows}


def standard_error(values: NDArray[np.float64]) -> float | None:
    """Of the mean of (N,) values; None of one value."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def against(one: dict[str, Any], found: dict[str, Any]) -> dict[str, list[float | None]]:
    """By what each gated figure differs from those of `one`, on average over seeds, and the standard error of that."""
    differences = {}
    for name in LIMITS["design"]:
        change = np.array([
            row[name][0] - first[name][0] for first, row in zip(one["seeds"], found["seeds"], strict=True)
        ])  # fmt: skip
        differences[name] = [float(change.mean()), standard_error(change)]
    return differences


def kept(path: Path, cases: Cases, make: Callable[[Cases], LabelledSet]) -> LabelledSet:
    """The images in `path`, or new ones, which are left there."""
    if path.is_file():
        return cases.made(np.load(path))
    made = make(cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, made.images)
    return made


def judge(
    found: dict[str, float], teacher: dict[str, float], control: dict[str, float], limits: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Each gate: its figure, its range, whether it holds. Nothing need be nearer to real images than they are."""
    highest: dict[str, float] = {}
    for name in ("kid", "kid_joint"):
        highest[name] = max(limits["kid"] * teacher[name], control[name])
    for name in ("c2st", "c2st_pixels"):
        if name in found:
            highest[name] = max(teacher[name], 0.5) + limits["c2st"]
    for name in ("style_error", "spectrum_gap"):
        highest[name] = limits[name] * teacher[name]
    gates: dict[str, dict[str, Any]] = {
        name: {"value": found[name], "at_most": limit, "holds": found[name] <= limit} for name, limit in highest.items()
    }
    for name, centre, reach in (
        ("dice", control["dice"], limits["dice"]),
        ("diversity", teacher["diversity"], limits["diversity"] * teacher["diversity"]),
    ):
        low, high = centre - reach, centre + reach
        gates[name] = {"value": found[name], "at_least": low, "at_most": high, "holds": low <= found[name] <= high}
    return gates


def tables(record: dict[str, Any]) -> list[str]:
    """One Markdown table a bundle: its steps beside real images and the teacher; bold within its gates."""
    found = []
    for bundle in dict.fromkeys(title.split(",")[0] for title in record["students"]):
        mine = {title: row for title, row in record["students"].items() if title.split(",")[0] == bundle}
        steps = [title.split(", ")[1] for title in mine]
        lines = [
            f"{bundle}:",
            "",
            f"| | real against real | teacher, 11 evaluations | {' | '.join(steps)} |",
            "|---" * (3 + len(steps)) + "|",
        ]
        for name, (label, digits) in ROWS.items():
            real = record["real against real"].get(name)
            cells = ["" if real is None else f"{real:.2f}", f"{record['teacher']['mean'][name]:.{digits}f}"]
            for title, row in mine.items():
                gate = row["gates"]["one step" if title.endswith(", 1 step") else "design"].get(name)
                text = f"{row['mean'][name]:.{digits}f}"
                cells.append(text if gate is None else f"**{text}**" if gate["holds"] else f"{text} (misses)")
            lines.append(f"| {label} | {' | '.join(cells)} |")
        found.append("\n".join(lines))
    return found


def row(samples: LabelledSet) -> np.ndarray:
    """The first images of a subject, side by side."""
    cells = [cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA) for image in samples.images[:COLUMNS]]
    return np.vstack([np.hstack(cells), np.full((6, 224 * COLUMNS), 255, np.uint8)])


def quiet(stage: str) -> None:
    """Say nothing of the stages of a measurement."""


if __name__ == "__main__":
    main()

"""What a student's shape and its training are worth: short, equal runs on the same trajectories.

    python benchmarks/ablation.py --teacher export/msk-256.teacher --trajectories runs/student/trajectories \
        --data ../shared/data [--row relu --row nano] [--other-guidance runs/unguided/trajectories]

Each row trains a student for `--iterations` and then measures it in torch: the distance to the teacher's images on 128
trajectories kept back, the power of its lowest and highest bands against the teacher's, and figures on held-out groups.
A run so short tells which student learns fastest, not which is best in the end. Rows already in the record are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import csg_edge
from csg_edge.generation.doctor import processor_name
from csg_edge.labels import MSK_SCHEMA
from csg_edge.noise import noise_for
from csg_edge.quality.cases import Cases, plan_cases, read_real
from csg_edge.quality.evaluators import load_evaluators
from csg_edge.quality.measure import Yardstick, measure_generated
from csg_edge.training.device import autocast, choose_precision
from csg_edge.training.distil import BLOCK_DCT_TERMS, LossTerms, distil
from csg_edge.training.loop import LoopConfig
from csg_edge.training.model import CsgModel
from csg_edge.training.model_files import read_json
from csg_edge.training.process import STUDENT_TIMESTEPS, euler
from csg_edge.training.student import kernel_friendly, start_student
from csg_edge.training.trajectories import Trajectories, Trajectory

KEPT_BACK = 128
FIGURES = ("kid", "c2st", "dice", "spectrum_gap", "style_error", "diversity")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """What differs from the student that is shipped."""

    network: dict[str, Any] = field(default_factory=dict)
    size: str = "full"
    from_scratch: bool = False
    pairs: int | None = None
    steps: tuple[int, ...] = (1, 2, 4)
    other_guidance: bool = False
    terms: LossTerms = BLOCK_DCT_TERMS


ROWS = {
    "shipped": Row(),
    "ReLU": Row({"activation": "relu"}),
    "group norm, SiLU": Row({"norm": "group", "activation": "silu"}),
    "teacher's own network": Row({"norm": "group", "activation": "silu", "attention": True, "context_tokens": True}),
    "from scratch": Row(from_scratch=True),
    "nano": Row(size="nano"),
    "256 pairs": Row(pairs=256),
    "one step only": Row(steps=(1,)),
    "distance alone": Row(terms=LossTerms()),
    "unguided": Row(other_guidance=True),
}


def main() -> None:
    """Train and measure every row asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--trajectories", type=Path, required=True, help="folder of `csg-edge distill`")
    parser.add_argument("--other-guidance", type=Path, help="trajectories of the same teacher without guidance")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="all, if not given")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.json"))
    arguments = parser.parse_args()

    real = read_real([arguments.data], MSK_SCHEMA, size=256)
    yardstick = Yardstick.prepare(real, load_evaluators(schema=MSK_SCHEMA), seed=0)
    cases = plan_cases(real.held_out, count=len(real.held_out), seed=0, spare=real.train)
    loop = LoopConfig(
        iterations=arguments.iterations, warmup=20, ema=0.98, decay=0.3, precision=choose_precision("auto", CPU)
    )
    record: dict[str, Any] = {
        "csg_edge": csg_edge.__version__, "processor": processor_name(), "cores": os.cpu_count(),
        "iterations": loop.iterations, "batch": loop.batch, "learning_rate": loop.learning_rate,
        "trajectories": read_json(arguments.trajectories / "config.json"), "terms": asdict(BLOCK_DCT_TERMS), "rows": {},
    }  # fmt: skip
    if arguments.out.is_file():
        earlier = json.loads(arguments.out.read_text())
        if changed := [key for key in ("iterations", "trajectories", "terms") if earlier.get(key) != record[key]]:
            parser.error(f"{arguments.out}: rows of other {' and '.join(changed)}; give another --out")
        record["rows"] = earlier["rows"]
    for name in arguments.row or ROWS:
        folder = arguments.other_guidance if ROWS[name].other_guidance else arguments.trajectories
        if name in record["rows"] or folder is None:
            continue
        record["rows"][name] = run(ROWS[name], CsgModel.load(arguments.teacher), folder, loop, cases, yardstick)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")
        print(name, json.dumps(record["rows"][name]), flush=True)


def run(
    row: Row, teacher: CsgModel, folder: Path, loop: LoopConfig, cases: Cases, yardstick: Yardstick
) -> dict[str, Any]:
    """One row of the table."""
    stored = len(list(folder.glob("shard-*.safetensors"))) * 32
    trajectories = Trajectories(folder, stored)
    back = trajectories.read(range(stored - KEPT_BACK, stored))
    trajectories.count = min(row.pairs or stored, stored - KEPT_BACK)
    shape = replace(kernel_friendly(teacher.network.config, network=row.size), **row.network)
    student, deviation = start_student(
        teacher, trajectories, config=shape, steps=row.steps, inherit=not row.from_scratch
    )
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        distil(student, trajectories, loop, terms=row.terms, deviation=deviation, out=Path(out), device=CPU)
        minutes = (time.monotonic() - began) / 60.0
    student = student.eval()
    found: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in student.network.parameters()),
        "minutes": round(minutes, 1),
        "steps": {},
    }
    for steps in row.steps:
        found["steps"][str(steps)] = against_teacher(student, back, steps, loop.precision)
    made = cases.made(sample(student, cases, 1))
    figures = measure_generated("ablation", "engine", made, cases, yardstick, pixels=False, note=quiet)
    found["steps"]["1"] |= {name: figures.subject.figures[name].value for name in FIGURES}
    return found


@torch.no_grad()
def against_teacher(student: CsgModel, back: Trajectory, steps: int, precision: str) -> dict[str, float]:
    """Root mean square distance to the teacher's clean latents, and power in the lowest and the highest bands."""
    noise, clean, mask, context, _ = back
    made = []
    for part in range(0, len(noise), 16):
        rows = slice(part, part + 16)
        with autocast(CPU, precision):
            velocity = student.velocity(student.conditions(mask[rows], context[rows]))
            made.append(euler(velocity, noise[rows], STUDENT_TIMESTEPS[steps]))
    ends = torch.cat(made)
    power = ends.square().mean(dim=(0, 2, 3)) / clean.square().mean(dim=(0, 2, 3))
    return {
        "distance": (ends - clean).square().mean().sqrt().item(),
        "power_lowest_band": power[0].item(),
        "power_highest_band": power[-1].item(),
    }


@torch.no_grad()
def sample(student: CsgModel, cases: Cases, steps: int) -> NDArray[np.uint8]:
    """The images of all cases, in torch."""
    images = []
    for start in range(0, len(cases), 16):
        rows = slice(start, min(start + 16, len(cases)))
        mask, context = (torch.from_numpy(array[rows]) for array in (cases.wanted.masks, cases.contexts.images))
        noise = np.stack([noise_for(seed, student.latent_shape(1)[1:]) for seed in cases.seeds[rows]])
        velocity = student.velocity(student.conditions(mask, context))
        latent = euler(velocity, torch.from_numpy(noise), STUDENT_TIMESTEPS[steps])
        images.append(student.autoencoder.decode(latent).numpy())
    return np.concatenate(images)


def quiet(stage: str) -> None:
    """Say nothing of the stages of a measurement."""


if __name__ == "__main__":
    main()

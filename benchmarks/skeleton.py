"""The skeleton on real masks: does the image follow the mask, do seeds matter, do the runtimes agree, how fast is it.

    python benchmarks/skeleton.py --data ../shared/data [--teacher export/msk-256.teacher] [--sheet sheet.png]

Masks are those of the val groups, contexts come from other val groups of the same set, seeds are three. Writes
`benchmarks/results/skeleton.json`. The sheets show real images: do not commit them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import csg_edge
from csg_edge.conditions.files import write_png
from csg_edge.datasets.labelled_set import find_sets, read_set
from csg_edge.datasets.phantom import make_phantom
from csg_edge.generation.doctor import processor_name
from csg_edge.generation.sheets import contact_sheet
from csg_edge.labels import MSK_SCHEMA
from csg_edge.noise import noise_for
from csg_edge.progress import Progress
from csg_edge.quality.contrast import contrast_correlation

Image = NDArray[np.uint8]
Case = tuple[Image, Image, Image, str]  # mask, context, real image, group
SEEDS = (0, 1, 2)
ROUNDS = 20


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="msk-256")
    parser.add_argument(
        "--teacher", type=Path, help="teacher folder, for its figures beside the student's (needs torch)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/skeleton.json"))
    parser.add_argument("--sheet", type=Path, help="contact sheet to look at, with real images: never commit it")
    arguments = parser.parse_args()

    cases = validation_cases(arguments.data)
    record: dict[str, Any] = {
        "csg_edge": csg_edge.__version__,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "val_images": len(cases),
        "val_groups": len({group for *_, group in cases}),
        "sampling_seeds": len(SEEDS),
        "contrast_correlation": {},
    }
    images: dict[int, list[Image]] = {}
    for steps in (1, 2, 4):
        with csg_edge.load(arguments.bundle, steps=steps) as generator:
            label = f"{generator.engine.target}, {steps} steps"
            images[steps] = generate(generator, cases, label)
        record["contrast_correlation"][label] = correlation(images[steps], cases)
    if arguments.teacher:
        made = teacher_images(arguments.teacher, cases)
        record["contrast_correlation"]["teacher, 11 evaluations, guidance 2"] = correlation(made, cases)
    count = len(cases)
    record["mean_difference_between_seeds"] = {
        f"{steps} steps": float(np.abs(np.stack(made[:count]).astype(int) - np.stack(made[count : 2 * count])).mean())
        for steps, made in images.items()
    }
    record["onnxruntime_against_openvino_fp32"] = agreement(arguments.bundle, cases[:16])
    record["latency_ms_interleaved"] = latencies(arguments.bundle, cases[0])
    record["phantom_images_per_second_one_thread"] = phantom_rate()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    if arguments.sheet:
        chosen = np.linspace(0, count - 1, 16).astype(int)
        rows = [(cases[i][0], cases[i][1], images[1][i]) for i in chosen]
        write_png(arguments.sheet, contact_sheet(rows, MSK_SCHEMA))


def validation_cases(root: Path) -> list[Case]:
    """(mask, context of another group, real image, group) for every val image."""
    random = np.random.default_rng(0)
    cases = []
    for directory in find_sets(root):
        data = read_set(directory, MSK_SCHEMA, split="val", size=256)
        for index in range(len(data)):
            others = [other for other, group in enumerate(data.groups) if group != data.groups[index]]
            context = data.images[int(random.choice(others))]
            cases.append((data.masks[index], context, data.images[index], data.groups[index]))
    return cases


def generate(generator: csg_edge.Generator, cases: list[Case], label: str) -> list[Image]:
    """Every case for every seed, seed by seed."""
    progress = Progress(label, len(SEEDS) * len(cases), unit="images")
    images = []
    for seed in SEEDS:
        for index, (mask, context, *_) in enumerate(cases):
            images.append(generator.generate_one(mask, context, 1000 * seed + index))
            progress.advance()
    return images


def teacher_images(folder: Path, cases: list[Case]) -> list[Image]:
    """The teacher on the same cases, the same noise, one seed."""
    import torch

    from csg_edge.training.teachers import load_teacher

    teacher = load_teacher(folder).eval()
    progress = Progress("teacher", len(cases), unit="images")
    images: list[Image] = []
    for start in range(0, len(cases), 8):
        batch = cases[start : start + 8]
        mask = torch.from_numpy(np.stack([case[0] for case in batch]))
        context = torch.from_numpy(np.stack([case[1] for case in batch]))
        shape = teacher.latent_shape(1)[1:]
        noise = torch.from_numpy(np.stack([noise_for(start + i, shape) for i in range(len(batch))]))
        with torch.no_grad():
            clean = teacher.integrate(mask, context, noise, guidance=2.0)
            images += list(teacher.autoencoder.decode(clean).numpy())
        progress.advance(len(batch))
    return images


def correlation(images: list[Image], cases: list[Case]) -> float:
    """Contrast correlation over all images made of the cases, seed after seed."""
    repeated = [cases[index % len(cases)] for index in range(len(images))]
    return contrast_correlation((image, case[2], case[0]) for image, case in zip(images, repeated, strict=True))


def agreement(bundle: str, cases: list[Case]) -> dict[str, float]:
    """Share of pixels within one grey level between ONNX Runtime and OpenVINO at fp32, per number of steps."""
    shares = {}
    for steps in (1, 2, 4):
        with (
            csg_edge.load(bundle, runtime="openvino", precision="fp32", steps=steps) as first,
            csg_edge.load(bundle, runtime="onnxruntime", precision="fp32", steps=steps) as second,
        ):
            differences = [
                np.abs(first.generate_one(*case[:2], seed).astype(int) - second.generate_one(*case[:2], seed))
                for seed, case in enumerate(cases)
            ]
        shares[f"{steps} steps"] = float((np.stack(differences) <= 1).mean())
    return shares


def latencies(bundle: str, case: Case) -> dict[str, Any]:
    """Median and 90th percentile of one image at batch 1; engines take turns, so that noise hits all alike."""
    wanted = [("openvino", "bf16", 1), ("openvino", "fp32", 1), ("onnxruntime", "fp32", 1), ("openvino", "bf16", 4)]
    generators = {}
    for runtime, precision, steps in wanted:
        try:
            opened = csg_edge.load(bundle, runtime=runtime, precision=precision, steps=steps)
        except csg_edge.CsgEdgeError as error:
            print(f"not run: {error}")
            continue
        generators[f"{opened.engine.target}, {steps} steps"] = opened
    times: dict[str, list[float]] = {name: [] for name in generators}
    for turn in range(ROUNDS + 2):
        for name, generator in generators.items():
            start = time.perf_counter()
            generator.generate_one(*case[:2], turn)
            if turn >= 2:  # the first turns warm caches
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median": statistics.median(found), "p90": float(np.percentile(found, 90)), "count": len(found)}
        for name, found in times.items()
    }


def phantom_rate(count: int = 40) -> dict[str, float]:
    """Images a second at 256 x 256 on one thread, of wall-clock time and of processor time."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    wall, processor = time.perf_counter(), time.process_time()
    for seed in range(count):
        make_phantom(seed)
    rates = {"wall": count / (time.perf_counter() - wall), "processor": count / (time.process_time() - processor)}
    cv2.setNumThreads(threads)
    return rates


if __name__ == "__main__":
    main()

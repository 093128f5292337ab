"""How fast `csg-edge augment` is beside its engine: images a second, in turns in one process.

    python benchmarks/augment.py --data ../shared/data/usgra_nerve_vessel --data ../shared/data/dltrack_aponeurosis \
        --out benchmarks/results/augment.json

Two rates to compare with, both with as many streams as processors. Offline: the engine as the offline scenario of
`csg-edge bench` runs it, noise for each seed included. Bare: OpenVINO's own queue gets the same arrays again and again;
nothing is drawn, checked, read or written. Plans: the default one, that without variations of the mask, and the default
one with checks. Images are written into a folder in `--scratch`; give one in memory (/dev/shm) to leave the file system
out: on the ext4 of a virtual disk a new file took 20 microseconds in one folder and 700 in another. Other work on the
machine should rest: it takes the processors from the Python around the engine first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import openvino

import csg_edge
from csg_edge.augment.checks import Checks
from csg_edge.augment.make import Maker, Unit, units_of
from csg_edge.augment.options import Options, open_sources, open_writer
from csg_edge.augment.plan import Plan, counts
from csg_edge.augment.work import Bench, work_here
from csg_edge.generation.generator import Generator
from csg_edge.machine import processor_name
from csg_edge.storage import write_json

PLANS = {"default": Plan(), "no variations": Plan(vary=None)}
BARE = 300  # images


def bare_rate(generator: Generator) -> float:
    """Images a second of the engine alone."""
    compiled: Any = generator.runtime._compiled  # type: ignore[attr-defined]
    inputs = {port.any_name: np.zeros(port.shape, port.element_type.to_dtype()) for port in compiled.inputs}
    random = np.random.default_rng(0)
    inputs["noise"][:] = random.standard_normal(inputs["noise"].shape)
    inputs["context"][:] = random.integers(0, 256, inputs["context"].shape)
    queue = openvino.AsyncInferQueue(compiled, 3)
    for count in (20, BARE):
        begun = time.perf_counter()
        for _ in range(count):
            queue.start_async(inputs)
        queue.wait_all()
    return BARE / (time.perf_counter() - begun)


def offline_rate(generator: Generator) -> float:
    """Images a second of the engine in the offline scenario: masks and contexts at hand, a seed for each image."""
    shape = generator.bundle.manifest.image_size
    random = np.random.default_rng(0)
    masks = [np.full(shape, index, np.uint8) for index in range(3)]
    contexts = [random.integers(0, 256, shape, np.uint8) for _ in masks]
    for count in (20, BARE):
        begun = time.perf_counter()
        for _ in generator.stream(*(islice(cycle(items), count) for items in (masks, contexts)), range(count)):
            pass
    return BARE / (time.perf_counter() - begun)


def augment_rate(
    generator: Generator, data: Path, plan: Plan, images: int, *, checked: bool, scratch: Path
) -> float:  # fmt: skip
    """Images a second of the first so many of a plan, made and written into a folder in `scratch`."""
    options = Options(size="model", checked=checked, real=False)
    sources = open_sources(data, plan, generator, options)
    units: list[Unit] = []
    for unit in units_of(sources, counts(plan, sources.present(), sources.schema.names, real=False)):
        if sum(item.count for item in units) < images:
            units.append(unit)
    checks = Checks(sources, least=None, segmenter=None) if checked else None
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        writer = open_writer(sources, Path(out), options, job="benchmark", began="20260101")
        bench = Bench(Maker(plan, sources, generator, checks), sources, writer, options)
        begun = time.perf_counter()
        made = sum(unit.count for unit, _ in work_here(bench, units))
        return made / (time.perf_counter() - begun)


def main() -> None:
    """Measure all in turns and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=400)
    given = parser.parse_args()
    rows = []
    with csg_edge.load("msk-256", streams="auto") as generator:
        for data in given.data:
            for name, plan in PLANS.items():
                for checked in (False, True) if name == "default" else (False,):
                    images = given.images // 6 if checked else given.images
                    alone = {"offline": offline_rate, "bare": bare_rate}
                    before = {key: rate(generator) for key, rate in alone.items()}
                    ratios: dict[str, list[float]] = {key: [] for key in alone}
                    for _ in range(given.rounds):
                        made = augment_rate(generator, data, replace(plan, multiply=5.0), images, checked=checked,
                                            scratch=given.scratch)  # fmt: skip
                        after = {key: rate(generator) for key, rate in alone.items()}
                        for key in alone:
                            ratios[key].append(made / (0.5 * (before[key] + after[key])))
                        before = after
                    row: dict[str, Any] = {"set": data.name, "plan": name, "checked": checked, "images": images}
                    for key, found in ratios.items():
                        row[f"{key}_images_per_second"] = round(before[key], 1)
                        row[f"of_{key}"] = [round(ratio, 3) for ratio in found]
                        row[f"median_of_{key}"] = round(float(np.median(found)), 3)
                    rows.append(row)
                    print(rows[-1], flush=True)
        engine = generator.engine.target
    write_json(given.out, {"machine": processor_name(), "engine": engine, "rows": rows})


if __name__ == "__main__":
    main()

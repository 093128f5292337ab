"""Every recipe on the same few images: how near to fp32, how fast. A record to choose a recipe by, no gate."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from csg_edge.bundle.manifest import Bundle, Target
from csg_edge.calibration.artefacts import Workshop, family_of
from csg_edge.calibration.layers import layers_of
from csg_edge.calibration.recipes import RECIPES
from csg_edge.calibration.samples import CalibrationSet
from csg_edge.calibration.search import baselines
from csg_edge.calibration.sensitivity import worth_it
from csg_edge.calibration.speed import time_in_turns
from csg_edge.errors import EngineError
from csg_edge.generation.generator import open_engine
from csg_edge.runtimes.ort import OnnxRuntime

IMAGES = 8
OPENVINO_ONLY = ("no-bias-correction", "full-bias-correction", "smooth-quant", "mixed", "cnn")


@dataclass(frozen=True)
class Tried:
    """psnr: dB, mean over the images, every layer worth it in int8. milliseconds: median; None where not timed.

    `best` is that of the fastest engine in 16 or 32 bits in the same turns; `problem` says why there are no figures.
    """

    target: str
    steps: int
    recipe: str
    psnr: float | None
    milliseconds: float | None
    best: float | None
    problem: str = ""


def compare_recipes(
    bundle: Bundle, samples: CalibrationSet, targets: Sequence[Target], steps: Sequence[int], folder: Path
) -> list[Tried]:
    """Make, time and compare every recipe for every target; int8 models are kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    feeds = [samples.feeds(index) for index in range(min(IMAGES, len(samples)))]
    found = []
    for count in steps:
        plain = Workshop(bundle, samples, RECIPES["default"], folder)
        layers = layers_of(plain.model(count, 1))
        small = [name for layer in layers if layer not in worth_it(layers) for name in layer.nodes]
        path = bundle.file(plain.graph(count, None).file)
        with OnnxRuntime.open(path, device="CPU", precision="fp32") as runtime:
            reference = [runtime.run(item)["image"].astype(np.float64) for item in feeds]
        for target in targets:
            for recipe in RECIPES.values():
                if recipe.name in OPENVINO_ONLY and family_of(target) != "openvino":
                    continue
                shop = Workshop(bundle, samples, recipe, folder)
                try:
                    artefact = shop.make(family_of(target), count, small)
                except EngineError as error:
                    found.append(Tried(str(target), count, recipe.name, None, None, None, str(error)))
                    continue
                with ExitStack() as stack:
                    generator = stack.enter_context(shop.opened(artefact, target))
                    images = [generator.runtime.run(item)["image"] for item in feeds]
                    errors = [
                        float(np.mean((image - other) ** 2)) for image, other in zip(images, reference, strict=True)
                    ]
                    psnr = float(np.mean([10 * np.log10(255**2 / max(error, 1e-9)) for error in errors]))
                    own = best = None
                    if shop.here(target) and (others := baselines(bundle, target, count)):
                        opened = {item.target: stack.enter_context(open_engine(bundle, item)) for item in others}
                        timings = time_in_turns({**opened, str(target): generator}, feeds)
                        own = timings[str(target)].median
                        best = min(timings[name].median for name in opened)
                found.append(Tried(str(target), count, recipe.name, psnr, own, best))
    return found


def write_tried(path: Path, rows: Sequence[Tried]) -> None:
    """Write the figures as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def tried_line(row: Tried) -> str:
    """One recipe for people."""
    line = f"{row.target}, steps {row.steps}, {row.recipe}: "
    if row.psnr is None:
        return line + row.problem
    speed = "not timed" if row.milliseconds is None else f"{row.milliseconds:.1f} ms (16 or 32 bit: {row.best:.1f} ms)"
    return line + f"{row.psnr:.1f} dB to fp32, {speed}"

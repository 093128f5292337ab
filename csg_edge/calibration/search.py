"""The precision search: as much int8 as the gates allow, for one target."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from csg_edge.bundle.golden import Difference, read_case
from csg_edge.bundle.manifest import Bundle, Engine, Target
from csg_edge.calibration.artefacts import Artefact, Workshop, family_of
from csg_edge.calibration.gate import judge_quality, judge_speed
from csg_edge.calibration.quality import Judge, Quality, Seen
from csg_edge.calibration.sensitivity import Sensitivity
from csg_edge.calibration.speed import Timing, speed_up, time_in_turns
from csg_edge.datasets.labelled_set import Image
from csg_edge.errors import EngineError
from csg_edge.generation.generator import Generator, open_engine
from csg_edge.generation.selection import why_not
from csg_edge.quality.record import Gate

TIMED = 8  # samples that go round while engines are timed


@dataclass(frozen=True)
class Attempt:
    """One int8 model tried for a target: what stayed in 16 or 32 bits, and how it was judged."""

    target: str
    steps: int
    kept: tuple[str, ...]
    gates: tuple[Gate, ...]
    timings: Mapping[str, Timing]  # of this engine and the 16- and 32-bit ones, timed in turns; empty: device absent
    best: str  # the fastest of the others
    quality: Quality
    golden: Difference
    precision: str
    artefact: Artefact
    images: Image = field(repr=False)

    @property
    def timing(self) -> Timing | None:
        """Its own."""
        return self.timings.get(self.target)

    @property
    def speed_up(self) -> float | None:
        """Over the fastest engine in 16 or 32 bits; None where the device was absent."""
        return speed_up(self.timings[self.target], self.timings[self.best]) if self.timings else None

    @property
    def passed(self) -> bool:
        """Whether every condition was met."""
        return all(gate.passed for gate in self.gates)


def search(
    shop: Workshop, judge: Judge, target: Target, ranking: Sequence[Sensitivity], student: Seen, figures: Quality,
    steps: int,
) -> Iterator[Attempt]:  # fmt: skip
    """Quantise all layers worth it; then keep the 1, 2, 4, ... most sensitive as they are until every gate holds.

    Keeping more only makes an engine slower, so the search ends where speed is what fails.
    """
    small = [name for item in ranking if item.error is None for name in item.layer.nodes]
    sensitive = [item.layer for item in ranking if item.error is not None]
    counts = [0, *(2**power for power in range(16) if 2**power <= len(sensitive) // 2)]
    with ExitStack() as stack:
        others = {
            engine.target: stack.enter_context(open_engine(shop.bundle, engine))
            for engine in (baselines(shop.bundle, target, steps) if shop.here(target) else ())
        }
        for count in counts:
            kept = tuple(small + [name for layer in sensitive[:count] for name in layer.nodes])
            attempt = _attempt(shop, judge, target, kept, others, student, figures, steps)
            yield attempt
            if attempt.passed or any(gate.name == "speed" and not gate.passed for gate in attempt.gates):
                return


def _attempt(
    shop: Workshop, judge: Judge, target: Target, kept: tuple[str, ...], others: dict[str, Generator],
    student: Seen, figures: Quality, steps: int,
) -> Attempt:  # fmt: skip
    artefact = shop.make(family_of(target), steps, kept)
    label = f"{target}, steps {steps}"
    timings: dict[str, Timing] = {}
    gates = []
    with shop.opened(artefact, target) as generator:
        if others:
            feeds = [shop.samples.feeds(index) for index in range(min(TIMED, len(shop.samples)))]
            timings = time_in_turns({**others, str(target): generator}, feeds)
        precision = generator.runtime.effective_precision if shop.here(target) else "not read: device absent"
        images = kept_images(
            shop.folder / f"images-{artefact.file.parent.name}-{judge.fingerprint}.npy", judge, generator, label
        )
        golden = _golden(shop.bundle, generator, steps)
    best = min(others, key=lambda other: timings[other].median, default="")
    if timings:
        gates.append(judge_speed(str(target), timings[str(target)], best, timings[best]))
    quality = judge.measure(judge.look(images), student)
    gates += judge_quality(str(target), quality, figures, golden.psnr)
    return Attempt(str(target), steps, kept, tuple(gates), timings, best, quality, golden, precision, artefact, images)


def baselines(bundle: Bundle, target: Target, steps: int) -> list[Engine]:
    """The bundle's engines in 16 and 32 bits for the same runtime and device that run here."""
    return [
        engine
        for engine in bundle.manifest.engines
        if engine.steps == steps
        and (found := Target.parse(engine.target)).precision != "int8"
        and (found.runtime, found.device) == (target.runtime, target.device)
        and why_not(engine) is None
    ]


def _golden(bundle: Bundle, generator: Generator, steps: int) -> Difference:
    if not bundle.manifest.golden:
        raise EngineError("the bundle has no golden cases; export it again")
    differences = []
    for case in bundle.manifest.golden:
        data = read_case(bundle, case, steps)
        image = generator.generate_one(data.mask, data.context, case.seed, field=data.field)
        differences.append(Difference.between(image, data.expected))
    return Difference.worst(differences)


def kept_images(path: Path, judge: Judge, generator: Generator, label: str) -> Image:
    """The images of an engine for all cases: those that an earlier run left at `path`, else new ones, left there."""
    if path.is_file():
        images = np.load(path, allow_pickle=False)
        if images.dtype == np.uint8 and len(images) == judge.cases.single:
            return np.asarray(images)
    images = judge.make(generator, label=label)
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("wb") as file:
        np.save(file, images)
    os.replace(aside, path)
    return images

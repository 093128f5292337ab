"""Golden cases: does every engine of a bundle make, on this machine, the images it should?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle import Bundle, Engine, Tolerance
from csg_edge.conditions import read_context, read_mask
from csg_edge.errors import CsgEdgeError
from csg_edge.generator import open_engine, why_not

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Difference:
    """How far two uint8 images are apart: grey levels and PSNR in dB (peak 255; infinite if equal)."""

    max_levels: int
    mean_levels: float
    share_within_1: float
    psnr: float

    @classmethod
    def between(cls, image: Image, expected: Image) -> Difference:
        """The difference between two images of one shape."""
        levels = np.abs(image.astype(np.int16) - expected.astype(np.int16))
        mean_square = float(np.mean(levels.astype(np.float64) ** 2))
        psnr = 10.0 * np.log10(255.0**2 / mean_square) if mean_square else np.inf
        return cls(int(levels.max()), float(levels.mean()), float((levels <= 1).mean()), float(psnr))

    @classmethod
    def worst(cls, differences: Sequence[Difference]) -> Difference:
        """The worst of each figure over several pairs of images."""
        return cls(
            max(item.max_levels for item in differences),
            max(item.mean_levels for item in differences),
            min(item.share_within_1 for item in differences),
            min(item.psnr for item in differences),
        )

    def to_json(self) -> dict[str, float | None]:
        """As a dictionary; JSON has no infinity, so the PSNR of equal images is None."""
        return {**asdict(self), "psnr": self.psnr if math.isfinite(self.psnr) else None}


@dataclass(frozen=True)
class EngineResult:
    """What became of one engine: `status` is passed, failed or not run; the worst case counts."""

    target: str
    steps: int
    status: str
    reason: str
    effective_precision: str | None = None
    worst: Difference | None = None


def verify_bundle(bundle: Bundle) -> list[EngineResult]:
    """Run the golden cases on every engine; an engine that cannot run here is reported as not run, never as passed."""
    return [_verify_engine(bundle, engine) for engine in bundle.manifest.engines]


def within(image: Image, expected: Image, tolerance: Tolerance) -> bool:
    """Whether an image is as close to the expected one as the manifest asks of an engine."""
    levels = np.abs(image.astype(np.int16) - expected.astype(np.int16))
    share = float((levels <= tolerance.levels).mean())
    return share >= tolerance.share and Difference.between(image, expected).psnr >= tolerance.psnr


def _verify_engine(bundle: Bundle, engine: Engine) -> EngineResult:
    if reason := why_not(engine):
        return EngineResult(engine.target, engine.steps, "not run", reason)
    if not bundle.manifest.golden:
        return EngineResult(engine.target, engine.steps, "failed", "the bundle has no golden cases; export it again")
    failed, differences = [], []
    try:
        with open_engine(bundle, engine) as generator:
            precision = generator.runtime.effective_precision
            for case in bundle.manifest.golden:
                mask = read_mask(bundle.file(case.mask), bundle.manifest.schema)
                context = read_context(bundle.file(case.context))
                expected = read_context(bundle.file(case.expected[str(engine.steps)]))
                image = generator.generate_one(mask, context, case.seed)
                differences.append(Difference.between(image, expected))
                if not within(image, expected, engine.tolerance):
                    failed.append(case.name)
    except CsgEdgeError as error:
        return EngineResult(engine.target, engine.steps, "failed", str(error))
    worst = Difference.worst(differences)
    reason = f"beyond tolerance: {', '.join(failed)}" if failed else ""
    return EngineResult(engine.target, engine.steps, "failed" if failed else "passed", reason, precision, worst)

"""Are int8 images as good as those of the fp32 student? The figures of `validate`, paired case by case.

The same held-out masks, contexts and seeds go through both, so that most of what makes these figures noisy cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle.golden import Difference
from csg_edge.bundle.manifest import Manifest
from csg_edge.datasets.labelled_set import Image, LabelledSet
from csg_edge.errors import InputError
from csg_edge.generation.generator import Generator
from csg_edge.progress import Progress
from csg_edge.quality.bootstrap import MIN_GROUPS, Weights, group_interval
from csg_edge.quality.cases import Cases, fingerprint, plan_cases, read_real
from csg_edge.quality.distribution import group_discrepancy, polynomial_kernel
from csg_edge.quality.evaluators import SHIPPED, Described, Evaluators, load_evaluators
from csg_edge.quality.record import Figure
from csg_edge.quality.segmentation import mean_dice
from csg_edge.quality.spectrum import Spectra, radial_log_spectra, spectrum_gap

IMAGES = 126
DRAWS = 400


@dataclass(frozen=True)
class Quality:
    """Figures of one engine's images. Differences are to the fp32 student's, None for the student itself.

    kid: over groups, of images alone; kid_difference and dice_difference with 95 % intervals over groups, paired.
    psnr, ssim: median over the cases, to the student's image of the same case.
    """

    kid: Figure
    dice: float
    spectrum_gap: float
    kid_difference: Figure | None = None
    dice_difference: Figure | None = None
    psnr: float | None = None
    ssim: float | None = None


@dataclass(frozen=True)
class Judge:
    """What images are judged by: held-out real images, the cases to make, evaluators that took part in no training."""

    cases: Cases
    real: LabelledSet
    described: Described
    reference: Described
    spectra: Spectra
    evaluators: Evaluators
    seed: int

    @classmethod
    def prepare(cls, roots: Sequence[Path], manifest: Manifest, *, images: int, seed: int) -> Judge:
        """Read and describe the held-out groups of the data.

        Raises InputError for data without held-out groups, or fewer of them than can carry a judgement.
        """
        height, width = manifest.image_size
        if height != width:
            raise InputError(f"bundle {manifest.name} makes {height} x {width} images; evaluators judge squares only")
        if images < 2:
            raise InputError(f"--images {images}: give at least 2; figures settle at some hundred")
        evaluators = load_evaluators(SHIPPED, schema=manifest.schema)
        if evaluators.image_size != height:
            raise InputError(
                f"bundle {manifest.name} makes images of {height} pixels, the evaluators judge "
                f"{evaluators.image_size}; calibrate a bundle of that size"
            )
        real = read_real(roots, manifest.schema, size=height)
        if real.groups < MIN_GROUPS:
            raise InputError(
                f"--data: {real.groups} held-out groups, at least {MIN_GROUPS} are needed to judge images; add "
                "labelled subjects to split 'val'"
            )
        reference = evaluators.describe(real.train)
        described = evaluators.describe(real.held_out).standardised(reference)
        cases = plan_cases(real.held_out, count=images, seed=seed, spare=real.train)
        return cls(
            cases, real.held_out, described, reference, radial_log_spectra(real.held_out.images), evaluators, seed
        )

    @property
    def fingerprint(self) -> str:
        """Stands for the cases."""
        return fingerprint(self.cases)

    def make(self, generator: Generator, *, label: str) -> Image:
        """The images of one engine for all cases, (N, H, W) uint8."""
        progress = Progress(label, self.cases.single, unit="images")
        images = []
        for index in range(self.cases.single):
            mask, context = self.cases.wanted.masks[index], self.cases.contexts.images[index]
            images.append(generator.generate_one(mask, context, self.cases.seeds[index]))
            progress.advance()
        return np.stack(images)

    def look(self, images: Image) -> Seen:
        """Everything that the figures of some images are made from."""
        samples = self.cases.wanted.take(range(self.cases.single)).with_images(images)
        features = self.evaluators.describe(samples).standardised(self.reference)
        dice = mean_dice(self.evaluators.segment(images), samples.masks)
        return Seen(samples, features, dice, radial_log_spectra(images))

    def measure(self, seen: Seen, student: Seen | None = None) -> Quality:
        """Figures of some images, and their differences to the student's."""
        judged = np.flatnonzero(np.isfinite(seen.dice))
        own = self._kid(seen)
        groups = self.real.groups, seen.samples.groups
        kid = group_interval(own, *groups, rng=np.random.default_rng([self.seed, 0]), draws=DRAWS)
        quality = Quality(kid, float(np.mean(seen.dice[judged])), spectrum_gap(self.spectra, seen.spectra))
        if student is None:
            return quality
        theirs = self._kid(student)
        difference = group_interval(
            lambda a, b: own(a, b) - theirs(a, b), *groups, rng=np.random.default_rng([self.seed, 1]), draws=DRAWS
        )
        change = (seen.dice - student.dice)[judged]
        dice = group_interval(
            lambda a: float(a @ change / a.sum()), [seen.samples.groups[index] for index in judged],
            rng=np.random.default_rng([self.seed, 2]), draws=DRAWS,
        )  # fmt: skip
        pairs = zip(seen.samples.images, student.samples.images, strict=True)
        apart = [Difference.between(image, other) for image, other in pairs]
        return Quality(
            quality.kid, quality.dice, quality.spectrum_gap, difference, dice,
            float(np.median([item.psnr for item in apart])), float(np.median([item.ssim for item in apart])),
        )  # fmt: skip

    def _kid(self, seen: Seen) -> Callable[[Weights, Weights], float]:
        return group_discrepancy(
            self.described.embedding, seen.features.embedding, self.real.groups, seen.samples.groups,
            kernel=polynomial_kernel,
        )  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """Images with their features, Dice per image (NaN where the mask has no class large enough) and spectra."""

    samples: LabelledSet
    features: Described
    dice: NDArray[np.float64]
    spectra: Spectra

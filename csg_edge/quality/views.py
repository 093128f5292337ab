"""What is computed of each image once, however many figures, sets and classes it then counts in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.quality.cases import set_of
from csg_edge.quality.evaluators import Described, Evaluators
from csg_edge.quality.histograms import class_histograms
from csg_edge.quality.segmentation import mean_dice
from csg_edge.quality.speckle import SpeckleStatistics, speckle_statistics
from csg_edge.quality.spectrum import Spectra, radial_log_spectra
from csg_edge.quality.structure import Structure, describe_structure


@dataclass(frozen=True)
class View:
    """N images and what is known of each.

    described: in units of the train images. dice: (N,) of the segmenter, NaN where no class is large enough. speckle:
    None where no image has a homogeneous patch. counts: (N, classes, 256) pixels by class and grey level.
    """

    samples: LabelledSet
    described: Described
    dice: NDArray[np.float64]
    structure: Structure
    spectra: Spectra
    speckle: SpeckleStatistics | None
    counts: NDArray[np.float64]

    @classmethod
    def of(
        cls, samples: LabelledSet, evaluators: Evaluators, reference: Described, *, described: Described | None = None
    ) -> View:
        """Look at every image; `described`: its features as they are, where they are known already.

        Raises InputError for constant images or another size than the evaluators judge.
        """
        classes = len(evaluators.schema)
        try:
            speckle = speckle_statistics(samples)
        except InputError:
            speckle = None
        return cls(
            samples,
            (described or evaluators.describe(samples)).standardised(reference),
            mean_dice(evaluators.segment(samples.images), samples.masks),
            describe_structure(samples, classes=classes),
            radial_log_spectra(samples.images),
            speckle,
            class_histograms(samples, classes=classes),
        )

    @classmethod
    def join(cls, parts: Sequence[View]) -> View:
        """Several as one."""
        starts = np.cumsum([0, *(len(part.groups) for part in parts)])
        known = [(part.speckle, start) for part, start in zip(parts, starts, strict=False) if part.speckle]
        speckle = SpeckleStatistics(
            np.concatenate([item.values for item, _ in known]),
            np.concatenate([item.positions + start for item, start in known]),
            sum(item.patches for item, _ in known),
        ) if known else None  # fmt: skip
        return cls(
            LabelledSet.join([part.samples for part in parts]),
            Described.join([part.described for part in parts]),
            np.concatenate([part.dice for part in parts]),
            Structure.join([part.structure for part in parts]),
            np.concatenate([part.spectra for part in parts]),
            speckle,
            np.concatenate([part.counts for part in parts]),
        )

    @property
    def groups(self) -> tuple[str, ...]:
        return self.samples.groups

    def take(self, indices: NDArray[np.intp]) -> View:
        """The images at some positions."""
        speckle = self.speckle.take(indices) if self.speckle else None
        return View(
            self.samples.take(indices), self.described.take(indices), self.dice[indices],
            self.structure.take(indices), self.spectra[indices],
            speckle if speckle and len(speckle.positions) else None, self.counts[indices],
        )  # fmt: skip


def positions_by_set(groups: Sequence[str]) -> dict[str, NDArray[np.intp]]:
    """Positions of the images of each set, sets by name."""
    sets = np.array([set_of(group) for group in groups])
    return {str(name): np.flatnonzero(sets == name) for name in np.unique(sets)}

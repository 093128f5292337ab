"""Every figure of one set of images against another, pooled, for each public set and for each class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema
from csg_edge.quality.bootstrap import group_interval
from csg_edge.quality.c2st import C2ST, c2st_of_features
from csg_edge.quality.distribution import frechet, gaussian_kernel, group_mmd, kid, polynomial_kernel
from csg_edge.quality.evaluators import Described
from csg_edge.quality.histograms import HistogramGap, gap_of_counts
from csg_edge.quality.record import Figure
from csg_edge.quality.speckle import speckle_effects
from csg_edge.quality.spectrum import spectra_figure
from csg_edge.quality.structure import (
    WHOLE,
    Structure,
    coherence_shift,
    direction_gap,
    direction_spread,
    ridge_length,
)
from csg_edge.quality.views import View, positions_by_set

FULL_GROUPS = 8  # a set with fewer groups has figures of its images, but none that compares distributions, and no gate

LEAST_GROUPS = 3  # on a side, below which nothing can be learned from some groups and tried on others


def join_name(figure: str, *parts: str) -> str:
    """`c2st_structure/usgra_nerve_vessel/nerve`: a figure of one set, and of one class of it."""
    return "/".join((figure, *parts))


def compare_images(
    real: View, made: View, *, seed: int, kernel: Described, full: bool
) -> tuple[dict[str, Figure], dict[str, C2ST], HistogramGap]:
    """Figures of two sets of images; `full` adds those that compare distributions and need groups enough.

    kernel: features that set the width of the Gaussian kernel.
    """
    groups = real.groups, made.groups
    dice = dice_figure(made, seed=seed)
    figures = {"dice": dice} if dice else {}
    figures["spectrum_gap"] = spectra_figure(real.spectra, made.spectra, groups, rng=_random(seed, 3))
    if real.speckle and made.speckle:
        speckle = speckle_effects(real.speckle, made.speckle, groups, rng=_random(seed, 4))
        figures["speckle_gap"] = speckle["all"]
        figures |= {f"speckle_{part}": figure for part, figure in speckle.items() if part != "all"}
    histograms = gap_of_counts(real.counts, made.counts, groups, rng=_random(seed, 5))
    figures["histogram_gap"] = histograms.mean
    tests = {}
    if full:
        figures |= distribution_figures(real.described, made.described, groups, seed=seed, kernel=kernel)
        tests["c2st"] = c2st_of_features(real.described.pyramid, made.described.pyramid, *groups, seed=seed)
        figures["c2st"] = tests["c2st"].accuracy
    structures, test = structure_figures(real.structure, made.structure, groups, seed=seed, full=full)
    figures |= structures
    if test is not None:
        tests["c2st_structure"] = test
    return figures, tests, histograms


def structure_figures(
    real: Structure, made: Structure, groups: tuple[Sequence[str], Sequence[str]], *, seed: int, column: int = WHOLE,
    full: bool,
) -> tuple[dict[str, Figure], C2ST | None]:  # fmt: skip
    """Figures of long-range structure alone, of whole images or of one class."""
    measures = (coherence_shift, direction_spread, direction_gap, ridge_length)
    found = {
        measure.__name__: measure(real, made, groups, column=column, rng=_random(seed, 20 + number))
        for number, measure in enumerate(measures)
    }
    figures = {name: figure for name, figure in found.items() if figure is not None}
    present = [np.atleast_1d(np.isfinite(item.features[:, column]).all(axis=1)) for item in (real, made)]
    kept = [
        [name for name, keep in zip(names, where, strict=True) if keep]
        for names, where in zip(groups, present, strict=True)
    ]
    if not full or min(len(set(names)) for names in kept) < LEAST_GROUPS:
        return figures, None
    features = [item.features[where, column] for item, where in zip((real, made), present, strict=True)]
    try:
        test = c2st_of_features(features[0], features[1], kept[0], kept[1], seed=seed)
    except InputError:  # a fold of one kind of images only: too few groups
        return figures, None
    return {"c2st_structure": test.accuracy, **figures}, test


def class_figures(
    real: Structure, made: Structure, groups: tuple[Sequence[str], Sequence[str]], schema: LabelSchema, *, seed: int,
    full: bool,
) -> dict[str, Figure]:  # fmt: skip
    """Structure of each class: `c2st_structure/muscle` and so on."""
    figures: dict[str, Figure] = {}
    for column, name in enumerate(schema.names):
        if column != WHOLE:
            found, _ = structure_figures(real, made, groups, seed=seed, column=column, full=full)
            figures |= {join_name(figure, name): value for figure, value in found.items()}
    return figures


def figures_by_set(
    real: View, made: View, schema: LabelSchema, *, seed: int, kernel: Described, full: Collection[str],
) -> dict[str, Figure]:  # fmt: skip
    """Every figure of every set: `kid/usgra_nerve_vessel`, and those of structure for its classes as well.

    full: the sets with groups enough for figures that compare distributions.
    """
    figures: dict[str, Figure] = {}
    ours = positions_by_set(made.groups)
    for name, positions in positions_by_set(real.groups).items():
        if name not in ours:
            continue
        one, other = real.take(positions), made.take(ours[name])
        groups = one.groups, other.groups
        # A half of a control can be one large group and a few small ones.
        whole = name in full and min(len(set(one.groups)), len(set(other.groups))) >= LEAST_GROUPS
        found, _, _ = compare_images(one, other, seed=seed, kernel=kernel, full=whole)
        found |= class_figures(one.structure, other.structure, groups, schema, seed=seed, full=whole)
        for figure, value in found.items():
            first, *rest = figure.split("/")
            figures[join_name(first, name, *rest)] = value
    return figures


def distribution_figures(
    real: Described, made: Described, groups: tuple[Sequence[str], Sequence[str]], *, seed: int, kernel: Described
) -> dict[str, Figure]:
    """KID, MMD and Frechet distance, of images and of images with their masks."""
    figures: dict[str, Figure] = {}
    for suffix, one, other, scale in (
        ("", real.embedding, made.embedding, kernel.embedding),
        ("_joint", real.joint, made.joint, kernel.joint),
    ):
        rng = _random(seed, 2)
        figures[f"kid{suffix}"] = group_mmd(one, other, *groups, kernel=polynomial_kernel, rng=rng)
        figures[f"mmd{suffix}"] = group_mmd(one, other, *groups, kernel=gaussian_kernel(scale), rng=rng)
        subsets = kid(one, other, seed=seed)
        note = f"torchmetrics, subsets of {subsets.subset_size}; takes near-duplicates for independent images"
        figures[f"kid_subsets{suffix}"] = Figure(subsets.mean, note=note)
        figures[f"frechet{suffix}"] = Figure(
            frechet(one, other), note=f"torchmetrics; biased upwards by {len(one)} and {len(other)} images"
        )
    return figures


def dice_figure(view: View, *, seed: int) -> Figure | None:
    """Mean Dice over the images, with what was left out; None if no image has a class large enough."""
    judged = np.flatnonzero(np.isfinite(view.dice))
    if not len(judged):
        return None
    values = view.dice[judged]
    groups = [view.groups[index] for index in judged]
    figure = group_interval(lambda a: float(a @ values / a.sum()), groups, rng=_random(seed, 0))
    left_out = len(view.dice) - len(judged)
    note = f"{left_out} images without a class large enough" if left_out else ""
    return Figure(figure.value, figure.low, figure.high, figure.groups, "; ".join(filter(None, (figure.note, note))))


def of_set(figures: Mapping[str, Figure], name: str) -> dict[str, Figure]:
    """The figures of one set under their plain names; those of its classes are not among them."""
    return {
        key.removesuffix(f"/{name}"): figure
        for key, figure in figures.items()
        if key.endswith(f"/{name}") and key.count("/") == 1
    }


def sets_of(figures: Mapping[str, Figure]) -> list[str]:
    """The sets that have figures of their own."""
    return sorted({name.split("/")[1] for name in figures if "/" in name})


def pooled(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """The figures over all sets together."""
    return {name: figure for name, figure in figures.items() if "/" not in name}


def _random(seed: int, purpose: int) -> np.random.Generator:
    """A generator of its own for each purpose, so that leaving one figure out changes no other."""
    return np.random.default_rng([seed, purpose])

"""All figures of one subject: an engine, the teacher, or real images against real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.quality.bootstrap import Weights, group_interval, split_groups
from csg_edge.quality.c2st import C2ST, c2st_of_features, c2st_of_pixels
from csg_edge.quality.cases import Cases, RealData, set_of
from csg_edge.quality.contrast import contrast_correlation
from csg_edge.quality.distribution import frechet, gaussian_kernel, group_mmd, kid, polynomial_kernel
from csg_edge.quality.diversity import diversity_figure, seed_distances, seed_feature_distances
from csg_edge.quality.evaluators import Described, Evaluators
from csg_edge.quality.histograms import HistogramGap, histogram_gap
from csg_edge.quality.memorisation import Memorisation, image_distances, memorisation, own_distances
from csg_edge.quality.record import Figure, Subject
from csg_edge.quality.segmentation import mean_dice
from csg_edge.quality.speckle import speckle_figures
from csg_edge.quality.spectrum import spectrum_figure
from csg_edge.quality.style import ContextSimilarity, context_similarity

SPLITS = 8  # halvings of the real groups behind the control
STAGES = 5  # how often `measure_generated` says what it does next

Note = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """A subject's figures with what its pictures are drawn from."""

    subject: Subject
    samples: LabelledSet
    histograms: HistogramGap | None = None
    memorisation: Memorisation | None = None
    style: ContextSimilarity | None = None
    tests: Mapping[str, C2ST] = field(default_factory=dict)


@dataclass(frozen=True)
class Yardstick:
    """What every subject is measured with: the real images, their features, and the evaluators."""

    real: RealData
    evaluators: Evaluators
    reference: Described  # features of the train images: they set the scale of every feature
    held_out: Described  # those of the held-out images, in that scale
    to_train: NDArray[np.float32]  # distances of held-out to train images
    seed: int

    @classmethod
    def prepare(cls, real: RealData, evaluators: Evaluators, *, seed: int) -> Yardstick:
        """Describe the real images once."""
        reference = evaluators.describe(real.train)
        held_out = evaluators.describe(real.held_out).standardised(reference)
        to_train = image_distances(real.held_out.images, real.train.images)
        return cls(real, evaluators, reference, held_out, to_train, seed)

    def random(self, purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose, so that leaving one figure out changes no other."""
        return np.random.default_rng([self.seed, purpose])


def measure_generated(
    name: str, kind: str, made: LabelledSet, cases: Cases, yardstick: Yardstick, *, pixels: bool, note: Note
) -> Measured:
    """Every figure of generated images; `pixels` adds the C2ST that is trained on pixels."""
    real, evaluators = yardstick.real, yardstick.evaluators
    samples = made.take(range(cases.single))
    note("segmenting")
    figures = {"dice": _dice(evaluators, samples, yardstick.random(0))}
    figures["contrast_correlation"] = _contrast(samples, cases.wanted, yardstick.random(1))
    note("distribution")
    features = evaluators.describe(samples).standardised(yardstick.reference)
    figures |= _distribution(yardstick.held_out, features, real.held_out.groups, samples.groups, yardstick)
    note("spectrum, speckle, grey levels")
    figures["spectrum_gap"] = spectrum_figure(real.held_out, samples, rng=yardstick.random(3))
    speckle = speckle_figures(real.held_out, samples, rng=yardstick.random(4))
    figures["speckle_gap"] = speckle["all"]
    figures |= {f"speckle_{part}": figure for part, figure in speckle.items() if part != "all"}
    histograms = histogram_gap(real.held_out, samples, classes=len(evaluators.schema), rng=yardstick.random(5))
    figures["histogram_gap"] = histograms.mean
    note("C2ST")
    tests = {
        "c2st": c2st_of_features(
            yardstick.held_out.pyramid, features.pyramid, real.held_out.groups, samples.groups,
            seed=yardstick.seed,
        )
    }  # fmt: skip
    if pixels:
        tests["c2st_pixels"] = c2st_of_pixels(real.held_out, samples, seed=yardstick.seed)
    figures |= {test: found.accuracy for test, found in tests.items()}
    note("contexts, diversity, memorisation")
    style = context_similarity(
        samples,
        rng=yardstick.random(6),
        style=evaluators.style,
        strata=[set_of(group) for group in samples.groups],
        context_groups=cases.contexts.groups[: len(samples)],
    )
    figures["context_hit_rate"], figures["style_error"] = style.above_shuffled, style.error
    figures |= _diversity(made, cases, features.embedding, yardstick)
    copies = memorisation(
        image_distances(samples.images, real.train.images), yardstick.to_train, samples.groups, real.held_out.groups,
        rng=yardstick.random(7),
    )  # fmt: skip
    figures["memorisation_rate"], figures["memorisation_ratio"] = copies.near, copies.ratio
    figures["context_copy_ratio"] = _context_copies(samples, cases, yardstick.random(8))
    subject = Subject(name, kind, len(samples), figures)
    return Measured(subject, samples, histograms, copies, style, tests)


def measure_control(yardstick: Yardstick, *, pixels: bool, note: Note) -> Measured:
    """Real against real: the held-out groups in two halves, over SPLITS halvings; Dice on all of them."""
    held_out = yardstick.real.held_out
    note("real against real")
    figures = {"dice": _dice(yardstick.evaluators, held_out, yardstick.random(0))}
    parts: dict[str, list[Figure]] = {}
    for split in range(SPLITS):
        first, second = _halves(held_out, yardstick.random(100 + split))
        one, other = held_out.take(first), held_out.take(second)
        halves = [yardstick.held_out.take(side) for side in (first, second)]
        found = _distribution(halves[0], halves[1], one.groups, other.groups, yardstick)
        found["spectrum_gap"] = spectrum_figure(one, other, rng=yardstick.random(3))
        found["speckle_gap"] = speckle_figures(one, other, rng=yardstick.random(4))["all"]
        found["histogram_gap"] = histogram_gap(
            one, other, classes=len(yardstick.evaluators.schema), rng=yardstick.random(5)
        ).mean
        found["c2st"] = c2st_of_features(
            halves[0].pyramid, halves[1].pyramid, one.groups, other.groups, seed=yardstick.seed
        ).accuracy
        if pixels and split == 0:  # the slow one: once
            found["c2st_pixels"] = c2st_of_pixels(one, other, seed=yardstick.seed).accuracy
        for name, figure in found.items():
            parts.setdefault(name, []).append(figure)
    figures |= {name: _mean(found) for name, found in parts.items()}
    return Measured(Subject("real against real", "control", len(held_out), figures), held_out)


def _halves(samples: LabelledSet, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of two halves without a common group, each set halved for itself.

    A half with more nerves and one with more muscles would differ, and rightly so.
    """
    halves: tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]] = ([], [])
    sets = np.array([set_of(group) for group in samples.groups])
    for name in sorted(set(sets)):
        members = np.flatnonzero(sets == name)
        parts = split_groups([samples.groups[index] for index in members], rng=rng)
        for half, part in zip(halves, parts, strict=True):
            half.append(members[part])
    return np.concatenate(halves[0]), np.concatenate(halves[1])


def _distribution(
    real: Described, generated: Described,
    real_groups: Sequence[str], generated_groups: Sequence[str], yardstick: Yardstick,
) -> dict[str, Figure]:  # fmt: skip
    figures = {}
    for suffix, one, other, scale in (
        ("", real.embedding, generated.embedding, yardstick.held_out.embedding),
        ("_joint", real.joint, generated.joint, yardstick.held_out.joint),
    ):
        rng = yardstick.random(2)
        figures[f"kid{suffix}"] = group_mmd(
            one, other, real_groups, generated_groups, kernel=polynomial_kernel, rng=rng
        )
        figures[f"mmd{suffix}"] = group_mmd(
            one, other, real_groups, generated_groups,
            kernel=gaussian_kernel(scale), rng=rng,
        )  # fmt: skip
        subsets = kid(one, other, seed=yardstick.seed)
        note = f"torchmetrics, subsets of {subsets.subset_size}; takes near-duplicates for independent images"
        figures[f"kid_subsets{suffix}"] = Figure(subsets.mean, note=note)
        figures[f"frechet{suffix}"] = Figure(
            frechet(one, other), note=f"torchmetrics; biased upwards by {len(one)} and {len(other)} images"
        )
    return figures


def _dice(evaluators: Evaluators, samples: LabelledSet, rng: np.random.Generator) -> Figure:
    values = mean_dice(evaluators.segment(samples.images), samples.masks)
    judged = np.flatnonzero(np.isfinite(values))
    found = values[judged]
    figure = group_interval(lambda a: float(a @ found / a.sum()), [samples.groups[index] for index in judged], rng=rng)
    left_out = len(values) - len(judged)
    note = f"{left_out} images without a class large enough" if left_out else ""
    return Figure(figure.value, figure.low, figure.high, figure.groups, "; ".join(filter(None, (figure.note, note))))


def _contrast(samples: LabelledSet, wanted: LabelledSet, rng: np.random.Generator) -> Figure:
    triples = list(zip(samples.images, wanted.images[: len(samples)], samples.masks, strict=True))

    def correlation(a: Weights) -> float:
        drawn = [triple for triple, times in zip(triples, a, strict=True) for _ in range(int(times))]
        return contrast_correlation(drawn)

    return group_interval(correlation, samples.groups, rng=rng, draws=50)


def _diversity(
    made: LabelledSet, cases: Cases, embedding: NDArray[np.float32], yardstick: Yardstick
) -> dict[str, Figure]:
    again = made.take(range(cases.single, len(made)))
    first = made.take(range(cases.pairs))
    repeated = yardstick.evaluators.describe(again).standardised(yardstick.reference).embedding
    pairs = np.stack([first.images, again.images], 1)
    features = np.stack([embedding[: cases.pairs], repeated], 1)
    return {
        "diversity": diversity_figure(seed_feature_distances(features), first.groups, rng=yardstick.random(9)),
        "diversity_pixels": diversity_figure(seed_distances(pairs), first.groups, rng=yardstick.random(10)),
    }


def _context_copies(samples: LabelledSet, cases: Cases, rng: np.random.Generator) -> Figure:
    """Median distance of an image to its own context, over that of the mask's real image to the same context."""
    contexts = cases.contexts.images[: len(samples)]
    ours = own_distances(samples.images, contexts).astype(np.float64)
    theirs = own_distances(cases.wanted.images[: len(samples)], contexts).astype(np.float64)

    def ratio(a: Weights) -> float:
        return float((a @ ours) / (a @ theirs)) if a.any() else float("nan")

    return group_interval(ratio, samples.groups, rng=rng)


def _mean(figures: Sequence[Figure]) -> Figure:
    """The mean over several halvings, with the mean ends of their intervals."""
    lows = [figure.low for figure in figures if figure.low is not None]
    highs = [figure.high for figure in figures if figure.high is not None]
    note = f"mean over {len(figures)} halvings" if len(figures) > 1 else "one halving"
    whole = len(lows) == len(highs) == len(figures)
    return Figure(
        float(np.mean([figure.value for figure in figures])),
        float(np.mean(lows)) if whole else None,
        float(np.mean(highs)) if whole else None,
        min(figure.groups for figure in figures),
        "; ".join(filter(None, (note, figures[0].note))),
    )

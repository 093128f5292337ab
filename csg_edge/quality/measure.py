"""All figures of one subject: an engine, the teacher, or real images against real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.quality.bootstrap import Weights, group_interval, interval_where_defined, split_groups
from csg_edge.quality.c2st import C2ST, c2st_of_pixels, c2st_of_scores
from csg_edge.quality.cases import Cases, RealData, set_of
from csg_edge.quality.comparison import (
    FULL_GROUPS,
    compare_images,
    dice_figure,
    figures_by_set,
    join_name,
)
from csg_edge.quality.contrast import paired_contrasts, weighted_correlation
from csg_edge.quality.diversity import diversity_figure, seed_distances, seed_feature_distances, seed_likeness
from csg_edge.quality.evaluators import Described, Evaluators
from csg_edge.quality.histograms import HistogramGap
from csg_edge.quality.memorisation import CLOSEST, Memorisation, image_distances, memorisation, own_distances
from csg_edge.quality.record import Figure, Subject
from csg_edge.quality.style import ContextSimilarity, context_figures, context_similarity
from csg_edge.quality.views import View, positions_by_set

SPLITS = 6  # halvings of the real groups behind the control
QUICK_SPLITS = 3  # the same with the gates alone
A_GROUP = 3  # images of a group that set the scale of the features and take part in the control
STAGES = 4  # how often `measure_generated` says what it does next

Note = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """A subject's figures with what its pictures are drawn from; the control's view is of the held-out real images."""

    subject: Subject
    samples: LabelledSet
    histograms: HistogramGap | None = None
    memorisation: Memorisation | None = None
    style: ContextSimilarity | None = None
    tests: Mapping[str, C2ST] = field(default_factory=dict)
    view: View | None = None


@dataclass(frozen=True)
class Yardstick:
    """What every subject is measured with: the real images, what is known of each, and the evaluators."""

    real: RealData
    evaluators: Evaluators
    reference: Described  # features of train images: they set the scale of every feature
    view: View  # of the held-out images, in that scale
    every: View  # of a few images of every group, held out or not: what the control is made from
    to_train: NDArray[np.float32]  # distances of held-out to train images
    seed: int

    @classmethod
    def prepare(cls, real: RealData, evaluators: Evaluators, *, seed: int) -> Yardstick:
        """Look at the real images once."""
        few = _a_few(real.train, A_GROUP)
        reference = evaluators.describe(few)
        view = View.of(real.held_out, evaluators, reference)
        seen = View.of(few, evaluators, reference, described=reference)
        every = View.join([seen, view.take(_few_positions(real.held_out, A_GROUP))])
        to_train = image_distances(real.held_out.images, real.train.images)
        return cls(real, evaluators, reference, view, every, to_train, seed)

    @property
    def held_out(self) -> Described:
        """Features of the held-out images."""
        return self.view.described

    @property
    def full_sets(self) -> frozenset[str]:
        """Sets with groups enough held out for every figure and gate."""
        return _full(self.real.held_out.groups)

    def random(self, purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose, so that leaving one figure out changes no other."""
        return np.random.default_rng([self.seed, purpose])


def measure_generated(
    name: str, kind: str, made: LabelledSet, cases: Cases, yardstick: Yardstick, *, pixels: bool, note: Note
) -> Measured:
    """Every figure of generated images, pooled and of each set; `pixels` adds the C2ST that is trained on pixels."""
    real, evaluators = yardstick.real, yardstick.evaluators
    samples = made.take(range(cases.single))
    note("looking at every image")
    view = View.of(samples, evaluators, yardstick.reference)
    again = made.take(range(cases.single, len(made)))
    repeated = evaluators.describe(again).standardised(yardstick.reference).embedding
    note("comparing with real images, pooled and by set")
    options = {"seed": yardstick.seed, "kernel": yardstick.held_out}
    figures, tests, histograms = compare_images(yardstick.view, view, full=True, **options)  # type: ignore[arg-type]
    figures |= figures_by_set(
        yardstick.view, view, evaluators.schema, full=yardstick.full_sets, **options  # type: ignore[arg-type]
    )  # fmt: skip
    if pixels:
        note("C2ST on pixels")
        tests["c2st_pixels"] = c2st_of_pixels(real.held_out, samples, seed=yardstick.seed)
        figures["c2st_pixels"] = tests["c2st_pixels"].accuracy
    note("contexts, diversity, memorisation")
    style = context_similarity(
        samples,
        rng=yardstick.random(6),
        style=evaluators.style,
        strata=[set_of(group) for group in samples.groups],
        context_groups=cases.contexts.groups[: len(samples)],
        image_styles=view.described.style,
    )
    own = _Own(
        samples, again, cases, style, np.stack([view.described.embedding[: cases.pairs], repeated], 1),
        image_distances(samples.images, real.train.images), yardstick, tests.get("c2st_pixels"),
    )  # fmt: skip
    parts = positions_by_set(samples.groups)
    figures |= own.figures(np.arange(len(samples)), full=True)
    for part, positions in parts.items():
        found = own.figures(positions, full=part in yardstick.full_sets)
        figures |= {join_name(figure, part): value for figure, value in found.items()}
    copies = own.copies(np.arange(len(samples)), np.arange(len(real.held_out)))
    return Measured(Subject(name, kind, len(samples), figures), samples, histograms, copies, style, tests, view)


@dataclass(frozen=True)
class _Own:
    """What compares generated images with their own conditions, with other seeds and with training images."""

    samples: LabelledSet
    again: LabelledSet
    cases: Cases
    style: ContextSimilarity
    pairs: NDArray[np.float32]  # (P, 2, D) features of the first images and of those under another seed
    to_train: NDArray[np.float32]
    yardstick: Yardstick
    pixels: C2ST | None

    def figures(self, positions: NDArray[np.intp], *, full: bool) -> dict[str, Figure]:
        """Of the images at some positions; `full` adds those that need groups enough."""
        yardstick, cases = self.yardstick, self.cases
        part = self.samples.take(positions)
        held_out = _members(yardstick.real.held_out.groups, part.groups)
        real_groups = [yardstick.real.held_out.groups[index] for index in held_out]
        contrasts = [
            paired_contrasts(self.samples.images[index], cases.wanted.images[index], self.samples.masks[index])
            for index in positions
        ]
        found = {"context_copy_ratio": self._context_copies(positions)}
        correlation = interval_where_defined(
            lambda a: weighted_correlation(contrasts, a), part.groups, rng=yardstick.random(1), draws=200
        )
        if correlation is not None:
            found["contrast_correlation"] = correlation
        style = self.style
        found["context_hit_rate"], found["style_error"] = context_figures(
            style.shares[positions], style.own[positions], style.others[positions], part.groups, rng=yardstick.random(6)
        )
        first = positions[positions < cases.pairs]
        if len(first):
            groups = [self.samples.groups[index] for index in first]
            images = np.stack([self.samples.images[first], self.again.images[first]], 1)
            found["diversity"] = diversity_figure(
                seed_feature_distances(self.pairs[first]), groups, rng=yardstick.random(9)
            )
            found["diversity_pixels"] = diversity_figure(seed_distances(images), groups, rng=yardstick.random(10))
        shared = [int(index) for index in first if cases.partners[index] >= 0]
        if shared:
            partners = [cases.partners[index] for index in shared]
            others = self.samples.images[partners]
            found["seed_likeness"] = seed_likeness(
                (self.again.images[shared], others), (self.samples.images[shared], others),
                [self.samples.groups[index] for index in shared], rng=yardstick.random(11),
            )  # fmt: skip
        if full and len(held_out) >= 1 / CLOSEST:
            copies = self.copies(positions, held_out)
            found["memorisation_rate"], found["memorisation_ratio"] = copies.near, copies.ratio
        if full and self.pixels is not None:
            scores = self.pixels.real[held_out], self.pixels.generated[positions]
            found["c2st_pixels"] = c2st_of_scores(*scores, real_groups, part.groups, seed=yardstick.seed)
        return found

    def copies(self, positions: NDArray[np.intp], held_out: NDArray[np.intp]) -> Memorisation:
        """Distances to training images of some images and of some held-out ones."""
        yardstick = self.yardstick
        return memorisation(
            self.to_train[positions], yardstick.to_train[held_out],
            [self.samples.groups[index] for index in positions],
            [yardstick.real.held_out.groups[index] for index in held_out], rng=yardstick.random(7),
        )  # fmt: skip

    def _context_copies(self, positions: NDArray[np.intp]) -> Figure:
        """Median distance of an image to its own context, over that of the mask's real image to the same context."""
        contexts = self.cases.contexts.images[positions]
        ours = own_distances(self.samples.images[positions], contexts).astype(np.float64)
        theirs = own_distances(self.cases.wanted.images[positions], contexts).astype(np.float64)

        def ratio(a: Weights) -> float:
            return float((a @ ours) / (a @ theirs)) if a.any() else float("nan")

        groups = [self.samples.groups[index] for index in positions]
        return group_interval(ratio, groups, rng=self.yardstick.random(8))


def measure_control(yardstick: Yardstick, *, pixels: bool, note: Note) -> Measured:
    """Real against real: all groups in two halves, over several halvings; Dice on all held-out images.

    All groups, and not the held-out ones alone: halves of nine groups differ by chance more than any figure could show.
    """
    note("real against real")
    view, every, schema = yardstick.view, yardstick.every, yardstick.evaluators.schema
    sets = {join_name("dice", name): where for name, where in positions_by_set(view.groups).items()}
    judged = {name: dice_figure(view.take(where), seed=yardstick.seed) for name, where in sets.items()}
    judged["dice"] = dice_figure(view, seed=yardstick.seed)
    figures = {name: figure for name, figure in judged.items() if figure is not None}
    options = {"seed": yardstick.seed, "kernel": yardstick.held_out}
    parts: dict[str, list[Figure]] = {}
    for split in range(SPLITS if pixels else QUICK_SPLITS):
        one, other = (every.take(half) for half in _halves(every.groups, yardstick.random(100 + split)))
        found, _, _ = compare_images(one, other, full=True, **options)  # type: ignore[arg-type]
        found |= figures_by_set(one, other, schema, full=_full(every.groups), **options)  # type: ignore[arg-type]
        found = {name: figure for name, figure in found.items() if name.split("/")[0] != "dice"}
        if pixels and split == 0:  # the slow one: once
            found["c2st_pixels"] = c2st_of_pixels(one.samples, other.samples, seed=yardstick.seed).accuracy
        for name, figure in found.items():
            parts.setdefault(name, []).append(figure)
    figures |= {name: _mean(found) for name, found in parts.items()}
    control = Subject("real against real", "control", len(every.groups), figures)
    return Measured(control, view.samples, view=view)


def _halves(groups: Sequence[str], rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of two halves without a common group, each set halved for itself; a set of one group is left out.

    A half with more nerves and one with more muscles would differ, and rightly so.
    """
    halves: tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]] = ([], [])
    for members in positions_by_set(groups).values():
        names = [groups[index] for index in members]
        if len(set(names)) > 1:
            for half, part in zip(halves, split_groups(names, rng=rng), strict=True):
                half.append(members[part])
    return np.concatenate(halves[0]), np.concatenate(halves[1])


def _full(groups: Sequence[str]) -> frozenset[str]:
    names = [set_of(group) for group in set(groups)]
    return frozenset(name for name in names if names.count(name) >= FULL_GROUPS)


def _a_few(samples: LabelledSet, count: int) -> LabelledSet:
    """At most `count` images of each group, evenly over it."""
    return samples.take(_few_positions(samples, count))


def _few_positions(samples: LabelledSet, count: int) -> NDArray[np.intp]:
    kept = [
        members[index]
        for members in samples.indices_by_group().values()
        for index in np.unique(np.linspace(0, len(members) - 1, count).round().astype(int))
    ]
    return np.array(kept, np.intp)


def _members(groups: Sequence[str], like: Sequence[str]) -> NDArray[np.intp]:
    """Positions of the images whose sets occur among `like`."""
    wanted = {set_of(group) for group in like}
    return np.flatnonzero([set_of(group) in wanted for group in groups])


def _mean(figures: Sequence[Figure]) -> Figure:
    """The mean over several halvings, with the mean ends of their intervals."""
    lows = [figure.low for figure in figures if figure.low is not None]
    highs = [figure.high for figure in figures if figure.high is not None]
    note = f"mean over {len(figures)} halvings" if len(figures) > 1 else "one halving"
    values = [figure.value for figure in figures]
    whole = len(lows) == len(highs) == len(figures)
    if not whole and len(figures) > 2:  # too few groups a half to resample them
        note = f"mean and range over {len(figures)} halvings"
        lows, highs, whole = [min(values)], [max(values)], True
    return Figure(
        float(np.mean(values)),
        float(np.mean(lows)) if whole else None,
        float(np.mean(highs)) if whole else None,
        min(figure.groups for figure in figures),
        note if note.startswith("mean and range") else "; ".join(filter(None, (note, figures[0].note))),
    )

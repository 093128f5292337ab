"""95 % intervals by resampling groups: images of one group are near-duplicates and count as one observation.

The percentile bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993) over groups, with the percentiles
moved outwards for few groups as Student's t asks: the expanded percentile interval of Hesterberg (Am. Stat. 69:371,
2015, section 4.1). Below `MIN_GROUPS` groups there is no interval, and the figure says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from csg_edge.errors import InputError
from csg_edge.quality.record import Figure

Weights = NDArray[np.float64]

MIN_GROUPS = 5
FEW_GROUPS = 20  # from here on the widening is below 10 %
DRAWS = 1000
_MIN_VALID = 0.9  # share of draws in which the statistic must be defined


def group_interval(
    statistic: Callable[..., float],
    *groups: Sequence[str],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> Figure:
    """The statistic of the data as it is, with its 95 % interval over groups.

    groups: for each set of images the group of each image. statistic: takes one array of weights a set, (N,) float64:
    how often each image counts, all ones for the data as it is; it may return NaN where it is undefined. A group found
    in several sets is drawn in all of them together (a real image and what was generated from its mask); groups of
    only one set are drawn apart from the others. Raises InputError without any group.
    """
    if not groups or not all(len(names) for names in groups):
        raise InputError("no groups to resample; give the group of every image")
    value = float(statistic(*(np.ones(len(names)) for names in groups)))
    count = min(len(set(names)) for names in groups)
    if not math.isfinite(value):
        raise InputError("the figure is not a number for the data as it is; check for empty classes or constant images")
    if count < MIN_GROUPS:
        return Figure(value, groups=count, note=f"no interval: {count} groups, {MIN_GROUPS} are the least")
    positions, strata = _strata(groups)
    results = np.empty(draws)
    for draw in range(draws):
        times = np.zeros(sum(len(stratum) for stratum in strata))
        for stratum in strata:
            times[stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)))
        results[draw] = statistic(*(times[where] for where in positions))
    valid = results[np.isfinite(results)]
    if len(valid) < _MIN_VALID * draws:
        share = 1 - len(valid) / draws
        return Figure(value, groups=count, note=f"no interval: undefined in {share:.0%} of the group resamplings")
    tail = expanded_tail(count)
    low, high = np.quantile(valid, [tail, 1 - tail])
    note = f"interval widened for {count} groups" if count < FEW_GROUPS else ""
    # The percentile interval of a statistic with bootstrap bias can miss the value itself.
    return Figure(value, min(float(low), value), max(float(high), value), count, note)


def interval_where_defined(
    statistic: Callable[..., float], *groups: Sequence[str], rng: np.random.Generator, draws: int = DRAWS
) -> Figure | None:
    """`group_interval`, or None where there are no groups or the statistic is undefined for the data as it is."""
    if not all(len(names) for names in groups):
        return None
    value = float(statistic(*(np.ones(len(names)) for names in groups)))
    return group_interval(statistic, *groups, rng=rng, draws=draws) if math.isfinite(value) else None


def expanded_tail(count: int) -> float:
    """Probability to cut off each side for a 95 % interval from `count` groups: 0.025 for many, less for few."""
    t = float(stats.t.ppf(0.975, count - 1))
    return NormalDist().cdf(-t * math.sqrt(count / (count - 1)))


def split_groups(groups: Sequence[str], *, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of two halves that share no group and differ little in images: the real-against-real control.

    Raises InputError for fewer than two groups.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise InputError("one group cannot be split in two; give real images of at least two groups")
    array = np.asarray(groups)
    sides: tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]] = ([], [])
    for index in rng.permutation(len(names)):
        side = min(sides, key=lambda side: sum(map(len, side)))
        side.append(np.flatnonzero(array == names[index]))
    first, second = (np.sort(np.concatenate(side)) for side in sides)
    return first, second


def _strata(groups: Sequence[Sequence[str]]) -> tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]]:
    """For each set the group number of each image, and the group numbers that are drawn together."""
    members = [set(names) for names in groups]
    union = sorted(set().union(*members))
    number = {name: index for index, name in enumerate(union)}
    positions = [np.array([number[name] for name in names], np.intp) for names in groups]
    patterns: dict[tuple[bool, ...], list[int]] = {}
    for name in union:
        patterns.setdefault(tuple(name in member for member in members), []).append(number[name])
    return positions, [np.array(stratum, np.intp) for stratum in patterns.values()]

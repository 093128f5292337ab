"""Intervals are over groups, say when they cannot be given, and do not depend on anything but the seed."""

from __future__ import annotations

import numpy as np
import pytest

from csg_edge.errors import InputError
from csg_edge.quality.bootstrap import MIN_GROUPS, expanded_tail, group_interval, split_groups
from csg_edge.quality.record import Figure


def mean_figure(values: np.ndarray, groups: list[str], seed: int = 0) -> Figure:
    return group_interval(lambda a: float(a @ values / a.sum()), groups, rng=np.random.default_rng(seed))


def test_near_duplicates_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).normal(size=30)
    alone = mean_figure(values, [f"g{i}" for i in range(30)])
    doubled = mean_figure(np.repeat(values, 10), [f"g{i // 10}" for i in range(300)])
    assert (doubled.value, doubled.low, doubled.high) == pytest.approx((alone.value, alone.low, alone.high))
    as_if_independent = mean_figure(np.repeat(values, 10), [f"g{i}" for i in range(300)])
    assert as_if_independent.high - as_if_independent.low < 0.5 * (alone.high - alone.low)


def test_interval_covers_the_truth_at_about_its_level() -> None:
    rng = np.random.default_rng(2)
    groups = [f"g{i}" for i in range(8)]
    inside = 0
    for values in rng.normal(size=(200, 8)):
        figure = group_interval(lambda a, v=values: float(a @ v / a.sum()), groups, rng=rng, draws=200)
        inside += figure.low < 0 < figure.high
    assert 0.90 <= inside / 200 <= 0.99  # an unwidened percentile interval of eight groups covers about 0.88


def test_too_few_groups_give_a_note_and_no_interval() -> None:
    figure = mean_figure(np.arange(40.0), [f"g{i % (MIN_GROUPS - 1)}" for i in range(40)])
    assert figure.value == pytest.approx(19.5)
    assert figure.low is None and figure.high is None
    assert "no interval: 4 groups" in figure.note


def test_few_groups_say_that_the_interval_was_widened() -> None:
    assert "widened for 6 groups" in mean_figure(np.arange(6.0), list("abcdef")).note
    assert expanded_tail(6) < expanded_tail(20) < expanded_tail(1000) == pytest.approx(0.025, abs=5e-4)


def test_a_statistic_lost_in_resampling_has_no_interval() -> None:
    groups = [f"g{i}" for i in range(10)]
    figure = group_interval(lambda a: 1.0 if a[0] else float("nan"), groups, rng=np.random.default_rng(0))
    assert figure.low is None and "undefined in" in figure.note


def test_shared_groups_are_drawn_together_and_others_apart() -> None:
    shared, seen = [f"g{i}" for i in range(6)], []
    group_interval(lambda a, b: seen.append(bool((a == b).all())) or 0.0, shared, shared, rng=np.random.default_rng(0))
    assert all(seen)
    others, totals = [f"h{i}" for i in range(9)], set()
    group_interval(lambda a, b: totals.add((a.sum(), b.sum())) or 0.0, shared, others, rng=np.random.default_rng(0))
    assert totals == {(6.0, 9.0)}


def test_seed_decides() -> None:
    values, groups = np.arange(20.0), [f"g{i}" for i in range(20)]
    assert mean_figure(values, groups, 3) == mean_figure(values, groups, 3) != mean_figure(values, groups, 4)


def test_halves_share_no_group_and_are_alike_in_size() -> None:
    groups = [f"g{i // 3}" for i in range(60)] + ["large"] * 10
    first, second = split_groups(groups, rng=np.random.default_rng(0))
    assert sorted([*first, *second]) == list(range(70))
    assert not {groups[i] for i in first} & {groups[i] for i in second}
    assert abs(len(first) - len(second)) <= 10


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(InputError, match="two groups"):
        split_groups(["a", "a"], rng=np.random.default_rng(0))
    with pytest.raises(InputError, match="not a number"):
        group_interval(lambda a: float("nan"), ["a", "b"], rng=np.random.default_rng(0))
    with pytest.raises(InputError, match="no groups"):
        group_interval(lambda a: 0.0, [], rng=np.random.default_rng(0))

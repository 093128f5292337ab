"""Percentiles, bounds and intervals mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from csg_edge.benchmarks import intervals


@pytest.mark.parametrize(
    ("count", "share", "dropped"),
    # The first two counts are the smallest that MLPerf's rules name; the third is what LoadGen itself reports.
    [(63, 0.9, -1), (64, 0.9, 0), (661, 0.99, -1), (662, 0.99, 0), (196, 0.9, 8)],
)
def test_early_stopping_drops_as_many_as_loadgen(count: int, share: float, dropped: int) -> None:
    assert intervals.discards(count, share) == dropped


def test_the_bound_of_a_percentile_covers_it_99_times_in_100() -> None:
    draw = np.random.default_rng(0)
    true = -math.log(0.1)  # p90 of the exponential distribution
    bounds = [intervals.early_stopping_bound(draw.exponential(size=100), 0.9) for _ in range(2000)]
    assert 0.985 <= np.mean([bound is not None and bound >= true for bound in bounds]) <= 1.0


def test_summary_of_known_values() -> None:
    found = intervals.summarise(np.arange(1.0, 101.0))
    assert (found["count"], found["p50"], found["p90"], found["p99"]) == (100, 50.0, 90.0, 99.0)
    assert found["p99_bound"] is None
    assert 90.0 < found["p90_bound"] < 100.0


def test_intervals_know_that_neighbours_are_alike() -> None:
    draw = np.random.default_rng(1)
    slow_drift = np.repeat(draw.normal(10.0, 1.0, 20), 50)  # 1000 values, 20 of them independent
    low, high = intervals.median_interval([intervals.block_medians(slow_drift, 20)], seed=0)
    assert high - low > 0.5  # as 20 values have it; 1000 independent ones would give 0.15


def test_interval_holds_the_median_of_every_round() -> None:
    rounds = [[10.0] * 30, [11.0] * 30, [10.5] * 30]
    low, high = intervals.median_interval(rounds, seed=0)
    assert low < 10.0
    assert high > 11.0
    assert intervals.median_interval(rounds[:1], seed=0) == (10.0, 10.0)


def rounds_of(draw: np.random.Generator, *, between: float, rounds: int = 4) -> list[list[float]]:
    """A run whose rounds differ from each other by more than what one of them shows."""
    return [list(10.0 * math.exp(draw.normal(0.0, between)) * draw.normal(1.0, 0.002, size=25)) for _ in range(rounds)]


def test_two_runs_differ_by_no_more_than_is_stated_95_times_in_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLINGS", 200)
    draw = np.random.default_rng(3)
    within, covered, alike = [], [], []
    for _ in range(100):
        first, second = rounds_of(draw, between=0.01), rounds_of(draw, between=0.01)
        medians = [float(np.median(np.concatenate(run))) for run in (first, second)]
        limit = intervals.repeatability(first)
        assert limit is not None
        within.append(max(medians) / min(medians) <= limit)
        low, high = intervals.median_interval(first, seed=0)
        covered.append(low <= 10.0 <= high)
        _, low, high = intervals.ratio_interval(first, second, seed=0)
        alike.append(low <= 1.0 <= high)
    assert np.mean(within) >= 0.9
    assert np.mean(covered) >= 0.92
    assert np.mean(alike) >= 0.92
    assert intervals.repeatability(first[:1]) is None


def test_ratio_of_equal_and_of_slower_runs() -> None:
    draw = np.random.default_rng(2)
    first, second = ([list(draw.normal(10.0, 0.3, 50)) for _ in range(2)] for _ in range(2))
    ratio, low, high = intervals.ratio_interval(first, second, seed=0)
    assert low <= 1.0 <= high
    assert abs(ratio - 1.0) < 0.02
    slower = [[1.2 * value for value in blocks] for blocks in second]
    ratio, low, _ = intervals.ratio_interval(first, slower, seed=0)
    assert 1.17 < ratio < 1.23
    assert low > 1.1


def test_blocks_keep_order_and_cover_everything() -> None:
    assert intervals.block_medians(np.array([1.0, 1.0, 1.0, 5.0, 5.0, 5.0]), 2) == [1.0, 5.0]
    assert intervals.block_medians(np.array([3.0]), 100) == [3.0]

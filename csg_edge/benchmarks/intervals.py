"""Percentiles with counts and bounds, and intervals that know that neighbouring samples are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

PERCENTILES = (0.5, 0.9, 0.99)
CONFIDENCE = 0.99
BLOCKS = 100  # per run: short enough for JSON, long enough to bootstrap
MIN_BLOCK = 3
RESAMPLINGS = 2000
# Student's t, 97.5 %, for 1, 2, ... degrees of freedom; from the tenth on the tenth, which is on the safe side.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def percentile(values: Values, share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank)."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def discards(count: int, share: float, confidence: float = CONFIDENCE) -> int:
    """How many of the highest of `count` latencies lie above the early-stopping estimate of a percentile; -1: too few.

    MLPerf's early stopping: with t such that at most t of `count` latencies exceed the true percentile with
    probability 1 - confidence or less, the t-th highest is an estimate on the safe side.
    """
    above = _log_binomial(count, 1.0 - share)
    return int(np.count_nonzero(np.cumsum(np.exp(above)) <= 1.0 - confidence)) - 2


def early_stopping_bound(values: Values, share: float) -> float | None:
    """An upper bound of the true percentile at 99 % confidence, None if there are too few values for one.

    p90 takes 64 values, p99 takes 662. Assumes that samples are independent, as MLPerf does.
    """
    dropped = discards(len(values), share)
    return float(np.sort(values)[len(values) - 1 - dropped]) if dropped >= 0 else None


def summarise(values: Values) -> dict[str, Any]:
    """Count, mean, extremes and percentiles, each percentile with its bound."""
    found: dict[str, Any] = {"count": len(values), "mean": float(values.mean())}
    found |= {"min": float(values.min()), "max": float(values.max())}
    for share in PERCENTILES:
        name = f"p{round(100 * share)}"
        found[name] = percentile(values, share)
        found[f"{name}_bound"] = early_stopping_bound(values, share)
    return found


def block_medians(values: Values, blocks: int) -> list[float]:
    """Medians of at most `blocks` consecutive blocks of nearly equal length, in order of time."""
    count = max(1, min(blocks, len(values) // MIN_BLOCK))
    return [float(np.median(part)) for part in np.array_split(values, count)]


def median_interval(rounds: Sequence[Sequence[float]], *, seed: int) -> tuple[float, float]:
    """95 % interval of the median of block medians: the wider of what the blocks and what the rounds say.

    Whole blocks are resampled, since samples near in time are alike. Between rounds stands a new process on a machine
    that has gone on living, and these differ by more than the blocks of one round do: their medians, taken as draws of
    which nothing else is known, give Student's interval.
    """
    centre = float(np.median(np.concatenate(rounds)))
    medians = _resampled(rounds, seed)
    own = [float(np.median(blocks)) for blocks in rounds]
    reach = math.exp(_reach(*_between(rounds)))
    low, high = float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))
    return min(low, *own, centre / reach), max(high, *own, centre * reach)


def repeatability(rounds: Sequence[Sequence[float]]) -> float | None:
    """The ratio that the medians of two such runs should stay below, 95 times in 100; None of fewer than two rounds.

    The repeatability limit of ISO 5725-1 with the scatter of this run's own rounds: what changes more slowly than the
    run lasts (another guest on the same host, the heat of the day) is not in it.
    """
    variance, freedom = _between(rounds)
    return math.exp(_reach(2.0 * variance, freedom)) if freedom else None


def ratio_interval(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int
) -> tuple[float, float, float]:
    """(ratio, low, high) of the second's median over the first's: the wider of two 95 % intervals.

    One resamples rounds and their blocks on both sides, the other is Welch's for the logarithms of the rounds' medians.
    """
    ratios = _resampled(second, seed + 1, rounds_too=True) / _resampled(first, seed, rounds_too=True)
    ratio = float(np.median(np.concatenate(second)) / np.median(np.concatenate(first)))
    sides = [_between(first), _between(second)]
    variance = sum(side for side, _ in sides)
    weights = sum(side**2 / freedom for side, freedom in sides if freedom)
    reach = math.exp(_reach(variance, int(variance**2 / weights) if weights else 0))
    low, high = float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))
    return ratio, min(low, ratio / reach), max(high, ratio * reach)


def _between(rounds: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Variance of the mean of the rounds' log medians, and its degrees of freedom; (0, 0) for one round."""
    logs = np.log([float(np.median(blocks)) for blocks in rounds])
    return (float(logs.var(ddof=1) / len(logs)), len(logs) - 1) if len(logs) > 1 else (0.0, 0)


def _reach(variance: float, freedom: int) -> float:
    """Half of Student's 95 % interval."""
    return STUDENT_T[min(max(freedom, 1), len(STUDENT_T)) - 1] * math.sqrt(variance)


def _resampled(rounds: Sequence[Sequence[float]], seed: int, *, rounds_too: bool = False) -> Values:
    draw = np.random.default_rng(seed)
    parts = [np.asarray(blocks, np.float64) for blocks in rounds]
    medians = np.empty(RESAMPLINGS)
    for index in range(RESAMPLINGS):
        chosen = draw.integers(len(parts), size=len(parts)) if rounds_too else range(len(parts))
        drawn = [parts[i][draw.integers(len(parts[i]), size=len(parts[i]))] for i in chosen]
        medians[index] = np.median(np.concatenate(drawn))
    return medians


def _log_binomial(count: int, share: float) -> Values:
    """Logarithm of the probability of 0, 1, ... `count` successes."""
    logs = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))
    successes = np.arange(count + 1)
    return np.asarray(
        logs[count] - logs - logs[::-1] + successes * math.log(share) + (count - successes) * math.log1p(-share),
        dtype=np.float64,
    )

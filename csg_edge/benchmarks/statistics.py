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
    """95 % interval of the median of block medians, widened to hold each round's own median.

    Whole blocks are resampled, since samples near in time are alike; between rounds stands a new process, which can
    differ by more than the blocks of one do.
    """
    medians = _resampled(rounds, seed)
    own = [float(np.median(blocks)) for blocks in rounds]
    return min(float(np.quantile(medians, 0.025)), *own), max(float(np.quantile(medians, 0.975)), *own)


def ratio_interval(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int
) -> tuple[float, float, float]:
    """(ratio, low, high) of the second's median over the first's, rounds and their blocks resampled on both sides."""
    ratios = _resampled(second, seed + 1, rounds_too=True) / _resampled(first, seed, rounds_too=True)
    ratio = float(np.median(np.concatenate(second)) / np.median(np.concatenate(first)))
    return ratio, min(ratio, float(np.quantile(ratios, 0.025))), max(ratio, float(np.quantile(ratios, 0.975)))


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

"""How fast engines are beside each other: they take turns, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from csg_edge.generation.generator import Generator
from csg_edge.runtimes.base import Results

ROUNDS = 40
WARM_UP = 5
REST_SECONDS = 0.02  # threads of the engine that has had its turn stop spinning


@dataclass(frozen=True)
class Timing:
    """Milliseconds per image at batch 1, from inputs in memory to the image in memory, noise not included."""

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return float(np.median(self.milliseconds))

    @property
    def lower_quartile(self) -> float:
        """What a quarter of the images do not exceed: the engine undisturbed."""
        return float(np.quantile(self.milliseconds, 0.25))

    @property
    def p90(self) -> float:
        """The 90th percentile, by nearest rank."""
        return float(np.quantile(self.milliseconds, 0.9, method="inverted_cdf"))


def speed_up(timing: Timing, other: Timing) -> float:
    """How many times as fast as another: at the median or at the lower quartile, whichever says less.

    On a busy machine stalls of some ten milliseconds decide one of the two alone.
    """
    return min(other.median / timing.median, other.lower_quartile / timing.lower_quartile)


def time_in_turns(
    generators: Mapping[str, Generator], feeds: Sequence[Results], *, rounds: int = ROUNDS
) -> dict[str, Timing]:
    """Run every engine once, then every one again, and so on: label -> its times. The first rounds do not count."""
    results = {label: generator.runtime.allocate(1)[1] for label, generator in generators.items()}
    found: dict[str, list[float]] = {label: [] for label in generators}
    for index in range(WARM_UP + rounds):
        inputs = feeds[index % len(feeds)]
        for label, generator in generators.items():
            time.sleep(REST_SECONDS)
            start = time.perf_counter()
            generator.runtime.run(inputs, results[label])
            if index >= WARM_UP:
                found[label].append(1e3 * (time.perf_counter() - start))
    return {label: Timing(tuple(times)) for label, times in found.items()}

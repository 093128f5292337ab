"""What a calibration is asked for, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from csg_edge.bundle.manifest import Target
from csg_edge.calibration.quality import IMAGES, Quality
from csg_edge.calibration.recipes import Recipe
from csg_edge.calibration.samples import Sample
from csg_edge.calibration.search import Attempt
from csg_edge.calibration.sensitivity import Sensitivity
from csg_edge.calibration.speed import Timing

SAMPLES = 300


@dataclass(frozen=True)
class Settings:
    """What to calibrate, on what. `list` names samples; without it they are drawn by `seed`.

    data: sets to calibrate on (train groups) and to judge by (held-out ones). extra: sets to calibrate on only.
    """

    data: tuple[Path, ...]
    targets: tuple[Target, ...]
    steps: tuple[int, ...]
    report: Path
    recipe: Recipe
    extra: tuple[Path, ...] = ()
    samples: int = SAMPLES
    list: Path | None = None
    seed: int = 0
    images: int = IMAGES


@dataclass(frozen=True)
class Row:
    """One line of the table: an engine, its size, speed and quality."""

    target: str
    steps: int
    size: int
    timing: Timing | None
    quality: Quality
    verdict: str


@dataclass(frozen=True)
class Agreement:
    """How far two int8 engines are apart, beside how far each is from fp32: root mean squares in grey levels."""

    steps: int
    first: str
    second: str
    apart: float
    first_to_fp32: float
    second_to_fp32: float


@dataclass
class Outcome:
    """Everything a calibration found."""

    samples: tuple[Sample, ...]
    fingerprint: str
    attempts: list[Attempt] = field(default_factory=list)  # in the order tried
    chosen: list[Attempt] = field(default_factory=list)  # one a target and number of steps: the one passed, or the best
    rankings: dict[int, tuple[Sensitivity, ...]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every target got its engine."""
        return bool(self.chosen) and all(attempt.passed for attempt in self.chosen)

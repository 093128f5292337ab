"""Sets of images that every metric is tried on: phantoms always, real ultrasound where it is at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from csg_edge.datasets.labelled_set import LabelledSet, read_set
from csg_edge.datasets.phantom import make_phantom
from csg_edge.labels import MSK_SCHEMA
from csg_edge.quality.bootstrap import split_groups
from csg_edge.quality.checks import Features
from csg_edge.quality.descriptors import texture_features
from csg_edge.quality.evaluators import load_evaluators

Pair = tuple[LabelledSet, LabelledSet]
Views = dict[str, Features]
CLASSES = len(MSK_SCHEMA)


def phantom_samples(
    seeds: Sequence[int], looks: Sequence[int], *, size: int = 256, group: int = 3, scene: str | None = None
) -> LabelledSet:
    """Phantoms with their masks, `group` consecutive ones a group."""
    made = [
        make_phantom(seed, appearance_seed=look, size=size, scene=scene)
        for seed, look in zip(seeds, looks, strict=True)
    ]
    return LabelledSet(
        np.stack([phantom.image for phantom in made]),
        np.stack([phantom.mask for phantom in made]),
        tuple(f"{seed}-{look}" for seed, look in zip(seeds, looks, strict=True)),
        tuple(f"group {index // group}" for index in range(len(made))),
    )


def real_samples(root: Path, split: str, *, a_group: int | None = None) -> LabelledSet:
    """Both public sets, at most `a_group` images of each group."""
    parts = []
    for name in ("dltrack_aponeurosis", "usgra_nerve_vessel"):
        found = read_set(root / name, MSK_SCHEMA, split=split, size=256)
        kept = [index for members in found.indices_by_group().values() for index in members[:a_group]]
        parts.append(found.take(kept))
    return LabelledSet.join(parts)


@pytest.fixture(scope="session")
def phantom_pair() -> Pair:
    """Phantoms, and what a perfect generator makes of their masks: the same anatomy under other looks and speckle."""
    seeds = range(2000, 2060)
    return phantom_samples(seeds, seeds), phantom_samples(seeds, range(2500, 2560))


@pytest.fixture(scope="session")
def real_pair(real_data: Path) -> Pair:
    """Two halves of the real train groups."""
    samples = real_samples(real_data, "train", a_group=4)
    first, second = split_groups(samples.groups, rng=np.random.default_rng(1))
    return samples.take(first), samples.take(second)


@pytest.fixture(scope="session", params=["phantom", "real"])
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(f"{request.param}_pair")
    return found


@pytest.fixture(scope="session")
def describe() -> Callable[[LabelledSet], dict[str, Views]]:
    """An image-only and a joint view of a set by the filter bank, and by the shipped encoder, whose joint view is the
    bank's."""
    evaluators = load_evaluators()

    def views(samples: LabelledSet) -> dict[str, Views]:
        found = evaluators.describe(samples)
        return {
            "filters": {"image": texture_features(samples), "joint": found.joint},
            "encoder": {"image": found.embedding, "joint": found.joint},
        }

    return views


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)

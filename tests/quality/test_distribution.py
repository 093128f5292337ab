"""Kernel and Frechet distances on vectors of known distribution, near-duplicates, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csg_edge.errors import InputError
from csg_edge.quality.c2st import c2st_of_features
from csg_edge.quality.distribution import frechet, gaussian_kernel, group_mmd, kid, polynomial_kernel


def vectors(count: int, seed: int, *, shift: float = 0.0, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, size)).astype(np.float32)


def names(count: int, prefix: str = "g", a_group: int = 1) -> list[str]:
    return [f"{prefix}{i // a_group}" for i in range(count)]


def test_frechet_of_gaussians_is_the_squared_shift() -> None:
    found = frechet(vectors(20000, 0, size=3), vectors(20000, 1, shift=2, size=3))
    assert found == pytest.approx(3 * 4, rel=0.03)


def test_kid_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    real, made = vectors(80, 0), vectors(60, 1, shift=0.3)
    before = torch.random.get_rng_state()
    assert kid(real, made, seed=1) == kid(real, made, seed=1) != kid(real, made, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert kid(real, vectors(20, 3), seed=0).subset_size == 20


def test_group_mmd_agrees_with_kid_where_every_image_is_a_group() -> None:
    real, made = vectors(400, 0), vectors(400, 1, shift=0.5)
    figure = group_mmd(
        real, made, names(400, "r"), names(400, "m"), kernel=polynomial_kernel, rng=np.random.default_rng(0)
    )
    assert figure.value == pytest.approx(kid(real, made, seed=0).mean, rel=0.15)
    assert figure.low < figure.value < figure.high


def test_near_duplicates_fool_kid_but_not_its_form_over_groups() -> None:
    """Two halves of one distribution, each group ten near-copies: the distance is 0."""
    subset, over_groups = [], []
    for trial in range(6):
        sides = [
            np.repeat(vectors(12, 2 * trial + side), 10, axis=0) + vectors(120, 99 + side) * 0.05 for side in (0, 1)
        ]
        groups = [names(120, prefix, 10) for prefix in "ab"]
        subset.append(kid(*sides, seed=0).mean)
        over_groups.append(group_mmd(*sides, *groups, kernel=polynomial_kernel, rng=np.random.default_rng(0)).value)
    assert np.mean(subset) > 0.5
    assert abs(np.mean(over_groups)) < 0.3 * np.mean(subset)


def test_gaussian_kernel_sees_a_change_of_spread_alone() -> None:
    real, made = vectors(100, 0), 1.5 * vectors(100, 1)
    figure = group_mmd(
        real, made, names(100, "r"), names(100, "m"), kernel=gaussian_kernel(real), rng=np.random.default_rng(0)
    )
    assert figure.low > 0


def test_c2st_of_equal_halves_is_at_chance_and_of_shifted_ones_above() -> None:
    groups = (names(100, "r", 4), names(100, "m", 4))
    equal = [
        c2st_of_features(vectors(100, 2 * trial), vectors(100, 2 * trial + 1), *groups, seed=trial).accuracy
        for trial in range(10)
    ]
    assert np.mean([figure.value for figure in equal]) == pytest.approx(0.5, abs=0.04)
    assert sum(figure.low <= 0.5 <= figure.high for figure in equal) >= 7
    shifted = c2st_of_features(vectors(100, 0), vectors(100, 1, shift=1), *groups, seed=0)
    assert shifted.accuracy.low > 0.85
    assert shifted.generated.mean() > 0 > shifted.real.mean()
    assert c2st_of_features(vectors(100, 0), vectors(100, 1), *groups, seed=0).accuracy == equal[0]


def test_a_classifier_cannot_pass_by_knowing_the_group() -> None:
    """Every group has vectors of its own; real and generated of a group are alike."""
    own = np.repeat(vectors(25, 0, size=40) * 5, 4, axis=0)
    groups = names(100, "g", 4)
    found = c2st_of_features(own + vectors(100, 1, size=40), own + vectors(100, 2, size=40), groups, groups, seed=0)
    assert found.accuracy.low <= 0.5 <= found.accuracy.high


def test_bad_input_is_refused_with_its_remedy() -> None:
    good, rng = vectors(10, 0), np.random.default_rng(0)
    bad = good.copy()
    bad[3, 2] = np.nan
    with pytest.raises(InputError, match="NaN"):
        kid(good, bad, seed=0)
    with pytest.raises(InputError, match="same descriptor"):
        frechet(good, vectors(10, 0, size=5))
    with pytest.raises(InputError, match="at least two"):
        kid(good, good[:1], seed=0)
    with pytest.raises(InputError, match="at least two groups"):
        group_mmd(good, good, names(10), ["one"] * 10, kernel=polynomial_kernel, rng=rng)
    with pytest.raises(InputError, match="nearly all equal"):
        gaussian_kernel(np.ones((5, 2), np.float32))
    with pytest.raises(InputError, match="at least two groups"):
        c2st_of_features(good, good, ["one"] * 10, names(10), seed=0)

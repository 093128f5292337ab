"""Noise: the documented algorithm, computed again in plain Python; seeds and their limits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from csg_edge.errors import InputError
from csg_edge.noise import MAX_SEED, noise_for

SHAPE = (16, 64, 64)  # of the shipped bundle: 65,536 values
WORD = 2**64 - 1


def philox_words(seed: int) -> Iterator[int]:
    """Philox4x64-10 (Salmon et al., SC 2011, section 3.3): key (seed, 0), counters 1, 2, 3, ..."""
    block = 0
    while True:
        block += 1
        counter, key = [block, 0, 0, 0], [seed, 0]
        for _ in range(10):
            first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
            counter = [
                (second >> 64) ^ counter[1] ^ key[0],
                second & WORD,
                (first >> 64) ^ counter[3] ^ key[1],
                first & WORD,
            ]
            key = [(key[0] + 0x9E3779B97F4A7C15) & WORD, (key[1] + 0xBB67AE8584CAA73B) & WORD]
        yield from counter


def plain_noise(seed: int, count: int) -> list[float]:
    half = (count + 1) // 2
    words = philox_words(seed)
    uniforms = [((next(words) >> 11) + 0.5) / 2**53 for _ in range(2 * half)]
    radii = [math.sqrt(-2 * math.log(u)) for u in uniforms[:half]]
    angles = [2 * math.pi * u for u in uniforms[half:]]
    cosines = [r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
    sines = [r * math.sin(a) for r, a in zip(radii, angles, strict=True)]
    return (cosines + sines)[:count]


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 7, MAX_SEED])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 5)], ids=["even", "odd"])
def test_the_documented_algorithm_gives_the_same_numbers(seed: int, shape: tuple[int, int, int]) -> None:
    noise = noise_for(seed, shape)
    assert noise.dtype == np.float32
    assert noise.shape == shape
    # The last bit of a logarithm or cosine is the mathematical library's own.
    np.testing.assert_allclose(noise.ravel(), plain_noise(seed, math.prod(shape)), rtol=2e-7, atol=1e-9)


def test_values_are_standard_normal() -> None:
    noise = noise_for(3, SHAPE).astype(np.float64)
    # Five standard errors of 65,536 samples: 1/256, 1/362 and sqrt(24)/256.
    assert noise.mean() == pytest.approx(0.0, abs=0.02)
    assert noise.std() == pytest.approx(1.0, abs=0.014)
    assert np.mean(noise**4) / noise.var() ** 2 == pytest.approx(3.0, abs=0.1)
    assert abs(np.corrcoef(noise.ravel()[:-1], noise.ravel()[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("other", [1, 2**32, 2**63, MAX_SEED])
def test_different_seeds_are_uncorrelated(other: int) -> None:
    correlation = np.corrcoef(noise_for(0, SHAPE).ravel(), noise_for(other, SHAPE).ravel())[0, 1]
    assert abs(correlation) < 0.02


def test_same_bytes_at_once_and_later() -> None:
    first = noise_for(7, SHAPE).tobytes()
    noise_for(8, SHAPE)
    np.random.seed(0)  # the global state plays no part
    assert noise_for(7, SHAPE).tobytes() == first
    assert noise_for(np.uint64(7), SHAPE).tobytes() == first


@pytest.mark.parametrize("seed", [-1, np.int64(-1), 2**64, 1.0, True, math.nan, "1", None], ids=repr)
def test_bad_seeds_are_refused(seed: object) -> None:
    with pytest.raises(InputError, match=r"seed .*give an integer from 0 to 18446744073709551615"):
        noise_for(seed, (1, 2, 2))  # type: ignore[arg-type]

"""Seeds become noise here and nowhere else.

One Philox4x64-10 stream per image (Salmon et al., SC 2011, 10.1145/2063384.2063405): key (seed, 0), counter 1, 2, 3,
...; each counter yields four 64-bit words w. Words in order become uniforms u = ((w >> 11) + 0.5) / 2^53 in (0, 1).
The first half of an image's uniforms are the radii and the second half the angles of Box-Muller in float64: r =
sqrt(-2 ln u), values[i] = r_i cos(2 pi a_i), values[half + i] = r_i sin(2 pi a_i), rounded to float32. A few lines of
C give the same numbers; batch size and order play no part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError

MAX_SEED = 2**64 - 1


def noise_for(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise of one image, `shape` (C, h, w), float32, a function of seed and shape alone.

    Raises InputError for a seed that is not an integer in 0..2^64-1.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) <= MAX_SEED:
        raise InputError(f"seed {seed!r}: give an integer from 0 to {MAX_SEED}")
    count = math.prod(shape)
    half = (count + 1) // 2
    words = np.random.Philox(counter=0, key=np.array([seed, 0], dtype=np.uint64)).random_raw(2 * half)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:half]))
    angle = 2.0 * np.pi * uniform[half:]
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return values[:count].astype(np.float32).reshape(tuple(shape))

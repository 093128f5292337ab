"""Changes to valid files: bytes, numbers, tokens, cuts, repeats, and parts of another file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
TOKENS = (
    b"null", b"-1", b"1e999", b"NaN", b"true", b"[]", b"{}", b'""', b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"../../etc",
    b"99999999999999999999", b"\n", b",", b'"', b"[" * 3000, b"\xc3\x28",
)  # fmt: skip


def mutate(seeds: Sequence[bytes], random: np.random.Generator) -> bytes:
    """One of the files with one to five changes."""
    data = bytearray(seeds[int(random.integers(len(seeds)))])
    for _ in range(int(random.integers(1, 6))):
        if not data:
            return bytes(data)
        at = int(random.integers(len(data)))
        match int(random.integers(9)):
            case 0:
                data[at] ^= 1 << int(random.integers(8))
            case 1:
                data[at] = int(random.integers(256))
            case 2:
                del data[at : at + int(random.integers(1, 17))]
            case 3:
                data[at:at] = data[at : at + int(random.integers(1, 65))]
            case 4:
                number = NUMBERS[int(random.integers(len(NUMBERS)))]
                width = int(random.choice([1, 2, 4, 8]))
                order = "little" if random.random() < 0.5 else "big"
                data[at : at + width] = (number % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
            case 5:
                token = TOKENS[int(random.integers(len(TOKENS)))]
                data[at : at + (len(token) if random.random() < 0.5 else 0)] = token
            case 6:
                if random.random() < 0.2:
                    del data[at:]
            case 7:
                other = seeds[int(random.integers(len(seeds)))]
                start = int(random.integers(len(other)))
                data[at : at + 32] = other[start : start + 32]
            case _:
                digits = [index for index, byte in enumerate(data) if 48 <= byte <= 57]
                if digits:
                    data[int(random.choice(digits))] = int(random.integers(48, 58))
    return bytes(data)

"""Masks and contexts as arrays: what they must be, and how they are stretched to another size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK, LabelSchema


def check_mask(mask: NDArray[np.uint8], schema: LabelSchema, *, name: str) -> NDArray[np.uint8]:
    """Return the mask if it is (H, W) uint8 with every index inside the schema, or NO_MASK where nothing is said.

    Raise InputError naming it otherwise.
    """
    if not isinstance(mask, np.ndarray):
        raise InputError(f"{name}: got {type(mask).__name__}; give class indices as a NumPy array (H, W) uint8")
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        raise InputError(f"{name}: shape {mask.shape}, {mask.dtype}; give class indices as (H, W) uint8")
    highest = int(mask.max())
    if highest >= len(schema):  # some pixels may say nothing
        highest = int(mask[mask != NO_MASK].max(initial=0))
    if highest >= len(schema):
        raise InputError(
            f"{name}: class index {highest} is outside the schema 0..{len(schema) - 1} ({', '.join(schema.names)}); "
            "map your classes to these indices"
        )
    return mask


def check_context(context: NDArray[np.uint8], *, name: str) -> NDArray[np.uint8]:
    """Return the context if it is (H, W) uint8; raise InputError naming it otherwise."""
    if not isinstance(context, np.ndarray):
        raise InputError(f"{name}: got {type(context).__name__}; give grey levels as a NumPy array (H, W) uint8")
    if context.ndim != 2 or context.dtype != np.uint8 or context.size == 0:
        raise InputError(f"{name}: shape {context.shape}, {context.dtype}; give grey levels as (H, W) uint8")
    return context


def resize_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Stretch a mask to (height, width) by area vote: each pixel takes the class that covers most of it."""
    import cv2

    if mask.shape == (height, width):
        return mask
    interpolation = cv2.INTER_AREA if mask.shape[0] >= height and mask.shape[1] >= width else cv2.INTER_LINEAR
    present = classes_in(mask)
    shares = (
        cv2.resize((mask == index).astype(np.float32), (width, height), interpolation=interpolation)
        for index in present
    )
    return most_voted(present, shares)


def class_counts(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(256,) how many pixels of a mask have each index."""
    import cv2

    if not mask.size:
        return np.zeros(256, np.float32)
    counts = cv2.calcHist([np.ascontiguousarray(mask).reshape(1, -1)], [0], None, [256], [0, 256])
    return np.asarray(counts, np.float32).ravel()


def classes_in(mask: NDArray[np.uint8]) -> list[int]:
    """The indices that a mask holds, in order: NumPy's `unique` in a fifteenth of its time."""
    return [int(index) for index in np.flatnonzero(class_counts(mask))]


def most_voted(present: Sequence[int], shares: Iterable[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Of each pixel the class with the largest of the shares (H, W), which come in the order of the classes.

    The first of equals.
    """
    found = zip(present, shares, strict=True)
    first, best = next(found)
    winner = np.full(best.shape, first, np.uint8)
    for index, share in found:
        better = share > best
        np.copyto(winner, np.uint8(index), where=better)
        best = np.maximum(best, share)
    return winner


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Stretch an image to (height, width): area average when shrinking, cubic when growing."""
    import cv2

    if image.shape == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return np.asarray(
        cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), dtype=np.uint8
    )


def image_digest(image: NDArray[np.uint8]) -> str:
    """Of shape and pixels: what provenance knows an image by, without its name."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()

"""A set of images with what is known of each: the unit that every quality metric compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Samples:
    """Images of one size with masks and groups.

    images, masks: (N, H, W) uint8; names, groups: N strings, a group being what may share a subject; contexts:
    (N, H, W) uint8 for generated images, None for real ones. A generated image has the group of its mask.
    """

    images: Image
    masks: Image
    names: tuple[str, ...]
    groups: tuple[str, ...]
    contexts: Image | None = None

    def __post_init__(self) -> None:
        shapes = {self.images.shape, self.masks.shape} | ({self.contexts.shape} if self.contexts is not None else set())
        if len(shapes) != 1 or self.images.ndim != 3:
            raise InputError(
                f"samples of different sizes {sorted(shapes)}; read images, masks and contexts at one size"
            )
        if not len(self.images) == len(self.names) == len(self.groups) or not len(self.images):
            raise InputError(
                f"{len(self.images)} images, {len(self.names)} names, {len(self.groups)} groups; give one of each"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | NDArray[np.intp]) -> Samples:
        """The samples at some positions, in that order."""
        positions = [int(index) for index in indices]
        return replace(
            self,
            images=self.images[positions],
            masks=self.masks[positions],
            names=tuple(self.names[index] for index in positions),
            groups=tuple(self.groups[index] for index in positions),
            contexts=None if self.contexts is None else self.contexts[positions],
        )

    def with_images(self, images: Image) -> Samples:
        """The same masks, names and groups under other images."""
        return replace(self, images=images)

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        """Several sets as one; contexts are kept only if every part has them."""
        contexts = [part.contexts for part in parts if part.contexts is not None]
        return cls(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.masks for part in parts]),
            tuple(name for part in parts for name in part.names),
            tuple(group for part in parts for group in part.groups),
            np.concatenate(contexts) if len(contexts) == len(parts) else None,
        )

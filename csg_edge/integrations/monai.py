"""Synthetic images in MONAI: a dictionary transform."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.type_conversion import convert_to_dst_type

from csg_edge.errors import InputError
from csg_edge.integrations.arrays import CsgEdge
from csg_edge.integrations.pytorch import CsgEdgeTransform


class RandCsgEdged(RandomizableTransform, MapTransform):
    """Puts a synthetic image and its label in the place of a pair, with probability `prob`.

    keys: of image and label, in this order, each (1, H, W). levels: the image's values of black and white where the
    transform stands, as after ScaleIntensityRanged. others: as `CsgEdge` takes them. Draws come from MONAI's own random
    state, which its data loader gives every worker.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.5, *, levels: tuple[float, float] = (0.0, 1.0),
        allow_missing_keys: bool = False, **others: Any,
    ) -> None:  # fmt: skip
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(self.keys) != 2:
            raise InputError(f"keys {self.keys}: give those of image and label")
        self.transform = CsgEdgeTransform(CsgEdge(probability=1.0, **others), levels=levels)
        self._seed = 0

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether and what."""
        super().randomize(data)
        self._seed = int(self.R.randint(2**31)) << 31 | int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        self.randomize()
        if not self._do_transform:
            return found
        image, label = self.keys
        made = self.transform(
            torch.as_tensor(found[image]), torch.as_tensor(found[label]), np.random.default_rng(self._seed)
        )
        for key, value in zip((image, label), made, strict=True):
            found[key] = convert_to_dst_type(value, found[key])[0]  # with the metadata that it came with
        return found

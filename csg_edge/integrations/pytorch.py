"""Synthetic images in PyTorch: a transform of tensors, and a data set around another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from csg_edge.errors import InputError
from csg_edge.integrations.arrays import CsgEdge, worker_random


class CsgEdgeTransform:
    """Puts a synthetic pair in the place of a pair of tensors, now and then.

    augment: what it makes and how often. levels: the image's values of black and white.
    """

    def __init__(self, augment: CsgEdge, *, levels: tuple[float, float] = (0.0, 1.0)) -> None:
        if not levels[0] < levels[1]:
            raise InputError(f"levels {levels}: give black and white, the smaller first")
        self.augment, self.levels = augment, levels

    def __call__(self, image: Tensor, mask: Tensor, random: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(1, H, W) or (H, W) image and mask -> the same shapes, types and devices.

        random: what is drawn from, the worker's own if None. Raises InputError for other shapes.
        """
        for name, tensor in (("image", image), ("mask", mask)):
            if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] != 1):
                raise InputError(f"{name} of shape {tuple(tensor.shape)}; give (1, H, W) or (H, W)")
        low, high = self.levels
        grey = (image.detach().reshape(image.shape[-2:]).float() - low) * (255.0 / (high - low))
        pixels = grey.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        labels = mask.detach().reshape(mask.shape[-2:]).to(torch.uint8).cpu().numpy()
        made, wanted = self.augment.make(pixels, labels, random or worker_random())
        if made is pixels:
            return image, mask
        back = torch.from_numpy(made).to(image.device).float() * ((high - low) / 255.0) + low
        found = torch.from_numpy(wanted).to(mask.device)
        return back.to(image.dtype).reshape(image.shape), found.to(mask.dtype).reshape(mask.shape)


class CsgEdgeDataset(Dataset[Any]):
    """A data set of (image, mask) pairs in which synthetic ones take the place of real ones, now and then."""

    def __init__(self, pairs: Any, augment: CsgEdge, *, levels: tuple[float, float] = (0.0, 1.0)) -> None:
        self.pairs, self.transform = pairs, CsgEdgeTransform(augment, levels=levels)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.pairs[index]
        return self.transform(torch.as_tensor(image), torch.as_tensor(mask))

"""Synthetic images in TorchIO's calling convention: a subject in, a subject out."""

from __future__ import annotations

import copy
from typing import Any

from csg_edge.errors import InputError
from csg_edge.integrations.arrays import CsgEdge
from csg_edge.integrations.pytorch import CsgEdgeTransform


class CsgEdgeSubject:
    """Puts a synthetic pair in the place of a subject's image and label, now and then.

    image, label: names in the subject of single slices, (1, W, H, 1) as TorchIO stores them. levels: the image's values
    of black and white.
    """

    def __init__(
        self, augment: CsgEdge, *, image: str = "image", label: str = "label", levels: tuple[float, float] = (0.0, 1.0)
    ) -> None:  # fmt: skip
        self.transform, self.image, self.label = CsgEdgeTransform(augment, levels=levels), image, label

    def __call__(self, subject: Any) -> Any:
        """A copy of the subject, or the pair replaced in it. Raises InputError for volumes of several slices."""
        found = copy.copy(subject)
        tensors = [found[name].data for name in (self.image, self.label)]
        for name, tensor in zip((self.image, self.label), tensors, strict=True):
            if tensor.ndim != 4 or tensor.shape[0] != 1 or tensor.shape[-1] != 1:
                raise InputError(f"{name} of shape {tuple(tensor.shape)}; give single slices, (1, W, H, 1)")
        # TorchIO has columns before rows.
        made = self.transform(*(tensor[..., 0].transpose(1, 2).contiguous() for tensor in tensors))
        for name, tensor in zip((self.image, self.label), made, strict=True):
            found[name].set_data(tensor.transpose(1, 2)[..., None].contiguous())
        return found

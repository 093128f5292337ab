"""Training batches where training runs: made on the host for a CPU, on the device itself for a GPU.

For a GPU the sets lie in its memory, and what is drawn for an image is done to it there; no pixel passes between host
and device. The numbers drawn are those of `BatchSource`, in a thread ahead of the loop, so batch k of seed s is the one
that the host makes, up to rounding: a grey level here and there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csg_edge.conditions import fibres
from csg_edge.datasets.augmentation import Bend, Geometry, Warp
from csg_edge.datasets.batches import BatchSource, Example, prepared_ahead
from csg_edge.labels import NO_MASK
from csg_edge.training.device import Tensors, tensors

LANCZOS = 8  # pixels each way that an interpolated one is made of
SUBPIXELS = 32  # places between two pixels that OpenCV knows
AHEAD = 3  # batches whose numbers are drawn before they are asked for


class Batches(Protocol):
    """The batches of a source as tensors on a device."""

    def draw(self, index: int) -> Tensors:
        """The batch of one iteration."""
        ...

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, Tensors]]:
        """Batches start..stop-1, prepared ahead."""
        ...


def batches_on(device: torch.device, source: BatchSource) -> Batches:
    """The batches of a source, made where that is fastest."""
    return DeviceBatches(device, source) if device.type == "cuda" else HostBatches(device, source)


class HostBatches:
    """Made on the host: on one core OpenCV takes a tenth of the time that torch takes."""

    def __init__(self, device: torch.device, source: BatchSource) -> None:
        self._device, self._source = device, source

    def draw(self, index: int) -> Tensors:
        return tensors(self._source.draw(index), self._device)

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, Tensors]]:
        for index, batch in self._source.stream(start, stop):
            yield index, tensors(batch, self._device)


class DeviceBatches:
    """Made on the device."""

    def __init__(self, device: torch.device, source: BatchSource) -> None:
        self.source, self.device = source, device
        self._images, self._masks = (
            torch.cat([torch.from_numpy(np.ascontiguousarray(getattr(item, name))) for item in source.sets]).to(device)
            for name in ("images", "masks")
        )
        self._starts = np.cumsum([0, *(len(item) for item in source.sets)])
        self._grid = Grid(tuple(self._images.shape[1:]), device)  # type: ignore[arg-type] - two numbers

    def draw(self, index: int) -> Tensors:
        return self.made(self.source.examples(index))

    def stream(self, start: int, stop: int) -> Iterator[tuple[int, Tensors]]:
        for index, examples in prepared_ahead(self.source.examples, start, stop, ahead=AHEAD):
            yield index, self.made(examples)

    def made(self, examples: Sequence[Example]) -> Tensors:
        """The pixels of what was drawn."""
        places = [int(self._starts[item.which]) + item.index for item in examples]
        image, mask = (stack[self._whole(places)] for stack in (self._images, self._masks))
        looks = self._floats([(item.look.gamma, item.look.gain, item.look.slope) for item in examples])

        context = torch.zeros_like(image)
        others = [row for row, item in enumerate(examples) if isinstance(item.context, int)]
        if others:
            chosen = [int(self._starts[examples[row].which]) + int(examples[row].context) for row in others]  # type: ignore[arg-type] - see `others`
            context[self._whole(others)] = self._images[self._whole(chosen)]
        warped = [(row, item.context) for row, item in enumerate(examples) if isinstance(item.context, Warp)]
        if warped:
            rows = self._whole([row for row, _ in warped])
            context[rows] = lanczos(image[rows], *self._grid.maps([geometry for _, geometry in warped]))
        context = with_looks(context, looks)
        shown = self._floats([[item.context is not None] for item in examples])[:, :, None]
        context = (context * shown).to(torch.uint8)

        bent = [(row, item.geometry) for row, item in enumerate(examples) if item.geometry is not None]
        if bent:
            rows, maps = self._whole([row for row, _ in bent]), self._grid.maps([geometry for _, geometry in bent])
            image[rows], mask[rows] = lanczos(image[rows], *maps), nearest(mask[rows], *maps)
        flipped = self._whole([row for row, item in enumerate(examples) if item.flip])
        image[flipped], mask[flipped] = image[flipped].flip(2), mask[flipped].flip(2)
        image = with_looks(image, looks)

        field = fields_of_images(image) if any(item.field_kept for item in examples) else None
        kept = self._floats([[item.field_kept] for item in examples])[:, :, None, None]
        shape = (len(examples), *fibres.SHAPE)
        field = torch.zeros(shape, device=self.device) if field is None else field * kept
        mask[self._whole([row for row, item in enumerate(examples) if not item.mask_kept])] = NO_MASK
        return Tensors(image, mask, context, field)

    def _whole(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.device, non_blocking=True)

    def _floats(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).to(self.device, non_blocking=True)


class Grid:
    """Coordinates of the pixels of (H, W) images, and sampling maps from what was drawn for several of them."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.shape, self.device = shape, device
        height, width = shape
        self.x = ((torch.arange(width, device=device) + 0.5) / width - 0.5)[None, None, :]
        self.y = ((torch.arange(height, device=device) + 0.5) / height - 0.5)[None, :, None]

    def maps(self, geometries: Sequence[Geometry]) -> tuple[Tensor, Tensor]:
        """Columns and rows (N, H, W) to sample at, in pixels, as `Geometry.maps` has them for each."""
        height, width = self.shape
        elastic = torch.from_numpy(np.stack([item.elastic for item in geometries])).to(self.device)
        wide = F.interpolate(elastic, size=self.shape, mode="bicubic", align_corners=False)
        # x and y of a warp are a linear map of those of the pixel; a bend leaves them, and its field fades.
        linear, fades = [], []
        for item in geometries:
            if isinstance(item, Warp):
                sign, cos, sin = -1.0 if item.flip else 1.0, math.cos(item.tilt), math.sin(item.tilt)
                zoom = item.zoom
                linear.append((sign * zoom * cos, -zoom * sin, item.shift[0],
                               sign * zoom * sin, zoom * cos, item.shift[1], 0.0))  # fmt: skip
            else:
                linear.append((1.0, 0.0, 0.0, 0.0, 1.0, 0.0, item.slope))
            fades.append(isinstance(item, Bend))
        xx, xy, shift_x, yx, yy, shift_y, slope = (
            torch.tensor(linear, dtype=torch.float32).to(self.device).T[:, :, None, None]
        )
        inside = torch.cos(math.pi * self.x) * torch.cos(math.pi * self.y)
        fading = torch.where(torch.tensor(fades).to(self.device)[:, None, None], inside, torch.ones_like(inside))
        columns = xx * self.x + xy * self.y + shift_x + fading * wide[:, 0]
        rows = yx * self.x + yy * self.y + shift_y + fading * wide[:, 1]
        rows = (rows + 0.5) * height - 0.5 + slope * torch.cos(math.pi * self.y) * self.x * height
        return (columns + 0.5) * width - 0.5, rows


def with_looks(images: Tensor, looks: Tensor) -> Tensor:
    """(N, H, W) uint8 images with gamma, gain and slope (N, 3) of each, as `Look.apply`."""
    depth = torch.linspace(-0.5, 0.5, images.shape[1], device=images.device)[None, :, None]
    gamma, gain, slope = looks.T[:, :, None, None]
    levels = (images.float() / 255.0).pow(gamma) * (gain * (1.0 + slope * depth))
    return (levels * 255.0 + 0.5).clamp(0, 255).to(torch.uint8)


def nearest(labels: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """(N, H, W) labels sampled at places (N, H, W) in pixels, those outside mirrored without the border itself."""
    height, width = labels.shape[1:]
    place = _mirrored(rows.round().long(), height) * width + _mirrored(columns.round().long(), width)
    return labels.flatten(1).gather(1, place.flatten(1)).view_as(place)


def lanczos(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """(N, H, W) uint8 images sampled at places (N, H, W) in pixels, as OpenCV's INTER_LANCZOS4 does, and mirrored."""
    height, width = images.shape[1:]
    across, column_weights = _taps(columns, width)
    down, row_weights = _taps(rows, height)
    flat, total = images.flatten(1), torch.zeros_like(columns)
    for row, row_weight in zip(down, row_weights, strict=True):
        line = torch.zeros_like(columns)
        for column, weight in zip(across, column_weights, strict=True):
            line += weight * flat.gather(1, (row * width + column).flatten(1)).view_as(column)
        total += row_weight * line
    return (total + 0.5).clamp(0, 255).to(torch.uint8)


def _taps(places: Tensor, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Positions of the LANCZOS pixels around each place, mirrored, and their weights."""
    fine = (places * SUBPIXELS).round().long()
    first, part = fine // SUBPIXELS, (fine % SUBPIXELS).float() / SUBPIXELS
    positions = [_mirrored(first + offset, size) for offset in range(-LANCZOS // 2 + 1, LANCZOS // 2 + 1)]
    distances = [part - offset for offset in range(-LANCZOS // 2 + 1, LANCZOS // 2 + 1)]
    weights = [torch.sinc(distance) * torch.sinc(distance / (LANCZOS // 2)) for distance in distances]
    total = torch.stack(weights).sum(0)
    return positions, [weight / total for weight in weights]


def _mirrored(position: Tensor, size: int) -> Tensor:
    period = 2 * (size - 1)
    return (size - 1) - ((size - 1) - position.abs() % period).abs()


def fields_of_images(images: Tensor) -> Tensor:
    """Fibre fields (N, 3, 16, 16) of (N, H, W) uint8 images, H and W multiples of 64: `fibres.field_of_image`."""
    smooth = _blurred(images.float()[:, None], fibres.BLUR)
    scharr = smooth.new_tensor([[-3.0, 0.0, 3.0], [-10.0, 0.0, 10.0], [-3.0, 0.0, 3.0]]) / 16.0
    kernels = torch.stack([scharr, scharr.T.contiguous()])[:, None]
    across, down = F.conv2d(F.pad(smooth, (1, 1, 1, 1), mode="reflect"), kernels).split(1, dim=1)
    xx, yy, xy = (F.avg_pool2d(item, fibres.SHRINK) for item in (across * across, down * down, across * down))
    strength = xx + yy
    usual = _blurred(strength, fibres.NEIGHBOURHOOD / fibres.SHRINK) + fibres.FLOOR
    tensor = torch.cat([strength, xx - yy, 2 * xy], dim=1) / usual
    tensor = _blurred(tensor, fibres.AVERAGE / fibres.SHRINK, border=True)
    cells = F.avg_pool2d(tensor, (tensor.shape[2] // fibres.SIDE, tensor.shape[3] // fibres.SIDE))
    weight = cells[:, :1].clamp_min(1e-6)
    vector = torch.stack([-cells[:, 1], cells[:, 2]]) / weight[:, 0]
    vector[0] -= fibres.SPECKLE * fibres.speckle_share(vector)
    vector = vector.transpose(0, 1) * (weight / (weight + fibres.WEAK))
    return torch.cat([vector, torch.ones_like(weight)], dim=1)


def _blurred(images: Tensor, sigma: float, *, border: bool = False) -> Tensor:
    """(N, C, H, W) blurred by a Gaussian as wide as OpenCV makes it; mirrored, with `border` the border itself too."""
    reach = int(sigma * 8 + 1.5) // 2  # round(8 sigma + 1), made odd
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    for dim, taps in ((3, kernel), (2, kernel.transpose(2, 3))):
        size = images.shape[dim]
        positions = torch.arange(-reach, size + reach, device=images.device)
        # Mirrored with the border itself, the period is two images.
        folded = size - (size - (positions + 0.5).abs()).abs() - 0.5 if border else _mirrored(positions, size)
        images = F.conv2d(images.index_select(dim, folded.long()), taps, groups=images.shape[1])
    return images

"""Controlled damage: what a quality metric has to notice. Each step takes a set and returns it damaged, still uint8."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import Image, LabelledSet
from csg_edge.errors import InputError

_STRUCTURE_SIGMA = 5.0  # pixels at 256: coarser is anatomy, finer is speckle


def blur(samples: LabelledSet, *, sigma: float = 0.9) -> LabelledSet:
    """Gaussian blur by `sigma` pixels: the mild softness of a regression-trained generator."""
    return _each(samples, lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32))


def rescale_speckle(samples: LabelledSet, *, factor: float = 1.3) -> LabelledSet:
    """Speckle grown by `factor` about the centre, anatomy and local contrast kept."""

    def rescale(image: NDArray[np.float32]) -> NDArray[np.float32]:
        structure = cv2.GaussianBlur(image, (0, 0), _STRUCTURE_SIGMA)
        texture = image - structure
        strength = np.sqrt(cv2.GaussianBlur(texture * texture, (0, 0), 2 * _STRUCTURE_SIGMA)) + 1
        height, width = image.shape
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, factor)
        # Cubic: linear interpolation would blur as well, which is another damage.
        grown = cv2.warpAffine(
            texture / strength, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
        )
        return np.asarray(structure + grown * strength, np.float32)

    return _each(samples, rescale)


def shift_masks(samples: LabelledSet, *, pixels: int = 8) -> LabelledSet:
    """Masks moved along depth, down and up by turns, borders repeated: the image is drawn beside its mask.

    By turns, so that the average mask stays where it was and only the pairing gives the damage away.
    """
    masks = np.stack([_moved(mask, pixels if i % 2 == 0 else -pixels, 0) for i, mask in enumerate(samples.masks)])
    return LabelledSet(samples.images, masks, samples.names, samples.groups, samples.contexts)


def repeat_one(samples: LabelledSet, *, index: int = 0) -> LabelledSet:
    """The image at `index` under every mask: the collapse of a generator."""
    return samples.with_images(np.repeat(samples.images[index][None], len(samples), axis=0))


def gain(samples: LabelledSet, *, grey_levels: float = 15) -> LabelledSet:
    """Every pixel brighter by some grey levels: another gain, as images are log-compressed."""
    return _each(samples, lambda image: image + np.float32(grey_levels))


def noise(samples: LabelledSet, *, grey_levels: float, rng: np.random.Generator) -> LabelledSet:
    """White Gaussian noise of that standard deviation."""
    return _each(samples, lambda image: image + rng.normal(0, grey_levels, image.shape).astype(np.float32))


def shift_images(samples: LabelledSet, *, rows: int, columns: int) -> LabelledSet:
    """Images moved by some pixels, borders repeated; masks stay."""
    return samples.with_images(np.stack([_moved(image, rows, columns) for image in samples.images]))


def flip(samples: LabelledSet) -> LabelledSet:
    """Images, masks and contexts mirrored left to right."""
    contexts = None if samples.contexts is None else samples.contexts[:, :, ::-1].copy()
    images, masks = samples.images[:, :, ::-1].copy(), samples.masks[:, :, ::-1].copy()
    return LabelledSet(images, masks, samples.names, samples.groups, contexts)


def copy_images(samples: LabelledSet, source: LabelledSet, *, rng: np.random.Generator) -> LabelledSet:
    """Images replaced by randomly chosen ones of `source`: a generator that remembers. Raises InputError on sizes."""
    if samples.images.shape[1:] != source.images.shape[1:]:
        raise InputError(f"images of {samples.images.shape[1:]} and {source.images.shape[1:]}; read both at one size")
    chosen = rng.choice(len(source), len(samples), replace=len(source) < len(samples))
    return samples.with_images(source.images[chosen])


def shuffle_contexts(samples: LabelledSet, *, rng: np.random.Generator) -> LabelledSet:
    """Every image with the context of another: a generator that ignores its context. Raises InputError without any."""
    if samples.contexts is None or len(samples) < 2:
        raise InputError("nothing to shuffle: give at least two generated images with their contexts")
    order = rng.permutation(len(samples))
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)  # one cycle: no image keeps its own
    return LabelledSet(samples.images, samples.masks, samples.names, samples.groups, samples.contexts[partner])


def _each(samples: LabelledSet, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> LabelledSet:
    changed = [change(image.astype(np.float32)) for image in samples.images]
    return samples.with_images(np.rint(np.clip(np.stack(changed), 0, 255)).astype(np.uint8))


def _moved(picture: Image, rows: int, columns: int) -> Image:
    height, width = picture.shape
    down = np.clip(np.arange(height) - rows, 0, height - 1)
    right = np.clip(np.arange(width) - columns, 0, width - 1)
    return np.asarray(picture[down[:, None], right])


def shuffle_tiles(samples: LabelledSet, *, tile: int = 32, rng: np.random.Generator) -> LabelledSet:
    """Tiles change places with others of their class: its texture stays, what runs through them goes."""

    def shuffle(image: Image, mask: Image) -> NDArray[np.float32]:
        places = _tiles(image, tile)
        counts = [np.bincount(mask[place].ravel(), minlength=256) for place in places]
        main = np.array([count.argmax() if count.max() > 0.9 * tile**2 else 256 for count in counts])
        order = np.arange(len(places))
        for index in np.unique(main[main < 256]):  # a tile of several classes stays, or greys would leave their class
            order[main == index] = rng.permutation(order[main == index])
        tiles = _padded_tiles(image, places)
        return _laid(image.shape, places, [tiles[other] for other in order])

    return _each_with_mask(samples, shuffle)


def mirror_tiles(samples: LabelledSet, *, tile: int = 32) -> LabelledSet:
    """Every other tile mirrored left to right, as on a chessboard: fibres that rise fall there."""

    def mirror(image: Image, _: Image) -> NDArray[np.float32]:
        places = _tiles(image, tile)
        columns = image.shape[1] // tile
        tiles = _padded_tiles(image, places)
        odd = [(index // columns + index % columns) % 2 for index in range(len(places))]
        laid = [part[:, ::-1] if turned else part for part, turned in zip(tiles, odd, strict=True)]
        return _laid(image.shape, places, laid)

    return _each_with_mask(samples, mirror)


def scramble_phase(samples: LabelledSet, *, label: int, rng: np.random.Generator) -> LabelledSet:
    """One class replaced by noise of its own power spectrum and grey levels: streaks without a course."""

    def scramble(image: Image, mask: Image) -> NDArray[np.float32]:
        grey = image.astype(np.float32)
        inside = mask == label
        if inside.sum() < 1000:
            return grey
        # A soft border, since a sharp one is a structure of its own.
        window = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 3) * inside
        mean = float((window * grey).sum() / window.sum())
        coarse = cv2.GaussianBlur(np.where(inside, grey, mean), (0, 0), 24)
        spectrum = np.fft.fft2((grey - coarse) * window)
        phases = np.angle(np.fft.fft2(rng.normal(size=grey.shape)))
        noise = np.fft.ifft2(np.abs(spectrum) * np.exp(1j * phases)).real[inside]
        made = grey.copy()
        ranked = np.empty(int(inside.sum()), np.float32)
        order = np.argsort(noise)
        ranked[order] = np.sort((grey - coarse)[inside])
        made[inside] = ranked + coarse[inside]
        return made

    return _each_with_mask(samples, scramble)


_SEAM = (
    4  # pixels: tiles are laid over each other by so much and blended, as a cut edge would be a structure of its own
)


def _tiles(image: Image, tile: int) -> list[tuple[slice, slice]]:
    rows, columns = (range(0, side - tile + 1, tile) for side in image.shape)
    return [(slice(row, row + tile), slice(column, column + tile)) for row in rows for column in columns]


def _padded_tiles(image: Image, places: list[tuple[slice, slice]]) -> list[NDArray[np.float32]]:
    wide = cv2.copyMakeBorder(image.astype(np.float32), _SEAM, _SEAM, _SEAM, _SEAM, cv2.BORDER_REFLECT_101)
    return [
        wide[rows.start : rows.stop + 2 * _SEAM, columns.start : columns.stop + 2 * _SEAM] for rows, columns in places
    ]


def _laid(
    shape: tuple[int, ...], places: list[tuple[slice, slice]], tiles: list[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Tiles at their places. In a seam both are shown with weights whose squares add to 1, so that no grain is lost."""
    height, width = shape
    total = np.zeros((height + 2 * _SEAM, width + 2 * _SEAM), np.float32)
    mean, weights, powers = total.copy(), total.copy(), total.copy()
    side = tiles[0].shape[0]
    ramp = np.minimum((np.arange(side) + 0.5) / (2 * _SEAM), 1).astype(np.float32)
    ramp = np.minimum(ramp, ramp[::-1])
    weight = np.outer(ramp, ramp)
    for (rows, columns), part in zip(places, tiles, strict=True):
        place = slice(rows.start, rows.start + side), slice(columns.start, columns.start + side)
        low = cv2.GaussianBlur(part, (0, 0), _STRUCTURE_SIGMA)
        mean[place] += weight * low
        total[place] += weight * (part - low)
        weights[place] += weight
        powers[place] += weight**2
    made = mean / np.maximum(weights, 1e-6) + total / np.sqrt(np.maximum(powers, 1e-6))
    return np.asarray(made[_SEAM:-_SEAM, _SEAM:-_SEAM])


def _each_with_mask(samples: LabelledSet, change: Callable[[Image, Image], NDArray[np.float32]]) -> LabelledSet:
    changed = [change(image, mask) for image, mask in zip(samples.images, samples.masks, strict=True)]
    return samples.with_images(np.rint(np.clip(np.stack(changed), 0, 255)).astype(np.uint8))

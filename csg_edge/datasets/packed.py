"""Packed sets: labelled sets of one image size in one safetensors file, which moves to another machine as it is.

Images and masks are PNG files one after another in a uint8 tensor, so the packing is lossless and every image carries
its checksums. Reading needs NumPy, OpenCV and safetensors.

Tensors of set number i: `i.images`, `i.masks` (bytes,) uint8; `i.image_ends`, `i.mask_ends` (N,) int64, where each file
ends. Metadata: one JSON object under the key `csg_edge`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.arrays import check_mask
from csg_edge.conditions.decoding import decode_image
from csg_edge.datasets.layouts import Example
from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema
from csg_edge.storage import write_whole

FORMAT = 1
KEY = "csg_edge"
REMEDY = "give a file made by `csg-edge pack`, or pack the folders again"

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class PackedSet:
    """One set of a packed file; `classes` are the set's own, in the order of its mask indices.

    images, masks: one PNG file for each example, of (size, size) pixels. card: the set's data card.
    """

    path: Path
    classes: LabelSchema
    size: int
    examples: tuple[Example, ...]
    images: tuple[bytes, ...]
    masks: tuple[bytes, ...]
    card: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    def read(self, position: int) -> tuple[Image, Image]:
        """Image and mask (size, size) uint8 of one example, in the set's own classes. Raises InputError if damaged."""
        name = f"{self.path}/{self.examples[position].name}"
        image, mask = (decode_image(files[position], Path(name)) for files in (self.images, self.masks))
        if not image.shape == mask.shape == (self.size, self.size) or image.dtype != np.uint8:
            raise InputError(f"{name}: not an image of size {self.size}; {REMEDY}")
        return image, check_mask(mask, self.classes, name=name)


def encode_image(image: Image) -> bytes:
    """A PNG file of an (H, W) uint8 image, as small as OpenCV makes it."""
    import cv2

    options = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_FILTERED]
    options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_ALL_FILTERS]
    return cv2.imencode(".png", image, options)[1].tobytes()


def pack(sets: Sequence[PackedSet]) -> bytes:
    """The packed file of several sets; the same sets give the same bytes."""
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {}
    about = []
    for number, item in enumerate(sets):
        for kind, files in (("image", item.images), ("mask", item.masks)):
            tensors[f"{number}.{kind}s"] = np.frombuffer(b"".join(files), dtype=np.uint8)
            tensors[f"{number}.{kind}_ends"] = np.cumsum([len(file) for file in files], dtype=np.int64)
        about.append(
            {
                "name": item.name,
                "classes": item.classes.names,
                "size": item.size,
                "examples": [asdict(example) for example in item.examples],
                "card": item.card,
            }
        )
    # One key: safetensors writes several in no fixed order.
    return save(tensors, metadata={KEY: json.dumps({"format": FORMAT, "sets": about})})


def write_packed(path: Path, data: bytes) -> None:
    """Write a packed file, whole or not at all. Raises InputError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise InputError(f"--out {path}: cannot write ({error.strerror or error}); choose another folder") from None


def packed_names(path: Path) -> list[str]:
    """The names of the sets in a packed file. Raises InputError if it is none."""
    return [str(about["name"]) for about in _read(path)[0]]


def open_packed(path: Path, name: str) -> PackedSet:
    """One set of a packed file. Raises InputError if the file is none, is damaged, or has no such set."""
    sets, tensors = _read(path, name)
    names = [about["name"] for about in sets]
    if name not in names:
        raise InputError(f"{path}: no set {name!r}; choose from {', '.join(names)}")
    about = sets[names.index(name)]
    try:
        examples = tuple(Example(**row) for row in about["examples"])
        images, masks = (_cut(tensors[f"{kind}s"], tensors[f"{kind}_ends"]) for kind in ("image", "mask"))
        if not len(images) == len(masks) == len(examples):
            raise ValueError
        return PackedSet(
            path / name, LabelSchema(tuple(about["classes"])), int(about["size"]), examples, images, masks,
            dict(about["card"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, InputError, RecursionError):
        raise InputError(f"{path}: a damaged packed set {name!r}; {REMEDY}") from None


def _read(path: Path, name: str | None = None) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """What the file says of its sets, and the tensors of the one called `name` without their number."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise InputError(f"{path}: reading a packed set needs safetensors; pip install safetensors") from None
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[KEY])
            if about["format"] != FORMAT:
                raise InputError(f"{path}: packed sets of format {about['format']!r}, this is csg-edge for {FORMAT}; "
                                 "pack the folders again")  # fmt: skip
            sets = list(about["sets"])
            number = next((str(i) for i, item in enumerate(sets) if item["name"] == name), None)
            keys = [key for key in file.keys() if key.partition(".")[0] == number]  # noqa: SIM118 (no mapping)
            return sets, {key.partition(".")[2]: file.get_tensor(key) for key in keys}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        raise InputError(f"{path}: not a packed set; {REMEDY}") from None


def _cut(data: NDArray[np.uint8], ends: NDArray[np.int64]) -> tuple[bytes, ...]:
    bounds = [0, *ends.tolist()]
    if any(start > end for start, end in pairwise(bounds)) or bounds[-1] != data.size:
        raise ValueError("offsets do not fit the data")
    return tuple(data[start:end].tobytes() for start, end in pairwise(bounds))

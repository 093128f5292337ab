"""Augmented sets as training pipelines take them: a folder with a table, or an nnU-Net v2 data set.

Real images go along by their pixels alone, so no text chunk, EXIF or header of a file passes. Every file is whole or
not there; what a killed run was writing is removed when it goes on (`generation.journal`), not at every file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.augment.make import PREFIX, Made
from csg_edge.augment.sources import Sources
from csg_edge.conditions import nifti
from csg_edge.conditions.arrays import resize_image, resize_mask
from csg_edge.conditions.decoding import decode_image
from csg_edge.conditions.files import read_context, write_png
from csg_edge.conditions.frames import split_frame
from csg_edge.datasets.layouts import GROUPS, LABELS, MANIFEST, NNUNET, NNUNET_ENDINGS, NNUNET_SPLITS
from csg_edge.datasets.nnunet_labels import IGNORE
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK
from csg_edge.storage import write_json, write_whole, written_whole

REAL, SYNTHETIC = "real", "synthetic"
SIZES = ("source", "model")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Entry:
    """One image of the output. position: in the set, of the real image, or of the mask; origin: REAL or SYNTHETIC."""

    name: str
    position: int
    origin: str


class Writer(Protocol):
    """Writes one kind of data set into a folder. table, columns: of the CSV file that lists the images."""

    table: str
    columns: tuple[str, ...]

    def write(self, name: str, position: int, image: Image, mask: Image, origin: str) -> None:
        """An image and its mask, in the set's own numbers and of one size; the position is that of the real mask."""

    def is_whole(self, name: str) -> bool:
        """Whether the files of an image are there."""

    def read(self, item: Entry) -> tuple[Image, Image]:
        """An image that was written and its mask, in the set's own numbers."""

    def finish(self, entries: Sequence[Entry]) -> None:
        """What says which images there are."""


class FolderWriter:
    """images/, masks/, labels.json and manifest.csv, as this package and most training code read them."""

    table: str = MANIFEST
    columns: tuple[str, ...] = ("name", "group", "split", "origin")

    def __init__(self, sources: Sources, out: Path, *, anonymous: bool) -> None:
        self._sources, self._out = sources, out
        self._groups = group_names(sources, anonymous=anonymous)

    def write(self, name: str, position: int, image: Image, mask: Image, origin: str) -> None:
        _write_png(self._out / "images" / f"{name}.png", image)
        self._write_mask(name, mask)

    def _write_mask(self, name: str, mask: Image) -> None:
        _write_png(self._out / "masks" / f"{name}.png", mask)

    def is_whole(self, name: str) -> bool:
        return all((self._out / folder / f"{name}.png").is_file() for folder in ("images", "masks"))

    def read(self, item: Entry) -> tuple[Image, Image]:
        return read_context(self._out / "images" / f"{item.name}.png"), self._read_mask(item.name)

    def _read_mask(self, name: str) -> Image:
        path = self._out / "masks" / f"{name}.png"
        return decode_image(path.read_bytes(), path)

    def finish(self, entries: Sequence[Entry]) -> None:
        source = self._sources.set
        labels: dict[str, Any] = {"names": list(source.classes.names)}
        if source.partly_labelled:
            labels["partly_labelled"] = True
        write_json(self._out / LABELS, labels)
        rows = [
            (item.name, self._groups[source.examples[item.position].group],
             "train" if item.origin == SYNTHETIC else source.examples[item.position].split, item.origin)
            for item in entries
        ]  # fmt: skip
        write_whole(self._out / MANIFEST, _table([self.columns, *rows]))


class NnunetWriter:
    """nnU-Net v2 raw data: imagesTr, labelsTr, dataset.json; splits_final.json with whole groups, and groups.csv.

    An image that was made is trained on in the folds where neither its mask's group nor its context's is validated,
    and validates nowhere.
    """

    table: str = GROUPS
    columns: tuple[str, ...] = ("name", "group")

    def __init__(self, sources: Sources, out: Path, *, anonymous: bool) -> None:
        self._sources, self._out = sources, out
        self._groups = group_names(sources, anonymous=anonymous)
        self._about = self._description()
        self._ending = str(self._about["file_ending"])
        if self._ending.lower() not in NNUNET_ENDINGS:
            raise InputError(f"{self._ending} images cannot be written; give --format folder")

    def _description(self) -> dict[str, Any]:
        source = self._sources.set
        if source.layout == "nnU-Net v2":
            about: dict[str, Any] = json.loads((source.path / NNUNET).read_text(encoding="utf-8-sig"))
            keys = ("channel_names", "labels", "file_ending", "regions_class_order", "overwrite_image_reader_writer")
            return {key: about[key] for key in keys if key in about}
        labels: dict[str, int] = {name: index for index, name in enumerate(source.classes.names)}
        if source.partly_labelled:
            labels[IGNORE] = len(labels)
        return {"channel_names": {"0": "ultrasound"}, "labels": labels, "file_ending": ".png"}

    def write(self, name: str, position: int, image: Image, mask: Image, origin: str) -> None:
        files = self._files(name)
        if self._sources.set.layout != "nnU-Net v2":  # nothing is said there: the highest number
            ignored = self._about["labels"].get(IGNORE)
            if ignored is not None:
                mask = np.where(mask == 0, np.uint8(ignored), mask)
            elif (mask == NO_MASK).any():
                raise InputError(f"{self._sources.set.path}: masks with {NO_MASK} have no number in nnU-Net; give "
                                 "--format folder")  # fmt: skip
        for path, pixels in zip(files, (image, mask), strict=True):
            if self._ending.lower().startswith(".nii"):
                source = self._sources.set.images[position].path
                spacing = nifti.read_header(split_frame(source)[0]).spacing if nifti.is_nifti(source) else (1, 1, 1)
                true = self._sources.read(position)[0].shape
                columns, rows = (spacing[axis] * true[1 - axis] / pixels.shape[1 - axis] for axis in (0, 1))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(
                    path, nifti.encode(pixels, (columns, rows, spacing[2]), packed=path.name.endswith("z")), tidy=False
                )
            else:
                _write_image(path, pixels)

    def _files(self, name: str) -> tuple[Path, Path]:
        return (
            self._out / "imagesTr" / f"{name}_0000{self._ending}",
            self._out / "labelsTr" / f"{name}{self._ending}",
        )

    def is_whole(self, name: str) -> bool:
        return all(path.is_file() for path in self._files(name))

    def read(self, item: Entry) -> tuple[Image, Image]:
        image, mask = self._files(item.name)
        stored = nifti.read_slice(mask) if nifti.is_nifti(mask) else decode_image(mask.read_bytes(), mask)
        return read_context(image), stored

    def finish(self, entries: Sequence[Entry]) -> None:
        write_json(self._out / NNUNET, {**self._about, "numTraining": len(entries)})
        examples = self._sources.set.examples
        rows = [(item.name, self._groups[examples[item.position].group]) for item in entries]
        write_whole(self._out / GROUPS, _table([self.columns, *rows]))
        write_json(self._out / NNUNET_SPLITS, self._folds(entries))

    def _folds(self, entries: Sequence[Entry]) -> list[dict[str, list[str]]]:
        examples, folds = self._sources.set.examples, self._sources.folds
        if folds is None:  # the split of a set that has one
            held = [item for item in entries if examples[item.position].split == "val"]
            return [{"train": [item.name for item in entries if item not in held], "val": [item.name for item in held]}]
        found = []
        for fold in range(self._sources.fold_count):
            validated = {item for item in entries if fold in folds[examples[item.position].group]}
            found.append({
                "train": [item.name for item in entries if item not in validated],
                "val": [item.name for item in entries if item in validated and item.origin == REAL],
            })  # fmt: skip
        return found


def group_names(sources: Sources, *, anonymous: bool) -> dict[str, str]:
    """What groups are called in the output: as they are, or by number, where no real image goes along."""
    groups = sorted({item.group for item in sources.set.examples})
    return {group: f"group_{place:04d}" if anonymous else group for place, group in enumerate(groups)}


def at_size(made: Made, sources: Sources, size: str) -> tuple[Image, Image]:
    """Image and mask, in the set's own numbers, at the size of the real mask's image (`source`) or the model's."""
    image, mask = made.image, made.mask
    if size == "source":
        shape = sources.read(made.position)[0].shape
        image, mask = resize_image(image, *shape), resize_mask(mask, *shape)
    return image, sources.stored(mask)


def check_names(sources: Sources) -> None:
    """Raises InputError for a real image that is named as made ones are."""
    for item in sources.set.examples:
        if item.name.startswith(PREFIX):
            raise InputError(
                f"{sources.set.path}: {item.name} is named as made images are; give the set as it was before"
            )


def _write_png(path: Path, pixels: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, tidy=False) as aside:
        write_png(aside, pixels)


def _write_image(path: Path, pixels: Image) -> None:
    """A PNG, TIFF or BMP, by its suffix."""
    encoded, data = cv2.imencode(path.suffix.lower(), pixels)
    if not encoded:
        raise InputError(f"{path}: an image of shape {pixels.shape} cannot be written; give --format folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data.tobytes(), tidy=False)


def _table(rows: Sequence[Sequence[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()

"""Labelled ultrasound sets: folders of images and masks with groups and splits, all in one label schema."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import read_context, read_mask, resize_image, resize_mask
from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema


@dataclass(frozen=True)
class SetLayout:
    """Where a public set keeps its masks and what its indices mean."""

    masks: str
    names: tuple[str, ...]


PUBLIC_SETS = {
    # masks_layers carries the manual aponeuroses plus derived layers: the richest condition.
    "dltrack_aponeurosis": SetLayout(
        "masks_layers", ("background", "aponeurosis", "superficial_tissue", "muscle", "deep_tissue")
    ),
    "usgra_nerve_vessel": SetLayout("masks", ("background", "nerve", "vessel")),
}


@dataclass(frozen=True)
class LabelledSet:
    """Images with masks of one size, in one schema; `groups` says which images may share a subject.

    images, masks: (N, H, W) uint8; names, groups: N strings; group names are unique over sets.
    """

    name: str
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def indices_by_group(self) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for index, group in enumerate(self.groups):
            groups.setdefault(group, []).append(index)
        return groups


def read_set(directory: Path, schema: LabelSchema, *, split: str, size: int) -> LabelledSet:
    """Read one split of a labelled folder.

    A public set, or `images/`, `masks/`, `labels.json`, `manifest.csv` as `phantom` writes.

    Images and masks are stretched to (size, size). Images without a mask in the layout used are left out. Raises
    InputError for a missing manifest, a class that the schema lacks, or a split without images.
    """
    manifest = directory / "manifest.csv"
    if not manifest.is_file():
        raise InputError(
            f"{directory}: no manifest.csv; give a folder written by `csg-edge phantom` or a known public set"
        )
    layout = PUBLIC_SETS.get(directory.name) or SetLayout("masks", _read_label_names(directory))
    table = np.array([schema.index(name) for name in layout.names], dtype=np.uint8)
    own_schema = LabelSchema(layout.names)

    images, masks, names, groups = [], [], [], []
    with manifest.open(newline="") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or ()
        key = "idx" if "idx" in columns else "name"
        for column in (key, "group", "split"):
            if column not in columns:
                raise InputError(f"{manifest}: no column {column}; write the columns name, group and split")
        for row in rows:
            name = row[key]
            mask_path = directory / layout.masks / f"{name}.png"
            if row["split"] != split or not mask_path.is_file():
                continue
            image = read_context(directory / "images" / f"{name}.png")
            mask = read_mask(mask_path, own_schema)
            if image.shape != mask.shape:
                raise InputError(f"{mask_path}: {mask.shape} mask for a {image.shape} image; export both at one size")
            images.append(resize_image(image, size, size))
            masks.append(resize_mask(table[mask], size, size))
            names.append(name)
            groups.append(f"{directory.name}/{row['group']}")
    if not names:
        raise InputError(f"{directory}: no labelled image in split {split!r}; check the split column of manifest.csv")
    return LabelledSet(directory.name, np.stack(images), np.stack(masks), tuple(names), tuple(groups))


def splits_of(directory: Path) -> set[str]:
    """The names in the split column of a set's manifest."""
    with (directory / "manifest.csv").open(newline="") as file:
        return {row.get("split") or "" for row in csv.DictReader(file)}


def find_sets(root: Path) -> list[Path]:
    """The folder itself if it has a manifest, else its sub-folders that have one.

    Raises InputError if there is none.
    """
    if (root / "manifest.csv").is_file():
        return [root]
    found = sorted(path.parent for path in root.glob("*/manifest.csv"))
    if not found:
        raise InputError(f"{root}: no labelled set here; give a folder with manifest.csv, images/ and masks/")
    return found


def _read_label_names(directory: Path) -> tuple[str, ...]:
    path = directory / "labels.json"
    try:
        return tuple(json.loads(path.read_text())["names"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f'{path}: missing or unreadable; write {{"names": ["background", ...]}} there') from None

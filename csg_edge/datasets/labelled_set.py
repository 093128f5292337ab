"""Labelled ultrasound sets, from folders or a packed file: images and masks of one size in one label schema.

A set is named by a path: a folder (see `layouts`), or `FILE.safetensors/SET` for a set inside a packed file (see
`packed`). So whatever takes folders takes packed files too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.arrays import resize_image, resize_mask
from csg_edge.datasets.layouts import FolderSet, is_set, open_folder
from csg_edge.datasets.packed import PackedSet, open_packed, packed_names
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA, NO_MASK, LabelSchema

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class LabelledSet:
    """Images with masks of one size, in one schema; `groups` says which images may share a subject.

    images, masks: (N, H, W) uint8, masks NO_MASK where nobody labelled; names, groups: N strings; group names are
    unique over sets. contexts: (N, H, W) uint8 for generated images, None for real ones; a generated image has the
    group of its mask. name: of the set, empty where several were joined. Raises InputError for sizes or numbers that do
    not fit together.
    """

    images: Image
    masks: Image
    names: tuple[str, ...]
    groups: tuple[str, ...]
    contexts: Image | None = None
    name: str = ""

    def __post_init__(self) -> None:
        shapes = {self.images.shape, self.masks.shape} | ({self.contexts.shape} if self.contexts is not None else set())
        if len(shapes) != 1 or self.images.ndim != 3:
            raise InputError(f"images, masks or contexts of different sizes {sorted(shapes)}; read them at one size")
        if not len(self.images) == len(self.names) == len(self.groups) or not len(self.images):
            raise InputError(
                f"{len(self.images)} images, {len(self.names)} names, {len(self.groups)} groups; give one of each"
            )

    def __len__(self) -> int:
        return len(self.images)

    def indices_by_group(self) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for index, group in enumerate(self.groups):
            groups.setdefault(group, []).append(index)
        return groups

    def take(self, indices: Sequence[int] | NDArray[np.intp]) -> LabelledSet:
        """The images at some positions, in that order, with all that is known of them."""
        positions = [int(index) for index in indices]
        return replace(
            self,
            images=self.images[positions],
            masks=self.masks[positions],
            names=tuple(self.names[index] for index in positions),
            groups=tuple(self.groups[index] for index in positions),
            contexts=None if self.contexts is None else self.contexts[positions],
        )

    def with_images(self, images: Image) -> LabelledSet:
        """The same masks, names and groups under other images."""
        return replace(self, images=images)

    def resized(self, size: int) -> LabelledSet:
        """Images, masks and contexts stretched to (size, size)."""
        contexts = self.contexts
        return replace(
            self,
            images=np.stack([resize_image(image, size, size) for image in self.images]),
            masks=np.stack([resize_mask(mask, size, size) for mask in self.masks]),
            contexts=None if contexts is None else np.stack([resize_image(item, size, size) for item in contexts]),
        )

    @classmethod
    def join(cls, parts: Sequence[LabelledSet]) -> LabelledSet:
        """Several sets as one; contexts are kept only if every part has them."""
        contexts = [part.contexts for part in parts if part.contexts is not None]
        return cls(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.masks for part in parts]),
            tuple(name for part in parts for name in part.names),
            tuple(group for part in parts for group in part.groups),
            np.concatenate(contexts) if len(contexts) == len(parts) else None,
        )


def read_set(
    directory: Path, schema: LabelSchema, *, split: str, size: int, first_of_groups: int | None = None
) -> LabelledSet:
    """Read one split of a labelled set; with `first_of_groups` only the first image of each of so many groups.

    Images and masks are stretched to (size, size). Raises InputError for a set that is not laid out as `layouts` says,
    a class that the schema lacks, files that cannot be used, a packed set of another size, or a split without images.
    """
    source = open_set(directory)
    if isinstance(source, PackedSet) and source.size != size:
        raise InputError(
            f"{directory}: packed at size {source.size}, but size {size} is needed; pack the folders again with "
            f"--size {size}"
        )
    table = class_table(source, schema)
    images, masks = [], []
    names: list[str] = []
    groups: list[str] = []
    for position, example in enumerate(source.examples):
        group = f"{source.name}/{example.group}"
        if example.split != split:
            continue
        if first_of_groups is not None and (group in groups or len(groups) >= first_of_groups):
            continue
        image, mask = source.read(position)
        images.append(resize_image(image, size, size))
        masks.append(table[resize_mask(mask, size, size)])
        names.append(example.name)
        groups.append(group)
    if not names:
        raise InputError(
            f"{directory}: no labelled image in split {split!r}; check the split column of manifest.csv "
            f"(splits with images: {', '.join(sorted(splits_of(directory))) or 'none'})"
        )
    return LabelledSet(np.stack(images), np.stack(masks), tuple(names), tuple(groups), name=source.name)


def open_set(directory: Path) -> FolderSet | PackedSet:
    """What a set holds, by name, before any pixels are read. Raises InputError if there is no set."""
    return open_packed(directory.parent, directory.name) if directory.parent.is_file() else open_folder(directory)


def splits_of(directory: Path) -> set[str]:
    """The names of a set's splits that have images."""
    return {example.split for example in open_set(directory).examples}


def find_sets(root: Path) -> list[Path]:
    """The folder itself if it is a labelled set, else its sub-folders that are; the sets of a packed file.

    Raises InputError if there is none.
    """
    if root.is_file():
        return [root / name for name in packed_names(root)]
    if root.parent.is_file() or is_set(root):
        return [root]
    found = sorted(path for path in root.glob("*/") if is_set(path))
    if not found:
        raise InputError(
            f"{root}: no labelled set here; give a folder with manifest.csv, images/ and masks/, images/ with masks/ "
            "and labels.json, an nnU-Net v2 data set, or a file made by `csg-edge pack`"
        )
    return found


def schema_of(roots: Sequence[Path]) -> LabelSchema:
    """The classes of all sets below the given paths, background first.

    In the order of MSK_SCHEMA if it has them all, else in order of first appearance. Raises InputError for a set whose
    index 0 is another class than background.
    """
    names: list[str] = []
    for directory in (directory for root in roots for directory in find_sets(root)):
        classes = open_set(directory).classes
        if classes.names[0] != "background":
            raise InputError(f"{directory}: class 0 is {classes.names[0]!r}; index 0 must be named background")
        names.extend(name for name in classes.names if name not in names)
    if set(names) <= set(MSK_SCHEMA.names):
        names.sort(key=MSK_SCHEMA.index)
    return LabelSchema(tuple(names))


def class_table(source: FolderSet | PackedSet, schema: LabelSchema) -> NDArray[np.uint8]:
    """(256,) index in the schema for each of the set's own indices; NO_MASK stays what it is."""
    try:
        table = np.full(256, NO_MASK, np.uint8)
        table[: len(source.classes)] = [schema.index(name) for name in source.classes.names]
        return table
    except InputError as error:
        raise InputError(
            f"{source.path}: {error}; rename the class where the set names its classes, or use a model trained with "
            "the set's own classes (csg-edge train --schema own)"
        ) from None

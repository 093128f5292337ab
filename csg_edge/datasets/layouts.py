"""How labelled sets lie in folders: which image goes with which mask, group and split.

Three layouts: `manifest.csv` beside images/ and masks/ (ours, and two public sets), nnU-Net v2 raw (`dataset.json`),
and a plain folder of images/ and masks/ or labels/. Finding out reads names and tables; pixels are read one by one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import dicom
from csg_edge.conditions.files import IMAGE_SUFFIXES, read_context, read_mask
from csg_edge.conditions.frames import image_name
from csg_edge.datasets.nnunet_labels import StoredLabels, parse_labels
from csg_edge.datasets.set_files import (
    Source,
    find_files,
    find_images,
    find_masks,
    read_classes,
    read_json,
    read_table,
    some_of,
)
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK, LabelSchema

MANIFEST, LABELS, GROUPS = "manifest.csv", "labels.json", "groups.csv"
NNUNET, NNUNET_SPLITS = "dataset.json", "splits_final.json"
NNUNET_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".nii", ".nii.gz")
MASK_FOLDERS = ("masks", "labels")
ELSEWHERE = "elsewhere"  # the split of an image that the first fold leaves out
VAL_SHARE = 0.15  # of the groups, where a set does not say which are for validation

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Example:
    """One image of a set, before its pixels are read. The group says which images may share a subject."""

    name: str
    group: str
    split: str


@dataclass(frozen=True)
class FolderSet:
    """A labelled folder; `classes` are the set's own, in the order of its mask indices.

    partly_labelled: class 0 means that nobody labelled these pixels, not that none of the classes is there. stored:
    what the numbers in the masks mean, where they are not the indices of `classes`.
    """

    path: Path
    layout: str
    classes: LabelSchema
    examples: tuple[Example, ...]
    images: tuple[Source, ...]
    masks: tuple[Path, ...]
    partly_labelled: bool = False
    stored: StoredLabels | None = None

    @property
    def name(self) -> str:
        return self.path.absolute().name

    def read(self, position: int) -> tuple[Image, Image]:
        """Image and mask (H, W) uint8 of one example, at their own size, in the set's own classes.

        What nobody labelled is NO_MASK. Raises InputError for files that cannot be used, or an image and a mask of
        different size.
        """
        source, mask_path = self.images[position], self.masks[position]
        image = read_context(source.path, frame=source.frame)
        mask = read_mask(mask_path, self.stored.numbers if self.stored else self.classes)
        if self.stored:
            mask = self.stored.table[mask]
        if image.shape != mask.shape and dicom.is_dicom(source.path):
            mask = dicom.crop_to_region(mask, source.path)
        if image.shape != mask.shape:
            raise InputError(f"{mask_path}: {mask.shape} mask for a {image.shape} image; export both at one size")
        if self.partly_labelled:
            mask = np.where(mask == 0, np.uint8(NO_MASK), mask)
        return image, mask


@dataclass(frozen=True)
class PublicSet:
    """Where a public set keeps its masks and what its indices mean."""

    masks: str
    names: tuple[str, ...]


PUBLIC_SETS = {
    # masks_layers carries the manual aponeuroses plus derived layers: the richest condition.
    "dltrack_aponeurosis": PublicSet(
        "masks_layers", ("background", "aponeurosis", "superficial_tissue", "muscle", "deep_tissue")
    ),
    "usgra_nerve_vessel": PublicSet("masks", ("background", "nerve", "vessel")),
}
# One artery of several vessels; the bone surface where it was sure. Other sets say it in labels.json.
PARTLY_LABELLED = {"ccaus_carotid", "ultrabones_lower_leg"}


def is_set(directory: Path) -> bool:
    """Whether a folder is laid out as a labelled set."""
    return any(marks(directory) for marks, _ in LAYOUTS)


def open_folder(directory: Path) -> FolderSet:
    """What a labelled folder holds. Raises InputError saying what is missing or at odds."""
    for marks, read in LAYOUTS:
        if marks(directory):
            found = read(directory)
            _check_groups(found)
            return found
    raise InputError(
        f"{directory}: no manifest.csv; give a folder written by `csg-edge phantom`, a known public set, "
        "images/ with masks/ and labels.json, or an nnU-Net v2 data set"
    )


def split_of(groups: Iterable[str]) -> dict[str, str]:
    """Put each group into "train" or "val" by the hash of its name, so that adding images moves no other group.

    A share of VAL_SHARE goes to "val". Of two groups or more, each split gets one: if the hashes leave one empty, the
    nearest group fills it (and may go back when a group with a better claim is added).
    """
    draws = {group: int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12 for group in groups}
    splits = {group: "val" if draw < VAL_SHARE else "train" for group, draw in draws.items()}
    if len(draws) > 1:
        splits[min(draws, key=draws.__getitem__)] = "val"
        splits[max(draws, key=draws.__getitem__)] = "train"
    return splits


def _read_manifest_set(directory: Path) -> FolderSet:
    """Rows without a mask are left out, as the public sets have them."""
    # What says its classes is no public set as it came, whatever it is called: an augmented one, for example.
    public = None if (directory / LABELS).is_file() else PUBLIC_SETS.get(directory.absolute().name)
    if public:
        classes, partly = LabelSchema(public.names), False
    else:
        classes, partly = read_classes(directory / LABELS)
        partly = partly or directory.absolute().name in PARTLY_LABELLED
    rows = read_table(directory / MANIFEST)
    columns = rows[0].keys() if rows else ()
    key = "idx" if "idx" in columns else "name"
    for column in (key, "group", "split"):
        if column not in columns:
            raise InputError(
                f"{directory / MANIFEST}: no column {column}; write the columns name, group and split, a row per image"
            )
    images = find_images(directory / "images")
    masks = find_masks(directory / (public.masks if public else "masks"))
    rows = [row for row in rows if row[key] in masks]
    if not rows:
        raise InputError(f"{directory / MANIFEST}: no row has a mask; names are those of the files without suffix")
    for row in rows:
        if row[key] not in images:
            raise InputError(f"{directory / 'images'}: no image {row[key]}, which {MANIFEST} names; put it there")
    examples = tuple(Example(row[key], row["group"], row["split"]) for row in rows)
    return FolderSet(
        directory, MANIFEST, classes, examples,
        tuple(images[item.name] for item in examples), tuple(masks[item.name] for item in examples), partly,
    )  # fmt: skip


def _read_plain_set(directory: Path) -> FolderSet:
    classes, partly = read_classes(directory / LABELS)
    folder = next(directory / name for name in MASK_FOLDERS if (directory / name).is_dir())
    images, masks = find_images(directory / "images"), find_masks(folder)
    # Seldom are all frames of a clip annotated: those without a mask are left out, unless none has one.
    clips = {source.path for name, source in images.items() if source.frame is not None and name in masks}
    images = {name: source for name, source in images.items() if name in masks or source.path not in clips}
    return replace(
        _pair(directory, "images and masks", classes, images, masks, masks_in=folder), partly_labelled=partly
    )


def _read_nnunet_set(directory: Path) -> FolderSet:
    """nnU-Net v2 raw: `dataset.json`, `imagesTr/NAME_0000.ext`, `labelsTr/NAME.ext`, optionally splits_final.json."""
    path = directory / NNUNET
    about = read_json(path)
    try:
        ending, labels, channels = str(about["file_ending"]), dict(about["labels"]), about["channel_names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InputError(f"{path}: no file_ending, labels or channel_names; write it as nnU-Net v2 asks") from None
    if ending.lower() not in NNUNET_ENDINGS:
        raise InputError(
            f"{path}: {ending} images are not read; convert them to .png, .tif or .nii.gz, which nnU-Net reads too"
        )
    if len(channels) != 1:
        raise InputError(f"{path}: {len(channels)} channels; one channel of grey levels is read")
    stored = parse_labels(labels, path)

    suffixes = (ending.lower(),)
    for name, file in find_files(directory / "imagesTr", suffixes=suffixes).items():
        if not name.endswith("_0000"):
            raise InputError(f"{file}: not named NAME_0000{ending}; name images so, of one channel each")
    found_images = find_images(directory / "imagesTr", suffixes=suffixes)
    images = {re.sub(r"_0000(_f\d+)?$", r"\1", name): source for name, source in found_images.items()}
    masks = find_masks(directory / "labelsTr", suffixes=suffixes)
    found = _pair(directory, "nnU-Net v2", stored.classes, images, masks, masks_in=directory / "labelsTr")
    found = replace(found, stored=stored)
    if not (directory / NNUNET_SPLITS).is_file():
        return found
    return replace(found, examples=_split_by_fold(directory / NNUNET_SPLITS, found.examples))


def _split_by_fold(path: Path, examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """Splits of the first fold. What only other folds name, as images made of what it validates, is in neither."""
    folds = [{name: split for split in ("train", "val") for name in fold[split]} for fold in read_splits(path)]
    splits = {name: ELSEWHERE for fold in folds for name in fold} | folds[0]
    without = [item.name for item in examples if item.name not in splits]
    if without:
        raise InputError(f"{path}: {some_of(without)} not in any fold; add the names, or remove the file")
    return tuple(Example(item.name, item.group, splits[item.name]) for item in examples)


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """Names to train on and to validate by, for each fold of a splits_final.json. Raises InputError without a fold."""
    try:
        folds = [{split: [str(name) for name in fold[split]] for split in ("train", "val")} for fold in read_json(path)]
    except (KeyError, IndexError, TypeError):
        folds = []
    if not folds:
        raise InputError(f"{path}: no train and val of a first fold; write it as nnU-Net does, or remove it")
    return folds


def _pair(
    directory: Path, layout: str, classes: LabelSchema, images: dict[str, Source], masks: dict[str, Path], *,
    masks_in: Path,
) -> FolderSet:  # fmt: skip
    """Images and masks by name, groups from groups.csv or one per image file, splits by the groups' hashes."""
    if not images:
        raise InputError(f"{directory}: no images; put {', '.join(IMAGE_SUFFIXES)} files there")
    if without := sorted(images.keys() - masks.keys()):
        raise InputError(f"{masks_in}: no mask for {some_of(without)}; add masks, or take the images out")
    if without := sorted(masks.keys() - images.keys()):
        raise InputError(f"{masks_in}: no image for {some_of(without)}; add images, or take the masks out")
    groups = _read_groups(directory / GROUPS, images, layout=layout)
    splits = split_of(groups.values())
    if len(splits) < 2:
        raise InputError(
            f"{directory}: one group only; training and validation need two, so add images of other subjects"
            + (f" or correct {GROUPS}" if (directory / GROUPS).is_file() else f" or write {GROUPS} (name,group)")
        )
    examples = tuple(Example(name, groups[name], splits[groups[name]]) for name in sorted(images))
    return FolderSet(
        directory, layout, classes, examples,
        tuple(images[item.name] for item in examples), tuple(masks[item.name] for item in examples),
    )  # fmt: skip


def _read_groups(path: Path, images: dict[str, Source], *, layout: str) -> dict[str, str]:
    """Group of each image; frames of one clip share a group in any case that the table does not tell otherwise."""
    clips = {name: name if source.frame is None else image_name(source.path) for name, source in images.items()}
    if not path.is_file():
        return clips
    rows = read_table(path)
    if not rows or not rows[0].keys() >= {"name", "group"}:
        raise InputError(f"{path}: no columns name and group; write a header name,group and a row per image")
    table = {row["name"]: row["group"] for row in rows}
    without = sorted(name for name in images if not (table.get(name) or table.get(clips[name])))
    if without:
        raise InputError(f"{path}: no group for {some_of(without)}; add rows, with names without suffix")
    return {name: table.get(name) or table[clips[name]] for name in images}


def _check_groups(found: FolderSet) -> None:
    """A group in two splits would be trained on and judged by."""
    splits: dict[str, str] = {}
    for item in found.examples:
        if item.split == ELSEWHERE:
            continue
        if splits.setdefault(item.group, item.split) != item.split:
            raise InputError(
                f"{found.path}: group {item.group} is in splits {splits[item.group]} and {item.split}; "
                "put all images of a group into one split"
            )


def _has_plain_folders(directory: Path) -> bool:
    return (directory / "images").is_dir() and any((directory / name).is_dir() for name in MASK_FOLDERS)


# What marks a layout, and what reads it; the first that fits is taken.
LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path], FolderSet]], ...] = (
    (lambda directory: (directory / MANIFEST).is_file(), _read_manifest_set),
    (lambda directory: (directory / NNUNET).is_file(), _read_nnunet_set),
    (_has_plain_folders, _read_plain_set),
)

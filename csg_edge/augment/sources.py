"""The labelled set that is augmented: its masks and contexts by place, who may meet whom, and what nobody may use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import dicom
from csg_edge.conditions.arrays import classes_in, image_digest, resize_image, resize_mask
from csg_edge.conditions.burned_in import Box, crop_without, find_text
from csg_edge.conditions.contexts import ContextBank, style_of
from csg_edge.conditions.files import list_images, read_context
from csg_edge.conditions.frames import split_frame
from csg_edge.datasets.labelled_set import class_table, open_set
from csg_edge.datasets.layouts import NNUNET_SPLITS, FolderSet, read_splits
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.progress import Progress

LEAST_PIXELS = 50  # a class that covers less of a mask, at the model's size, does not count as shown
LEAST_SIDE = 1 / 3  # of the image: so much of each side is left when text is cut off, or the image is refused
FOLDS = 5  # as nnU-Net has them
KEPT = 64  # images and masks at their own size
KEPT_SMALL = 2048  # masks, and contexts, at the model's: 128 MB each at 256 x 256
TEXT_CHOICES = ("skip", "crop")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Context:
    """Where a context comes from: an image of the set by its position, or a file of the plan's folder."""

    position: int | None
    path: Path | None = None


class Sources:
    """A labelled set, its training images and the contexts that may go with each of them.

    folds: whether an nnU-Net set is multiplied fold by fold; else only the split `train` is. text: what becomes of
    contexts that show text (`conditions.burned_in`) or say that they do (DICOM): they are skipped, or their text is
    cropped. Raises InputError for a set that cannot be read, a class that the schema lacks, or no context left.
    """

    def __init__(
        self, directory: Path, schema: LabelSchema, size: tuple[int, int], *, contexts: Path | None = None,
        text: str = "skip", own: bool = False, folds: bool = False,
    ) -> None:  # fmt: skip
        found = open_set(directory)
        if not isinstance(found, FolderSet):
            raise InputError(f"{directory}: a packed set has no files to go beside; give the folder it was packed from")
        if text not in TEXT_CHOICES:
            raise InputError(f"--burned-in {text}: choose {', '.join(TEXT_CHOICES)}")
        self.set, self.schema, self.size = found, schema, size
        self._table, self._own, self._text = class_table(found, schema), own, text
        self.own_index = _inverse(self._table, found)
        self.folds, self.fold_count = _folds(found) if folds else (None, 0)
        self.positions = tuple(
            position for position, item in enumerate(found.examples) if self.folds is not None or item.split == "train"
        )
        if not self.positions:
            raise InputError(f"{directory}: no image in split train, and only these are multiplied")
        self.others = _other_files(contexts)
        self._boxes: dict[Context, list[Box]] = {}
        self._allowed: dict[str, tuple[Context, ...]] = {}
        self._rings: dict[str, tuple[Context, ...]] = {}
        self.refused: dict[str, str] = {}
        self._read = lru_cache(KEPT)(self._read_now)
        self.mask_digest = lru_cache(KEPT_SMALL)(lambda position: image_digest(self.mask(position)))
        self.allowed = lru_cache(1)(self._allowed_for)  # the images of a mask are made in turn
        self.context_digest = lru_cache(KEPT_SMALL)(lambda context: image_digest(self.context(context)))
        self.mask = lru_cache(KEPT_SMALL)(self._mask)
        self.context = lru_cache(KEPT_SMALL)(self._context)

    def look_for_text(self) -> None:
        """Look at every context there is; fills `refused` with names and reasons."""
        wanted = [Context(position) for position in self.positions]
        wanted += [Context(None, path) for path in self.others]
        progress = Progress("look for text", len(wanted), unit="contexts") if len(wanted) > 100 else None
        for context in wanted:
            if reason := self._why_not(context):
                self.refused[self.context_name(context)] = reason
            elif len(wanted) <= KEPT_SMALL:
                self.context(context)  # while its file is at hand
            if progress:
                progress.advance()
        self._allowed.clear()
        self.allowed.cache_clear()
        for position in self.positions:
            if not self.allowed(position):
                raise InputError(
                    f"{self.set.path}: no context is left for {self.set.examples[position].name}; "
                    + (f"{len(self.refused)} show text: give --burned-in crop" if self.refused else "add images")
                )

    def _why_not(self, context: Context) -> str:
        path = split_frame(self._path(context))[0]
        if dicom.is_dicom(path) and dicom.says_burned_in(path) and not dicom.has_region(path):
            return "says that text is burned in (BurnedInAnnotation)"
        image = self._whole_context(context)
        boxes = find_text(image)
        if not boxes:
            return ""
        if self._text == "crop":
            rows, columns = crop_without(image, boxes)
            height, width = rows.stop - rows.start, columns.stop - columns.start
            if height >= LEAST_SIDE * image.shape[0] and width >= LEAST_SIDE * image.shape[1]:
                self._boxes[context] = boxes
                return ""
            return "text in the midst of the image"
        return "text"

    def group(self, position: int) -> str:
        return self.set.examples[position].group

    def _allowed_for(self, position: int) -> tuple[Context, ...]:
        """The contexts that a mask may meet: of groups that are validated in the same folds as its own.

        So an image made of both can go into training wherever both may. The mask's own image counts only where the
        plan wants it, and then alone.
        """
        if self._own:
            own = Context(position)
            return () if self.context_name(own) in self.refused else (own,)
        return tuple(context for context in self._of_group(self.group(position)) if context.position != position)

    def diverse(self, position: int, seed: int) -> tuple[Context, ...]:
        """The same contexts, each as unlike those before it as possible."""
        group = self.group(position)
        if group not in self._rings:
            contexts = self._of_group(group)
            styles = np.stack([style_of(self.context(context)) for context in contexts])
            bank = ContextBank([Path(str(place)) for place in range(len(contexts))], styles)
            self._rings[group] = tuple(contexts[int(item.path.name)] for item in bank.diverse(len(contexts), seed))
        return tuple(context for context in self._rings[group] if context.position != position)

    def _of_group(self, group: str) -> tuple[Context, ...]:
        if group not in self._allowed:
            found = [Context(other) for other in self.positions if self._same_folds(group, other)]
            found += [Context(None, path) for path in self.others]
            self._allowed[group] = tuple(item for item in found if self.context_name(item) not in self.refused)
        return self._allowed[group]

    def _same_folds(self, group: str, other: int) -> bool:
        return self.folds is None or self.folds[group] == self.folds[self.group(other)]

    def context_name(self, context: Context) -> str:
        """What a user knows a context by."""
        return str(context.path) if context.position is None else self.set.examples[context.position].name

    def _path(self, context: Context) -> Path:
        if context.position is None:
            assert context.path is not None
            return context.path
        return self.set.images[context.position].path

    def _whole_context(self, context: Context) -> Image:
        if context.position is not None:
            return self.read(context.position)[0]
        assert context.path is not None
        return read_context(context.path)

    def _context(self, context: Context) -> Image:
        """(H, W) as it goes into the model, before its appearance is changed; text cut off."""
        image = self._whole_context(context)
        if boxes := self._boxes.get(context):
            image = image[crop_without(image, boxes)]
        return resize_image(np.ascontiguousarray(image), *self.size)

    def read(self, position: int) -> tuple[Image, Image]:
        """Image and mask at their own size, the mask in the set's own classes, NO_MASK where nobody labelled."""
        return self._read(position)

    def _read_now(self, position: int) -> tuple[Image, Image]:
        return self.set.read(position)

    def _mask(self, position: int) -> Image:
        """(H, W) in the schema's classes, at the model's size."""
        return resize_mask(self.to_schema(self.read(position)[1]), *self.size)

    def to_schema(self, mask: Image) -> Image:
        """A mask in the set's own classes in those of the schema."""
        return self._table[mask]

    def present(self) -> NDArray[np.bool_]:
        """(N, K), whether the masks of `positions` show the classes of the schema."""
        found = np.zeros((len(self.positions), len(self.schema)), np.bool_)
        for row, position in enumerate(self.positions):
            found[row] = np.bincount(self.mask(position).ravel(), minlength=256)[: len(self.schema)] >= LEAST_PIXELS
        return found

    def stored(self, mask: Image) -> Image:
        """A mask in the schema's classes as the set stores masks; NO_MASK becomes what the set has for it.

        Raises InputError for a class that the set has not.
        """
        for index in classes_in(mask):
            if self.own_index[index] < 0:
                name = self.schema.names[index] if index < len(self.schema) else "no mask"
                raise InputError(f"{self.set.path}: its masks have no number for {name}; leave it out of the plan")
        return np.asarray(cv2.LUT(mask, self.own_index.astype(np.uint8)), np.uint8)


def _inverse(table: NDArray[np.uint8], found: FolderSet) -> NDArray[np.int16]:
    """(256,) schema index -> number in the set's masks, -1 where there is none."""
    inverse = np.full(256, -1, np.int16)
    for own in range(len(found.classes)):
        inverse[table[own]] = own if found.stored is None else int(np.flatnonzero(found.stored.table == own)[0])
    if found.stored is None:
        inverse[NO_MASK] = 0 if found.partly_labelled else NO_MASK
    else:
        ignored = np.flatnonzero(found.stored.table[: len(found.stored.numbers)] == NO_MASK)
        inverse[NO_MASK] = int(ignored[0]) if len(ignored) else -1
    return inverse


def _folds(found: FolderSet) -> tuple[dict[str, frozenset[int]] | None, int]:
    """For an nnU-Net set the folds in which each group is validated, and how many there are; None for another.

    Those of splits_final.json, else FOLDS of whole groups: nnU-Net by itself deals single images, and an image made
    from another's mask would be trained on where that is validated. Raises InputError for a group on both sides.
    """
    if found.layout != "nnU-Net v2":
        return None, 0
    groups = {item.name: item.group for item in found.examples}
    path = found.path / NNUNET_SPLITS
    if path.is_file():
        splits = read_splits(path)
    else:
        # Groups by the hash of their names, so that a group stays where it is when others are added or renamed.
        order = sorted(set(groups.values()), key=lambda group: hashlib.sha256(group.encode()).digest())
        fold_of = {group: place % min(FOLDS, len(order)) for place, group in enumerate(order)}
        splits = [
            {side: [name for name, group in groups.items() if (fold_of[group] == fold) == (side == "val")]
             for side in ("train", "val")} for fold in range(min(FOLDS, len(order)))
        ]  # fmt: skip
    folds: dict[str, set[int]] = {group: set() for group in groups.values()}
    for fold, split in enumerate(splits):
        sides = {side: {groups[name] for name in split[side] if name in groups} for side in ("train", "val")}
        if both := sorted(sides["train"] & sides["val"]):
            raise InputError(f"{path}: group {both[0]} is trained on and validated in fold {fold}; keep groups whole")
        for group in sides["val"]:
            folds[group].add(fold)
    return {group: frozenset(held) for group, held in folds.items()}, len(splits)


def _other_files(folder: Path | None) -> Sequence[Path]:
    return [] if folder is None else list_images(folder, frame="all")

"""What lies in the folder of a labelled set: images and masks by name, its classes, its tables."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csg_edge.conditions import dicom, dicom_seg
from csg_edge.conditions.colours import find_labelmap, read_colours
from csg_edge.conditions.files import IMAGE_SUFFIXES, is_image_name
from csg_edge.conditions.frames import frame_count, image_name, with_frame
from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema
from csg_edge.storage import read_text


@dataclass(frozen=True)
class Source:
    """Where the pixels of an image are: a file, or one image of a file of several."""

    path: Path
    frame: int | None = None


def find_images(
    folder: Path, *, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, without: frozenset[str] = frozenset()
) -> dict[str, Source]:
    """Images by name: the file name without suffix, and `_f000`, `_f001`, ... for each image of a file of several.

    without: names of files that are not meant.
    """
    found: dict[str, Source] = {}
    for name, path in find_files(folder, suffixes=suffixes).items():
        if name in without:
            continue
        frames = frame_count(path)
        if frames == 1:
            found[name] = Source(path)
        else:
            found.update({f"{name}_f{frame:03d}": Source(path, frame) for frame in range(frames)})
    return found


def find_masks(folder: Path, *, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Masks by name, those of a volume by slice, and of a clip by frame, as the images have them."""
    segmentations = {
        name: path for name, path in find_files(folder, suffixes=suffixes).items()
        if path.suffix.lower() in dicom.SUFFIXES and path.is_file() and dicom_seg.is_segmentation(path)
    }  # fmt: skip
    found: dict[str, Path] = {}
    for name, path in segmentations.items():
        frames = dicom_seg.labelled_frames(path)
        if frames is None:
            found[name] = path
        else:
            found.update({f"{name}_f{frame:03d}": with_frame(path, frame) for frame in frames})
    others = find_images(folder, suffixes=suffixes, without=frozenset(segmentations))
    return found | {
        name: source.path if source.frame is None else with_frame(source.path, source.frame)
        for name, source in others.items()
    }


def find_files(folder: Path, *, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Image files by name without suffix. Raises InputError for a missing folder or two files of one name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; put the images or masks of the set there")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_image_name(path, suffixes):
            continue
        name = image_name(path)
        if not _is_text(name):
            raise InputError(f"{folder}: a file name that is no Unicode ({name!a}); rename it")
        if name in found:
            raise InputError(f"{folder}: {found[name].name} and {path.name} share a name; keep one of them")
        found[name] = path
    return found


def _is_text(name: str) -> bool:
    """Whether a name can be written into a table; a name of other bytes than UTF-8 cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_classes(path: Path) -> tuple[LabelSchema, bool]:
    """Classes of labels.json, and whether it says `"partly_labelled": true`; without one, those of a labelmap.txt."""
    table = find_labelmap(path)
    if not path.exists() and table is not None:
        names = list(dict.fromkeys(read_colours(table).values()))
        return _schema(sorted(names, key=lambda name: name != "background"), table), False
    try:
        about = json.loads(read_text(path))
        names, partly = about["names"], about.get("partly_labelled", False)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError
        if not isinstance(partly, bool):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f'{path}: missing or unreadable; write {{"names": ["background", ...]}} there') from None
    return _schema(names, path), partly


def _schema(names: list[str], path: Path) -> LabelSchema:
    try:
        return LabelSchema(tuple(names))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError for one that cannot be read."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path}: not readable as JSON; write it as nnU-Net v2 asks") from None


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by column. Raises InputError for one that cannot be read."""
    try:
        text = read_text(path)
        # Spreadsheets write semicolons where the comma is the decimal sign, and tabs as "text".
        delimiter = next((mark for mark in (",", ";", "\t") if mark in text.partition("\n")[0]), ",")
        rows = csv.DictReader(io.StringIO(text), delimiter=delimiter)
        return [{key: _plain(value) for key, value in row.items() if key} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: not readable as a table; save it as CSV, UTF-8, with a header") from None


def _plain(value: object) -> str:
    """A cell as text, in the composed form of Unicode as file names are compared (`frames.image_name`)."""
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else ""


def some_of(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

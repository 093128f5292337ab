"""One image of a file that has several, named `FILE#N`: frames of a DICOM clip, pages of a TIFF, slices of NIfTI."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from csg_edge.conditions import dicom, dicom_seg, nifti
from csg_edge.conditions.decoding import read_header
from csg_edge.errors import InputError

TIFF_SUFFIXES = (".tif", ".tiff")
CHOICES = "a number from 0, middle or all"


def split_frame(path: Path) -> tuple[Path, int | None]:
    """`clip.dcm#12` -> (clip.dcm, 12); a path that is a file itself, or names no frame, comes back with None."""
    found = re.fullmatch(r"(.+)#(\d{1,9})", path.name)
    if found is None or path.exists():
        return path, None
    return path.with_name(found[1]), int(found[2])


def with_frame(path: Path, frame: int) -> Path:
    """The name of one frame of a file."""
    return path.with_name(f"{path.name}#{frame}")


def image_name(path: Path) -> str:
    """What an image is called: the file's name without suffix, and `_f012` for frame 12.

    In the composed form of Unicode, NFC: macOS and some archives store an umlaut as two characters, other systems as
    one, and a mask and its context must still find each other.
    """
    file, frame = split_frame(path)
    stem = file.name[: -len(".nii.gz")] if file.name.lower().endswith(".nii.gz") else file.stem
    stem = unicodedata.normalize("NFC", stem)
    return stem if frame is None else f"{stem}_f{frame:03d}"


def frame_count(path: Path) -> int:
    """How many images a file has, or a DICOM Segmentation is of. Raises InputError for a file that cannot be read."""
    if path.exists() and not path.is_file():  # a pipe; whoever reads it refuses it
        return 1
    if nifti.is_nifti(path):
        return nifti.read_header(path).slices
    if dicom.is_dicom(path):
        if dicom_seg.is_segmentation(path):  # its own frames are segments
            return (dicom_seg.labelled_frames(path) or [0])[-1] + 1
        return dicom.frame_count(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        header = read_header(None, path)
        return header.pages if header else 1
    return 1


def choose_frames(path: Path, choice: str | None) -> list[Path]:
    """The images of a file that are meant: the file itself if it has one or `choice` is None, else by name.

    choice: a number, `middle` or `all`. Raises InputError for another choice, or a frame that the file has not.
    """
    if choice is None or split_frame(path)[1] is not None:
        return [path]
    if choice not in ("middle", "all") and not choice.isdecimal():
        raise InputError(f"--frame {choice}: give {CHOICES}")
    count = frame_count(path)
    if count == 1:
        return [path]
    if choice == "all":
        return [with_frame(path, frame) for frame in range(count)]
    frame = count // 2 if choice == "middle" else int(choice)
    if frame >= count:
        raise InputError(f"{path}: no frame {frame}; it has {count}")
    return [with_frame(path, frame)]

"""DICOM Segmentation objects (PS3.3 A.51) as label maps: segments become classes by their labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.dicom import decode_frame, file_to_blame, open_file
from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema

BINARY, FRACTIONAL, LABELMAP = "BINARY", "FRACTIONAL", "LABELMAP"


def is_segmentation(path: Path) -> bool:
    """Whether a DICOM file is a Segmentation. Raises InputError if it cannot be read."""
    return open_file(path, pixels=False)[1].modality == "SEG"


def labelled_frames(path: Path) -> list[int] | None:
    """Which frames of a clip a Segmentation labels, counted from 0; None where it is of a single image.

    Raises InputError for one that cannot be read, or of several images.
    """
    frames = [frame for frame, _ in _places(path, open_file(path, pixels=False)[0])]
    return None if set(frames) <= {None} else sorted({frame or 0 for frame in frames})


def read_segmentation(path: Path, schema: LabelSchema, *, frame: int | None = None) -> NDArray[np.uint8]:
    """(H, W) uint8 class indices of the image, or of one frame of the clip, that a Segmentation labels.

    A segment is the class whose name its label is (case and what is no letter or digit do not count); where segments
    overlap, the one of the higher number counts. A fraction of a half or more is inside. Raises InputError for a
    segment that is no class, a frame that it does not label, and as `labelled_frames`.
    """
    dataset, header = open_file(path)
    places = _places(path, dataset)
    named = sorted({found for found, _ in places if found is not None})
    if frame is None and named:
        raise InputError(f"{path}: labels {len(named)} frames of a clip; name one, {path.name}#{named[0]}")
    if frame is not None and frame not in (named or [0]):
        raise InputError(f"{path}: labels no frame {frame}; those it labels are {', '.join(map(str, named or [0]))}")
    with file_to_blame(path, "segments cannot be read"):
        kind = str(dataset.get("SegmentationType") or BINARY)
        classes = {
            int(item.SegmentNumber): _class_of(str(item.get("SegmentLabel") or ""), schema, path)
            for item in dataset.SegmentSequence
        }
        least = 1 if kind == BINARY else max(1, (int(dataset.get("MaximumFractionalValue") or 255) + 1) // 2)
    mask = np.zeros((header.rows, header.columns), np.uint8)
    for index, (_, segment) in sorted(
        (item for item in enumerate(places) if item[1][0] == frame or not named), key=lambda item: item[1][1] or 0
    ):
        pixels, _ = decode_frame(dataset, header, path, index)
        if kind == LABELMAP:
            for number in np.unique(pixels):
                if number:
                    mask[pixels == number] = _known(classes, int(number), path)
        else:
            mask[pixels >= least] = _known(classes, segment or 0, path)
    return mask


def _places(path: Path, dataset: Any) -> list[tuple[int | None, int | None]]:
    """Of each frame of the file the frame of the clip that it labels and its segment, None where it does not say."""
    found: list[tuple[int | None, int | None]] = []
    images = set()
    with file_to_blame(path, "frames cannot be told apart"):
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
        for item in dataset.PerFrameFunctionalGroupsSequence:
            sources = _first(item, shared, "DerivationImageSequence", "SourceImageSequence")
            segments = _first(item, shared, "SegmentIdentificationSequence")
            frame = None if sources is None else sources.get("ReferencedFrameNumber")
            number = None if segments is None else int(segments.ReferencedSegmentNumber)
            if sources is not None:
                images.add(str(sources.get("ReferencedSOPInstanceUID")))
            if frame is not None:
                frame = int(frame if isinstance(frame, int | str) else frame[0]) - 1
            found.append((frame, number))
    if len(images) > 1:
        raise InputError(f"{path}: labels {len(images)} images; export one Segmentation for each image or clip")
    return found


def _first(item: Any, shared: Any, *names: str) -> Any:
    """The first item of nested sequences, of a frame or of what all frames share; None where one is not there."""
    for group in (item, shared):
        found = group
        for name in names:
            found = None if found is None else next(iter(found.get(name) or ()), None)
        if found is not None:
            return found
    return None


def _class_of(label: str, schema: LabelSchema, path: Path) -> int:
    plain = [_plain(name) for name in schema.names]
    if _plain(label) not in plain:
        raise InputError(f"{path}: segment {label!r} is no class; label segments {', '.join(schema.names[1:])}")
    return plain.index(_plain(label))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")


def _known(classes: dict[int, int], number: int, path: Path) -> int:
    if number not in classes:
        raise InputError(f"{path}: a frame of segment {number}, which it does not describe; export it again")
    return classes[number]

"""Masks and contexts from files: reading what the user brings, and writing PNG.

Decoding is in `csg_edge.conditions.decoding`, DICOM in `csg_edge.conditions.dicom`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import dicom, dicom_seg, nifti
from csg_edge.conditions.arrays import check_context, check_mask
from csg_edge.conditions.colours import find_labelmap, indices_of_colours, read_colours
from csg_edge.conditions.decoding import decode_image, palette_indices, stored_levels
from csg_edge.conditions.frames import choose_frames, split_frame
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK, LabelSchema

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", *dicom.SUFFIXES, *nifti.SUFFIXES)
LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
LARGEST = 1 << 30  # bytes of an image file; what is larger is refused unread
DARKEST_16_BIT = 4096  # a 16-bit image below this has not been scaled to 16 bits: 12-bit data, or 8-bit


def list_images(path: Path, *, frame: str | None = None) -> list[Path]:
    """The images of a folder, sorted by name, or the file itself, which may name a frame (`clip.dcm#12`).

    frame: of files that have several images, `frames.choose_frames`. Raises InputError for a missing path, a folder
    without images, or a frame that a file has not.
    """
    if path.is_file() or split_frame(path)[0].is_file():
        return choose_frames(path, frame)
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; check the path")
    files = sorted(item for item in path.iterdir() if is_image_name(item))
    if not files:
        raise InputError(f"{path}: no images in this folder; put {', '.join(IMAGE_SUFFIXES)} files there")
    return [image for file in files for image in choose_frames(file, frame)]


def is_image_name(path: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> bool:
    """Whether a folder's entry is an image by its name; what begins with a dot is a companion of one or hidden."""
    return path.name.lower().endswith(suffixes) and not path.name.startswith(".")


def read_mask(path: Path, schema: LabelSchema, *, colours: Path | None = None) -> NDArray[np.uint8]:
    """Read a mask: (H, W) uint8 class indices of the schema.

    PNG, TIFF or BMP of 8 or 16 bits, single-channel, three equal channels, these with full alpha, or indexed colours,
    of which the indices count; colours where a table says what they mean (`colours`, or a labelmap.txt beside the
    mask); NIfTI; or DICOM: a Segmentation, or an image of which the stored values count. Raises InputError for a lossy,
    unreadable or colour file, one of other numbers, or an index outside the schema.
    """
    path, frame = split_frame(path)
    _check_is_file(path)
    if nifti.is_nifti(path):
        return _checked(nifti.read_slice(path, frame), schema, path)
    if dicom.is_dicom(path):
        if dicom_seg.is_segmentation(path):
            return dicom_seg.read_segmentation(path, schema, frame=frame)
        return _checked(dicom.read_indices(path, frame=frame), schema, path)
    if path.is_file() and path.suffix.lower() not in LOSSLESS_SUFFIXES:
        raise InputError(f"{path}: masks need a lossless format; save it as PNG or TIFF")
    data = _read(path)
    array = decode_image(data, path, page=frame)
    table = colours or find_labelmap(path)
    if table is not None and array.ndim == 3 and array.dtype == np.uint8 and _is_opaque(array):
        return indices_of_colours(array[..., :3], read_colours(table), schema, mask=path, table=table)
    if array.ndim == 3 or data.startswith(b"BM"):  # OpenCV gives the colours, or in BMP greys, of indexed colours
        indices = palette_indices(data, path)
        array = array if indices is None else indices
    if array.ndim == 3:
        if not _is_opaque(array) or _is_coloured(array[..., :3]):
            raise InputError(
                f"{path}: a colour mask; put a labelmap.txt beside it (name:red,green,blue), or save class indices as "
                "8-bit single-channel PNG"
            )
        array = np.ascontiguousarray(array[..., 0])
    elif array.dtype == np.uint8:
        array = stored_levels(array, data, path)
    if array.dtype == np.uint16 and array.max() <= 255:
        array = array.astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(
            f"{path}: a {array.dtype} mask with values up to {array.max()}; "
            "save class indices as 8-bit single-channel PNG"
        )
    return _checked(array, schema, path)


def _checked(array: NDArray[np.uint8], schema: LabelSchema, path: Path) -> NDArray[np.uint8]:
    """A mask from a file, in which black and white are not taken for classes."""
    if array.size and (array == NO_MASK).all():
        raise InputError(f"{path}: {NO_MASK} everywhere, which means no mask; give --mask none if that is meant")
    if (array == NO_MASK).any() and not array[array != NO_MASK].any():
        raise InputError(
            f"{path}: only 0 and {NO_MASK}, as a picture in black and white; save class indices, 0..{len(schema) - 1}"
        )
    return check_mask(array, schema, name=str(path))


def read_context(path: Path, *, frame: int | None = None) -> NDArray[np.uint8]:
    """Read a context: (H, W) uint8 grey levels; a colour image whose channels are equal is taken as grey.

    16-bit levels are scaled to 8 bits by their full range, DICOM as `csg_edge.conditions.dicom` says. frame: of a
    file of several, counted from 0, as in `clip.dcm#12`. Raises InputError for an unreadable or truly coloured file,
    several images in one TIFF, numbers other than 8 or 16 bits, or 16-bit numbers that use too little of their range to
    be seen.
    """
    path, named = split_frame(path)
    _check_is_file(path)
    frame = named if frame is None else frame
    if nifti.is_nifti(path):
        return check_context(nifti.read_slice(path, frame), name=str(path))
    if dicom.is_dicom(path):
        return check_context(dicom.read_image(path, frame=frame), name=str(path))
    array = decode_image(_read(path), path, page=frame)
    if array.ndim == 3:
        if _is_coloured(array[..., :3]):
            raise InputError(f"{path}: a colour image (Doppler or annotations?); give plain greyscale B-mode")
        array = np.ascontiguousarray(array[..., 0])
    if array.dtype == np.uint16:
        highest = int(array.max())
        if 0 < highest < DARKEST_16_BIT:
            raise InputError(
                f"{path}: a 16-bit image with levels up to {highest} only; save it with 8 bits, or scaled to 16 bits"
            )
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 257 * 255
    if array.dtype != np.uint8:
        raise InputError(f"{path}: a {array.dtype} image; convert it to 8-bit grey levels")
    return check_context(array, name=str(path))


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write (H, W) or (H, W, 3 BGR) uint8. Raises InputError when the file cannot be written."""
    try:
        path.write_bytes(encode_png(image))
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror or error}); choose a writable folder") from None


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """(H, W) or (H, W, 3 BGR) uint8 as a PNG. Raises OSError for what OpenCV cannot encode."""
    import cv2

    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise OSError("PNG encoding failed")
    return data.tobytes()


def _check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise InputError(f"{path}: not a file; give an image file")


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise InputError(f"{path}: {size:,} bytes; an image that can be used has fewer, export it again")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); check the path") from None


def _is_opaque(array: NDArray[Any]) -> bool:
    """array: (H, W, C); whether there is no alpha channel, or one that hides nothing."""
    if array.shape[2] == 3:
        return True
    whole = np.iinfo(array.dtype).max if np.issubdtype(array.dtype, np.integer) else 1
    return array.shape[2] == 4 and bool((array[..., 3] == whole).all())


def _is_coloured(array: NDArray[Any]) -> bool:
    """array: (H, W, 3)"""
    return bool((array != array[..., :1]).any())

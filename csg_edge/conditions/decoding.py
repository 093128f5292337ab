"""From the bytes of an image file to an array: whole, upright, and of a size that memory can hold.

OpenCV decodes. The header is read first, without pixels and mostly by Pillow: how large the image is, which way up, how
many pages.
"""

from __future__ import annotations

import io
import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError

MAX_PIXELS = 50_000_000
"""An image with more is refused unread: 0.4 MB of PNG can stand for gigabytes. CSG_EDGE_MAX_PIXELS sets another."""
LIMIT_VARIABLE = "CSG_EDGE_MAX_PIXELS"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # both byte orders, classic and BigTIFF
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # the tag of TIFF 6.0 and Exif 2.32: where the first row and column of what is stored belong


@dataclass(frozen=True)
class Header:
    """What a file says of its image before any pixel is decoded."""

    width: int
    height: int
    pages: int = 1
    orientation: int = 1
    indexed: bool = False
    bits: int = 8  # of a grey level as stored; OpenCV stretches fewer than 8 to 0..255


def max_pixels() -> int:
    """The most pixels that an image may have. Raises InputError for a limit that is no number."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        return int(text) if text else MAX_PIXELS
    except ValueError:
        raise InputError(f"{LIMIT_VARIABLE}={text}: give a number of pixels, for example 100000000") from None


def check_pixels(width: int, height: int, path: Path) -> None:
    """Raises InputError for an image with more pixels than are allowed."""
    if width * height > (limit := max_pixels()):
        raise InputError(
            f"{path}: {width} x {height} pixels, more than {limit:,}; crop or shrink it, or set {LIMIT_VARIABLE}"
        )


def read_header(data: bytes | None, path: Path) -> Header | None:
    """Size, pages and orientation; None for a file that Pillow does not know. Raises InputError for too many pixels.

    data: of the file; None: only what is needed of it is read.
    """
    if (
        data is not None and data.startswith(PNG_SIGNATURE) and b"eXIf" not in data
    ):  # packed sets are read without Pillow
        width, height = (int.from_bytes(data[start : start + 4]) for start in (16, 20))
        check_pixels(width, height, path)
        bits = data[24] if data[25:26] == b"\0" else 8
        return Header(width, height, indexed=data[25:26] == b"\x03", bits=bits)
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are checked here, and of odd metadata
            with Image.open(path if data is None else io.BytesIO(data)) as image:
                width, height = image.size
                check_pixels(width, height, path)
                orientation = int(image.getexif().get(ORIENTATION, 1))
                return Header(width, height, int(getattr(image, "n_frames", 1)), orientation, image.mode == "P")
    except Image.DecompressionBombError:
        raise InputError(
            f"{path}: more than {max_pixels():,} pixels; crop or shrink it, or set {LIMIT_VARIABLE}"
        ) from None
    except InputError:
        raise
    except Exception:  # a damaged header makes the parser fail anywhere; the decoder has the last word
        return None


def decode_image(data: bytes, path: Path, *, page: int | None = None) -> NDArray[Any]:
    """Decode an image file as it is, upright: (H, W) or (H, W, channels) of any dtype.

    page: of a TIFF of several, counted from 0. Raises InputError naming the file.
    """
    import cv2

    if data.startswith(PNG_SIGNATURE) and not _is_whole_png(data):
        raise InputError(f"{path}: a truncated or damaged PNG; copy or export the file again")
    header = read_header(data, path)
    tiff = data.startswith(TIFF_SIGNATURES)
    pages = header.pages if tiff and header is not None else 1
    if page is None and pages > 1:
        raise InputError(f"{path}: a TIFF of {pages} images; name one, {path.name}#0 to #{pages - 1}")
    if not 0 <= (page or 0) < pages:
        raise InputError(f"{path}: no image {page}; it has {pages}")
    log_level = cv2.utils.logging.setLogLevel(0)  # the message below is the only one a user should see
    try:
        encoded = np.frombuffer(data, dtype=np.uint8)
        if tiff and header is None:  # what Pillow does not know, OpenCV may: two pages tell that there are several
            read = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(0, 2))[1]
            if len(read) > 1:
                raise InputError(f"{path}: a TIFF of several images; save each as a file of its own")
            array = read[0] if read else None
        elif page:
            read = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(page, page + 1))[1]
            array = read[0] if read else None
        else:
            array = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:  # more pixels than OpenCV reads
        array = None
    finally:
        cv2.utils.logging.setLogLevel(log_level)
    if array is None:
        raise InputError(f"{path}: not a readable image; export it again as PNG or TIFF")
    # OpenCV turns a TIFF upright by itself, and nothing else that is decoded unchanged.
    return np.asarray(array) if tiff or header is None else upright(np.asarray(array), header.orientation)


def stored_levels(array: NDArray[np.uint8], data: bytes, path: Path) -> NDArray[np.uint8]:
    """Grey levels as they are stored: 1, where a PNG of 1, 2 or 4 bits is decoded to 255, 85 or 17.

    Tools that make files smaller store few levels so, and the indices of a mask are few.
    """
    header = read_header(data, path)
    return array if header is None or header.bits >= 8 else array // np.uint8(255 // (2**header.bits - 1))


def palette_indices(data: bytes, path: Path) -> NDArray[np.uint8] | None:
    """(H, W) indices of an image with indexed colours, which most labelling tools write; None if it has none."""
    from PIL import Image

    header = read_header(data, path)
    if header is None or not header.indexed:
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return upright(np.array(image, dtype=np.uint8), header.orientation)
    except (OSError, ValueError):
        return None


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror (H, W, ...) pixels as stored into what a viewer shows; orientation 1 to 8, others as 1."""
    turned = {
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: array[::-1].swapaxes(0, 1),
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: array[:, ::-1].swapaxes(0, 1),
    }
    return np.ascontiguousarray(turned.get(orientation, array))


def _is_whole_png(data: bytes) -> bool:
    # OpenCV fills the missing rows of a truncated PNG with zeros and says nothing: background labels out of thin air.
    start = len(PNG_SIGNATURE)
    while start + 12 <= len(data):  # a chunk: length, kind, content, CRC of kind and content
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return False
        if data[start + 4 : start + 8] == b"IEND":
            return True
        start = end
    return False

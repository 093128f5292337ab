"""Masks and contexts: reading, checking and resizing what the user brings. NumPy and OpenCV only."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK, LabelSchema

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def list_images(path: Path) -> list[Path]:
    """The image files of a folder, sorted by name, or the file itself.

    Raises InputError for a missing path or a folder without images.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; check the path")
    files = sorted(item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{path}: no images in this folder; put {', '.join(IMAGE_SUFFIXES)} files there")
    return files


def read_mask(path: Path, schema: LabelSchema) -> NDArray[np.uint8]:
    """Read a mask: (H, W) uint8 class indices of the schema.

    Raises InputError for a lossy, unreadable, colour or 16-bit file, or an index outside the schema.
    """
    if path.is_file() and path.suffix.lower() not in LOSSLESS_SUFFIXES:
        raise InputError(f"{path}: masks need a lossless format; save it as PNG or TIFF")
    array = _decode(path)
    if array.ndim != 2:
        raise InputError(f"{path}: a colour mask; save class indices as 8-bit single-channel PNG")
    if array.dtype != np.uint8:
        raise InputError(f"{path}: a {array.dtype} mask; save class indices as 8-bit single-channel PNG")
    if array.size and (array == NO_MASK).all():
        raise InputError(f"{path}: {NO_MASK} everywhere, which means no mask; give --mask none if that is meant")
    return check_mask(array, schema, name=str(path))


def check_mask(mask: NDArray[np.uint8], schema: LabelSchema, *, name: str) -> NDArray[np.uint8]:
    """Return the mask if it is (H, W) uint8 with every index inside the schema, or NO_MASK everywhere.

    Raise InputError naming it otherwise.
    """
    if not isinstance(mask, np.ndarray):
        raise InputError(f"{name}: got {type(mask).__name__}; give class indices as a NumPy array (H, W) uint8")
    if mask.ndim != 2 or mask.dtype != np.uint8 or mask.size == 0:
        raise InputError(f"{name}: shape {mask.shape}, {mask.dtype}; give class indices as (H, W) uint8")
    highest = int(mask.max())
    if highest >= len(schema) and not (mask == NO_MASK).all():
        raise InputError(
            f"{name}: class index {highest} is outside the schema 0..{len(schema) - 1} ({', '.join(schema.names)}); "
            "map your classes to these indices"
        )
    return mask


def read_context(path: Path) -> NDArray[np.uint8]:
    """Read a context: (H, W) uint8 grey levels; an 8-bit colour image whose channels are equal is taken as grey.

    Raises InputError for an unreadable, truly coloured or 16-bit file.
    """
    array = _decode(path)
    if array.ndim == 3:
        colours = array[..., :3]
        if np.ptp(colours.astype(np.int16), axis=2).max() > 0:
            raise InputError(f"{path}: a colour image (Doppler or annotations?); give plain greyscale B-mode")
        array = np.ascontiguousarray(colours[..., 0])
    if array.dtype != np.uint8:
        raise InputError(f"{path}: a {array.dtype} image; convert it to 8-bit grey levels")
    return check_context(array, name=str(path))


def check_context(context: NDArray[np.uint8], *, name: str) -> NDArray[np.uint8]:
    """Return the context if it is (H, W) uint8; raise InputError naming it otherwise."""
    if not isinstance(context, np.ndarray):
        raise InputError(f"{name}: got {type(context).__name__}; give grey levels as a NumPy array (H, W) uint8")
    if context.ndim != 2 or context.dtype != np.uint8 or context.size == 0:
        raise InputError(f"{name}: shape {context.shape}, {context.dtype}; give grey levels as (H, W) uint8")
    return context


def resize_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Stretch a mask to (height, width) by area vote: each pixel takes the class that covers most of it."""
    import cv2

    if mask.shape == (height, width):
        return mask
    interpolation = cv2.INTER_AREA if mask.shape[0] >= height and mask.shape[1] >= width else cv2.INTER_LINEAR
    present = np.unique(mask)
    shares = [
        cv2.resize((mask == index).astype(np.float32), (width, height), interpolation=interpolation)
        for index in present
    ]
    winner: NDArray[np.uint8] = present[np.argmax(np.stack(shares), axis=0)]
    return winner


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Stretch an image to (height, width): area average when shrinking, cubic when growing."""
    import cv2

    if image.shape == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    return np.asarray(
        cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), dtype=np.uint8
    )


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write (H, W) or (H, W, 3 BGR) uint8. Raises InputError when the file cannot be written."""
    import cv2

    encoded, data = cv2.imencode(".png", image)
    try:
        if not encoded:
            raise OSError("PNG encoding failed")
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror or error}); choose a writable folder") from None


def _decode(path: Path) -> NDArray[Any]:
    import cv2

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); check the path") from None
    if data.startswith(PNG_SIGNATURE) and not _is_whole_png(data):
        raise InputError(f"{path}: a truncated or damaged PNG; copy or export the file again")
    log_level = cv2.utils.logging.setLogLevel(0)  # the message below is the only one a user should see
    try:
        array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:  # more pixels than OpenCV reads
        array = None
    finally:
        cv2.utils.logging.setLogLevel(log_level)
    if array is None:
        raise InputError(f"{path}: not a readable image; export it again as PNG or TIFF")
    return np.asarray(array)


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

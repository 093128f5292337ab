"""NIfTI images and masks (`.nii`, `.nii.gz`) as arrays: what 3D Slicer, ITK-SNAP and most nnU-Net sets write.

A slice is taken along the third axis after the axes are turned to left, posterior, superior by the affine (NIfTI-1,
section "method 3"), which is how ITK counts pixels: columns run left, rows run posterior. So a file that ITK wrote with
the identity as direction comes as it was stored, and a flipped one comes upright. nibabel is imported on use.
"""

from __future__ import annotations

import gzip
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.decoding import check_pixels
from csg_edge.errors import InputError

SUFFIXES = (".nii", ".nii.gz")
AXES = ("L", "P", "S")


@dataclass(frozen=True)
class Header:
    """Size of a slice in pixels, number of slices, and spacing of columns, rows and slices in millimetres."""

    width: int
    height: int
    slices: int
    spacing: tuple[float, float, float]


def is_nifti(path: Path) -> bool:
    """Whether a file is NIfTI, by its suffix."""
    return path.name.lower().endswith(SUFFIXES)


def read_header(path: Path) -> Header:
    """Size and spacing. Raises InputError for a file that cannot be read."""
    return _open(path)[2]


def read_slice(path: Path, index: int | None = None) -> NDArray[np.uint8]:
    """One slice as (H, W) uint8: whole numbers from 0 to 255 as they are.

    index: counted from 0; may be left out for a file of one slice. Raises InputError for an unreadable file, a slice
    that it has not, several slices when none is named, or values that are no whole numbers from 0 to 255.
    """
    image, turn, header = _open(path)
    if index is None and header.slices > 1:
        raise InputError(f"{path}: {header.slices} slices; name one, {path.name}#0 to #{header.slices - 1}")
    if not 0 <= (index or 0) < header.slices:
        raise InputError(f"{path}: no slice {index}; it has {header.slices}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nibabel

            library: Any = nibabel
            stored = np.asanyarray(image.dataobj).reshape(_three(image.shape))
            values = library.orientations.apply_orientation(stored, turn)[:, :, index or 0]
    except (MemoryError, InputError):
        raise
    except Exception:  # a file that was cut, or compressed data that was damaged
        raise InputError(f"{path}: its pixels cannot be read; copy or export the file again") from None
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255 or (values != np.rint(values)).any():
        raise InputError(
            f"{path}: values from {values.min():g} to {values.max():g}; save whole numbers from 0 to 255 (8 bits)"
        )
    return np.ascontiguousarray(values.T.astype(np.uint8))


def encode(slice_: NDArray[np.uint8], spacing: tuple[float, float, float], *, packed: bool) -> bytes:
    """The bytes of a NIfTI file of one slice (H, W), which `read_slice` gives back; packed: with gzip.

    spacing: of columns, rows and slices in millimetres. The header says these and the axes, and no place of a patient.
    """
    try:
        import nibabel
    except ImportError:
        raise InputError("writing NIfTI needs nibabel; pip install 'csg-edge[nifti]'") from None
    library: Any = nibabel
    columns, rows, apart = spacing
    # Columns run left and rows posterior, which NIfTI, whose axes run right and anterior, says with a minus.
    affine = np.diag([-columns, -rows, apart, 1.0])
    image = library.Nifti1Image(np.ascontiguousarray(slice_.T)[:, :, None], affine)
    image.header.set_xyzt_units("mm")
    data: bytes = image.to_bytes()
    return gzip.compress(data, mtime=0) if packed else data


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with three axes: an image of two has one slice."""
    return (*shape, 1, 1)[:3]


def _open(path: Path) -> tuple[Any, Any, Header]:
    """The file with its pixels unread, how its axes are to be turned, and what the header says of the turned image."""
    try:
        import nibabel
    except ImportError:
        raise InputError(f"{path}: reading NIfTI needs nibabel; pip install 'csg-edge[nifti]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library: Any = nibabel  # whose functions have no types
            image, orientations = library.load(path), library.orientations
            if set(image.shape[3:]) - {1}:
                raise InputError(f"{path}: {len(image.shape)} axes; save images of two or three axes")
            shape = _three(image.shape)
            check_pixels(int(shape[0]), int(shape[1]), path)
            check_pixels(int(np.prod(shape, dtype=np.int64)), 1, path)
            if min(shape) < 1:
                raise InputError(f"{path}: an image without pixels; export it again")
            turn = orientations.ornt_transform(
                orientations.io_orientation(image.affine), orientations.axcodes2ornt(AXES)
            )  # fmt: skip
            zooms = (*image.header.get_zooms(), 1.0)[:3]
            came_from = [int(axis) for axis in np.argsort(turn[:, 0])]  # of each turned axis
            width, height, slices = (int(shape[axis]) for axis in came_from)
            columns, rows, apart = (float(zooms[axis]) for axis in came_from)
            return image, turn, Header(width, height, slices, (columns, rows, apart))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: cannot read (no such file); check the path") from None
    except (MemoryError, gzip.BadGzipFile):
        raise InputError(f"{path}: not a readable NIfTI file; copy or export it again") from None
    except Exception as error:  # a damaged header makes the parser fail anywhere
        said = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: not a readable NIfTI file ({said}); copy or export it again") from None

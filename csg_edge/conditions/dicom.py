"""DICOM images and label maps as arrays: frames, tissue region, grey levels. pydicom is imported on use.

Grey levels follow DICOM PS3.3: Modality LUT or rescale (C.11.1), VOI LUT or window (C.11.2) of the classic, top-level
modules, MONOCHROME1 inverted, so that 255 is what a viewer shows as white. Without VOI the full range of BitsStored
becomes 0..255; stored 8-bit levels stay as they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.decoding import check_pixels
from csg_edge.errors import InputError

SUFFIXES = (".dcm", ".dicom")
CHROMA_TOLERANCE = 2  # lossy JPEG rounds the chroma of a grey image by that much

Region = tuple[slice, slice]


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or by the prefix `DICM` after the preamble (PS3.10)."""
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():  # reading a pipe would wait for ever
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@dataclass(frozen=True)
class Header:
    """What is read of a file's elements before its pixels.

    region: rows and columns of the only 2-D tissue region, None where the whole frame is meant. burned_in: whether the
    file itself says that its pixels show text of a person (BurnedInAnnotation, PS3.3 C.7.6.1).
    """

    rows: int
    columns: int
    frames: int
    modality: str
    syntax: str
    region: Region | None
    burned_in: bool


def frame_count(path: Path) -> int:
    """How many frames a file has. Raises InputError if it cannot be read."""
    return open_file(path, pixels=False)[1].frames


def says_burned_in(path: Path) -> bool:
    """Whether a file says that text of a person is burned into its pixels. Raises InputError if it cannot be read."""
    return open_file(path, pixels=False)[1].burned_in


def has_region(path: Path) -> bool:
    """Whether an image is cropped to the only tissue region it names. Raises InputError if it cannot be read."""
    return open_file(path, pixels=False)[1].region is not None


def pixel_size(path: Path) -> tuple[float, float] | None:
    """Centimetres across and down a pixel, of the only 2-D tissue region; None where the file does not say it.

    PS3.3 C.8.5.5: physical delta, units 3. Raises InputError if the file cannot be read.
    """
    dataset, _ = open_file(path, pixels=False)
    with file_to_blame(path, "ultrasound region cannot be read"):
        tissue = [item for item in dataset.get("SequenceOfUltrasoundRegions") or () if item.get("RegionDataType") == 1]
        if len(tissue) != 1 or {tissue[0].get(f"PhysicalUnits{axis}Direction") for axis in "XY"} != {3}:
            return None
        across, down = (abs(float(tissue[0].get(f"PhysicalDelta{axis}") or 0.0)) for axis in "XY")
    return (across, down) if across > 0 and down > 0 else None


def read_image(path: Path, *, frame: int | None = None) -> NDArray[np.uint8]:
    """One frame as (H, W) uint8 grey levels, cropped to the ultrasound region if there is exactly one of tissue in 2-D.

    frame: counted from 0; may be left out for a file of one frame. Raises InputError for an unreadable file, a codec
    that is not installed, a colour image, or several frames when none is named.
    """
    dataset, header = open_file(path)
    pixels, photometric = decode_frame(dataset, header, path, frame)
    if header.region:
        pixels = pixels[header.region]
    return np.ascontiguousarray(_grey(dataset, pixels, photometric, path))


def read_indices(path: Path, *, frame: int | None = None) -> NDArray[np.uint8]:
    """Stored values of a single-channel file as class indices (H, W) uint8, no window applied; frame as above."""
    dataset, header = open_file(path)
    pixels, _ = decode_frame(dataset, header, path, frame)
    if pixels.ndim != 2:
        raise InputError(f"{path}: a colour mask; save class indices as 8-bit single-channel PNG")
    if pixels.min() < 0 or pixels.max() > 255:
        raise InputError(f"{path}: values {pixels.min()}..{pixels.max()} are no class indices; save 8-bit indices")
    return pixels.astype(np.uint8)


def crop_to_region(mask: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Crop a mask drawn on the whole frame of `path` as `read_image` crops the frame; other masks stay as they are."""
    header = open_file(path, pixels=False)[1]
    if header.region is None or mask.shape != (header.rows, header.columns):
        return mask
    return np.ascontiguousarray(mask[header.region])


def open_file(path: Path, *, pixels: bool = True) -> tuple[Any, Header]:
    """The data set and its header. Every element that is no pixel is read here, so that a damaged one is named."""
    try:
        import pydicom
    except ImportError:
        raise InputError(f"{path}: reading DICOM needs pydicom; pip install 'csg-edge[dicom]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are common in the field; what matters is checked here
            dataset = pydicom.dcmread(path, stop_before_pixels=not pixels)
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}); check the path") from None
    except Exception:  # a damaged file makes the parser fail anywhere
        raise InputError(f"{path}: not a readable DICOM file; export it again") from None
    with file_to_blame(path, "header cannot be read"):
        return dataset, _read_header(dataset, path)


def _read_header(dataset: Any, path: Path) -> Header:
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    frames = int(dataset.get("NumberOfFrames") or 1)
    check_pixels(columns, rows, path)
    if min(rows, columns, frames) < (0 if "PixelData" not in dataset else 1):
        raise InputError(f"{path}: {rows} rows, {columns} columns, {frames} frames; export it again")
    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") or ""
    return Header(
        rows, columns, frames, str(dataset.get("Modality") or ""), str(syntax),
        _region(dataset, rows, columns, path), str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "YES",
    )  # fmt: skip


def decode_frame(dataset: Any, header: Header, path: Path, frame: int | None) -> tuple[NDArray[Any], str]:
    """(H, W) or (H, W, 3) stored values and the photometric interpretation they have after decoding."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    if frame is None and header.frames > 1:
        raise InputError(f"{path}: {header.frames} frames; name one, {path.name}#0 to #{header.frames - 1}")
    if not 0 <= (frame or 0) < header.frames:
        raise InputError(f"{path}: no frame {frame}; it has {header.frames}")
    if "PixelData" not in dataset:
        raise InputError(f"{path}: no pixel data; give a DICOM image")
    if not header.syntax:
        raise InputError(f"{path}: no transfer syntax, so its pixel data cannot be told; export it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            syntax = UID(header.syntax)
            decoder = get_decoder(syntax)
    except Exception as error:  # a UID that is none
        raise InputError(f"{path}: transfer syntax {header.syntax} is not known; export it uncompressed") from error
    if not decoder.is_available:
        raise InputError(
            f"{path}: no decoder for {syntax.name} is installed; install one that pydicom uses (pylibjpeg, gdcm) "
            "or export it uncompressed"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Raw, so that the luma of YBR data stays as stored.
            pixels, properties = decoder.as_array(dataset, index=frame or 0, raw=True)
    except Exception:  # decoders fail in as many ways as there are damaged files
        raise InputError(f"{path}: its pixel data cannot be decoded; export it again, uncompressed") from None
    return pixels, str(properties["photometric_interpretation"])


def _region(dataset: Any, height: int, width: int, path: Path) -> Region | None:
    """Rows and columns of the only 2-D tissue region (PS3.3 C.8.5.5: spatial format 1, data type 1), if there is one.

    None without regions, with several of tissue (which one is meant?), or when it is the whole frame.
    """
    tissue = [
        item for item in dataset.get("SequenceOfUltrasoundRegions") or ()
        if item.get("RegionSpatialFormat") == 1 and item.get("RegionDataType") == 1
    ]  # fmt: skip
    if len(tissue) != 1:
        return None
    corners = [tissue[0].get(f"RegionLocation{corner}") for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
    if None in corners:
        return None
    left, top, right, bottom = (int(corner) for corner in corners)
    right, bottom = min(right + 1, width), min(bottom + 1, height)  # the corners belong to the region
    if not (0 <= left < right and 0 <= top < bottom):
        raise InputError(f"{path}: its ultrasound region lies outside the image; export it as PNG, cropped to tissue")
    whole = (left, top, right, bottom) == (0, 0, width, height)
    return None if whole else (slice(top, bottom), slice(left, right))


def _grey(dataset: Any, pixels: NDArray[Any], photometric: str, path: Path) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

    if photometric == "PALETTE COLOR":
        with file_to_blame(path):
            pixels = apply_color_lut(pixels, dataset)
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 3:
        return _grey_of_colour(pixels, photometric, path)
    with file_to_blame(path):
        values = apply_modality_lut(pixels, dataset)
        first, last = _modality_ends(dataset)
        has_lut = bool(dataset.get("VOILUTSequence"))
        windowed = not has_lut and bool(dataset.get("WindowWidth")) and dataset.get("WindowCenter") is not None
    if has_lut:
        whole = values.astype(np.int64)
        with file_to_blame(path):
            values = apply_voi_lut(whole, dataset)
            first, last = 0.0, _highest_of_lut(dataset.VOILUTSequence)
    elif windowed:
        with file_to_blame(path):
            values = apply_voi_lut(values, dataset)
    # pydicom's window runs from `first` to `last`, even where a negative slope makes `first` the larger.
    low, high = (first, last) if windowed else sorted((first, last))
    if low == high or not math.isfinite(high - low):
        raise InputError(f"{path}: its rescale or lookup table gives no range of grey levels; export it as PNG")
    levels = np.rint((values.astype(np.float64) - low) / (high - low) * 255.0).clip(0, 255).astype(np.uint8)
    return np.asarray(255 - levels if photometric == "MONOCHROME1" else levels, dtype=np.uint8)


def _grey_of_colour(pixels: NDArray[Any], photometric: str, path: Path) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8:
        raise InputError(f"{path}: a colour image of {pixels.dtype} levels; give plain greyscale B-mode")
    values = pixels.astype(np.int16)
    if photometric.startswith("YBR"):
        coloured = np.abs(values[..., 1:] - 128).max() > CHROMA_TOLERANCE
    else:
        coloured = np.ptp(values, axis=2).max() > 0
    if coloured:
        raise InputError(f"{path}: a colour image (Doppler or annotations?); give plain greyscale B-mode")
    return np.asarray(pixels[..., 0], dtype=np.uint8)


@contextmanager
def file_to_blame(path: Path, fault: str = "rescale, window or palette cannot be applied") -> Iterator[None]:
    """What pydicom cannot read from the file's elements, or apply to its pixels, is for the file's owner to mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # elements are parsed on access, and fail in as many ways as there are damaged files
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: its {fault} ({said}); export it as PNG") from error


def _modality_ends(dataset: Any) -> tuple[float, float]:
    """What modality LUT or rescale make of the lowest and of the highest value that can be stored, in this order.

    With a negative slope the first is the larger. Windowing keeps this range (PS3.3 C.11.2.1.2).
    """
    if luts := dataset.get("ModalityLUTSequence"):
        return 0.0, _highest_of_lut(luts)
    bits, signed = int(dataset.BitsStored), bool(dataset.get("PixelRepresentation"))
    ends = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is not None and intercept is not None:
        ends = (ends[0] * float(slope) + float(intercept), ends[1] * float(slope) + float(intercept))
    return ends


def _highest_of_lut(luts: Any) -> float:
    return 2.0 ** int(luts[0].LUTDescriptor[2]) - 1

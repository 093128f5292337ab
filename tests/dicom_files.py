"""DICOM files for tests, written with pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundImageStorage


def write_dicom(
    path: Path,
    pixels: NDArray[Any],
    *,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    frames: int | None = None,
    syntax: UID = ExplicitVRLittleEndian,
    data: bytes | None = None,
    **elements: Any,
) -> Path:
    """pixels: ([frames,] H, W[, 3]); `data` replaces their bytes; `elements` are set by keyword."""
    shape = pixels.shape[1:] if frames else pixels.shape
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3.4")
    dataset.Modality = "US"
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = 3 if len(shape) == 3 else 1
    if len(shape) == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    if frames:
        dataset.NumberOfFrames = frames
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = data or pixels.tobytes()
    dataset["PixelData"].VR = "OB" if data or dataset.BitsAllocated == 8 else "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


def tissue_region(left: int, top: int, right: int, bottom: int, *, spatial_format: int = 1) -> Dataset:
    """A region of 2-D tissue; spatial_format 3 makes it a Doppler spectrum. The corners belong to it."""
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType = spatial_format, 1
    region.RegionLocationMinX0, region.RegionLocationMinY0 = left, top
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = right, bottom
    return region

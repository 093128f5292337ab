"""DICOM files for tests, written with pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pack_bits
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid


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


def write_source(path: Path, shape: tuple[int, int], *, frames: int | None = None) -> Path:
    """An ultrasound image, or a clip, with what a Segmentation takes over from it."""
    pixels = np.full((*((frames,) if frames else ()), *shape), 90, np.uint8)
    uid = generate_uid(entropy_srcs=[path.name])
    return write_dicom(
        path, pixels, frames=frames, SOPInstanceUID=uid, PatientID="1", PatientName="a^b", PatientBirthDate="",
        PatientSex="", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.4", AccessionNumber="", StudyID="1",
        StudyDate="20260101", StudyTime="000000", ReferringPhysicianName="", InstanceNumber=1, SeriesNumber=1,
        PatientOrientation=[], Manufacturer="m",
    )  # fmt: skip


def write_segmentation(
    path: Path, image: Path, mask: NDArray[Any], *, kind: str = "BINARY", names: tuple[str, ...] = ("Nerve", "vessel")
) -> Path:
    """mask: ([frames,] H, W) segment numbers, or fractions (..., segments)."""
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    described = [
        SegmentDescription(place, name, codes.SCT.AnatomicalStructure, codes.SCT.Nerve, "MANUAL")
        for place, name in enumerate(names, start=1)
    ]
    found = Segmentation(
        [dcmread(image)], mask, kind, described, series_instance_uid="1.2.3.5", series_number=2,
        sop_instance_uid=generate_uid(), instance_number=1, manufacturer="m", manufacturer_model_name="m",
        software_versions="1", device_serial_number="1", max_fractional_value=200,
    )  # fmt: skip
    found.save_as(path)
    return path


def write_clip_segmentation(path: Path, image: Path, masks: dict[int, NDArray[np.uint8]]) -> Path:
    """Of some frames of a clip; highdicom itself knows clips only with functional groups, which ultrasound has not."""
    first = dcmread(image)
    still = write_source(path.with_suffix(".still"), (first.Rows, first.Columns))
    whole, groups, planes = None, [], []
    for frame, mask in masks.items():
        found = dcmread(write_segmentation(path, still, mask[None]))
        for group in found.PerFrameFunctionalGroupsSequence:
            source = group.DerivationImageSequence[0].SourceImageSequence[0]
            source.ReferencedSOPInstanceUID = first.SOPInstanceUID
            source.ReferencedFrameNumber = frame + 1
            groups.append(group)
        planes.append(found.pixel_array)
        whole = whole or found
    still.unlink()
    assert whole is not None
    whole.PerFrameFunctionalGroupsSequence, whole.NumberOfFrames = groups, len(groups)
    whole.PixelData = pack_bits(np.concatenate(planes))
    whole.save_as(path)
    return path

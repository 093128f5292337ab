"""Augmented sets as DICOM: ultrasound images and segmentations, with nothing of a patient in them.

An image is an object of Ultrasound Image Storage (PS3.3 A.6), Synthetic Data (0008,001C) YES where it was made; its
mask a Segmentation (A.51, by highdicom) that refers to it, pixel for pixel, and a PNG beside. No element is copied from
a source but the size of its pixels. UIDs follow from the job and the image, so that a run that went on after a kill
writes the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge import __version__
from csg_edge.augment.sources import Sources
from csg_edge.augment.writers import SYNTHETIC, Entry, FolderWriter
from csg_edge.conditions import dicom
from csg_edge.conditions.files import read_context
from csg_edge.conditions.frames import split_frame
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK
from csg_edge.storage import write_whole

MAKER = "csg-edge"
SCHEME = "99CSGEDGE"  # of codes for which SNOMED CT in PS3.16 has none
# SNOMED CT as DICOM PS3.16 has it (CID 7151, 7166): value and meaning.
TISSUES = {
    "superficial_tissue": ("71966008", "Subcutaneous tissue"),
    "muscle": ("127954009", "Skeletal muscle"),
    "deep_tissue": ("87784001", "Soft tissue"),
    "nerve": ("91728009", "Nerve"),
    "vessel": ("59820001", "Blood Vessel"),
    "tendon": ("13024002", "Tendon"),
    "bone": ("272673000", "Bone"),
}
FINDINGS = {"ditf": "Discontinuity in tendon fibres"}
ANATOMY, ABNORMAL = ("91723000", "Anatomical Structure"), ("49755003", "Morphologically Abnormal Structure")

Image = NDArray[np.uint8]


class DicomWriter(FolderWriter):
    """images/NAME.dcm, segmentations/NAME.dcm, masks/NAME.png, labels.json and manifest.csv.

    job: stands for the job in UIDs. began: YYYYMMDD, the day it began, which DICOM wants to know.
    """

    def __init__(self, sources: Sources, out: Path, *, anonymous: bool, job: str, began: str) -> None:
        super().__init__(sources, out, anonymous=anonymous)
        try:
            import highdicom  # noqa: F401
        except ImportError:
            raise InputError("--format dicom needs highdicom; pip install 'csg-edge[augment]'") from None
        self._job, self._began = job, began
        self._numbers = {group: place + 1 for place, group in enumerate(sorted(self._groups))}

    def write(self, name: str, position: int, image: Image, mask: Image, origin: str) -> None:
        item = self._sources.set.examples[position]
        picture = self._picture(name, position, image, item.group, origin)
        encoded = _encode(picture)
        (self._out / "segmentations").mkdir(parents=True, exist_ok=True)
        (self._out / "images").mkdir(parents=True, exist_ok=True)
        present = [int(index) for index in np.unique(mask) if 0 < index < NO_MASK]
        if present:
            segmentation = self._segmentation(name, picture, mask, present, origin)
            write_whole(self._out / "segmentations" / f"{name}.dcm", _encode(segmentation), tidy=False)
        self._write_mask(name, mask)
        write_whole(self._out / "images" / f"{name}.dcm", encoded, tidy=False)

    def is_whole(self, name: str) -> bool:
        return (self._out / "images" / f"{name}.dcm").is_file() and (self._out / "masks" / f"{name}.png").is_file()

    def read(self, item: Entry) -> tuple[Image, Image]:
        return read_context(self._out / "images" / f"{item.name}.dcm"), self._read_mask(item.name)

    def _uid(self, *parts: object) -> str:
        """A UID of the form 2.25 (PS3.5 B.2) that stands for the job and something in it."""
        digest = hashlib.sha256(repr((self._job, *parts)).encode()).digest()
        return f"2.25.{int.from_bytes(digest[:16])}"

    def _picture(self, name: str, position: int, image: Image, group: str, origin: str) -> Any:
        from pydicom.dataset import Dataset
        from pydicom.uid import UltrasoundImageStorage

        number = self._numbers[group]
        found = Dataset()
        found.file_meta = _meta(str(UltrasoundImageStorage), self._uid("image", name))
        found.SpecificCharacterSet = "ISO_IR 192"
        found.ImageType = ["DERIVED", "PRIMARY"]
        found.SOPClassUID, found.SOPInstanceUID = UltrasoundImageStorage, self._uid("image", name)
        found.SyntheticData = "YES" if origin == SYNTHETIC else "NO"
        found.PatientName, found.PatientID = f"{MAKER}^{number:04d}", f"{MAKER}-{number:04d}"
        found.PatientBirthDate = found.PatientSex = ""
        found.StudyInstanceUID, found.SeriesInstanceUID = self._uid("study", group), self._uid("series", group, origin)
        found.AccessionNumber = found.ReferringPhysicianName = ""
        found.StudyDate = found.ContentDate = self._began
        found.StudyTime = found.ContentTime = "000000"
        found.StudyID, found.SeriesNumber = f"{number}", 1 if origin == SYNTHETIC else 2
        found.SeriesDescription = "synthetic ultrasound, not for diagnosis" if origin == SYNTHETIC else "ultrasound"
        found.InstanceNumber = self._number(name, position)
        found.Modality, found.Manufacturer, found.ManufacturerModelName = "US", MAKER, MAKER
        found.SoftwareVersions, found.PatientOrientation, found.Laterality = __version__, "", ""
        found.BurnedInAnnotation, found.LossyImageCompression = "NO", "00"
        if origin == SYNTHETIC:
            text = "made by a generative model from a mask and a context image; not for diagnosis"
            found.DerivationDescription = text
            found.DerivationCodeSequence = [_code("synthetic-image", "Image made by a generative model")]
        equipment = Dataset()
        equipment.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment", "DCM")]
        equipment.Manufacturer, equipment.ManufacturerModelName = MAKER, MAKER
        equipment.SoftwareVersions = __version__
        found.ContributingEquipmentSequence = [equipment]
        found.Rows, found.Columns = image.shape
        found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
        found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 8, 8, 7, 0
        found.PresentationLUTShape = "IDENTITY"
        if region := self._region(position, image.shape):
            found.SequenceOfUltrasoundRegions = [region]
        data = image.tobytes()
        found.PixelData = data + b"\0" * (len(data) % 2)
        found["PixelData"].VR = "OB"
        return found

    @staticmethod
    def _number(name: str, position: int) -> int:
        digits = name.rpartition("_")[2]
        return int(digits) + 1 if digits.isdecimal() and len(digits) == 6 else position + 1

    def _region(self, position: int, shape: tuple[int, ...]) -> Any:
        """The whole picture as a 2-D region of tissue with the size of its pixels, where the source says it."""
        from pydicom.dataset import Dataset

        path = split_frame(self._sources.set.images[position].path)[0]
        size = dicom.pixel_size(path) if dicom.is_dicom(path) else None
        if size is None:
            return None
        true = self._sources.read(position)[0].shape
        region = Dataset()
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
        region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = shape[1] - 1, shape[0] - 1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
        region.PhysicalDeltaX, region.PhysicalDeltaY = size[0] * true[1] / shape[1], size[1] * true[0] / shape[0]
        return region

    def _segmentation(self, name: str, picture: Any, mask: Image, present: Sequence[int], origin: str) -> Any:
        import highdicom
        from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
        from pydicom.sr.codedict import codes

        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=MAKER, family=codes.DCM.ArtificialIntelligence, version=__version__
        )
        made = origin == SYNTHETIC
        names = self._sources.set.classes.names
        described = [
            SegmentDescription(
                segment_number=place,
                segment_label=names[index],
                segmented_property_category=_concept(*(ABNORMAL if names[index] in FINDINGS else ANATOMY), "SCT"),
                segmented_property_type=_property(names[index]),
                algorithm_type=SegmentAlgorithmTypeValues.SEMIAUTOMATIC if made else SegmentAlgorithmTypeValues.MANUAL,
                algorithm_identification=algorithm if made else None,
            )
            for place, index in enumerate(present, start=1)
        ]
        table = np.zeros(256, np.uint8)
        table[list(present)] = np.arange(1, len(present) + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Segmentation(
                source_images=[picture], pixel_array=table[mask][None],
                segmentation_type=SegmentationTypeValues.BINARY, segment_descriptions=described,
                series_instance_uid=self._uid("segmentations", picture.StudyInstanceUID, origin),
                series_number=3 if made else 4, sop_instance_uid=self._uid("segmentation", name),
                instance_number=picture.InstanceNumber, manufacturer=MAKER, manufacturer_model_name=MAKER,
                software_versions=__version__, device_serial_number="1", content_label="LABELS",
                content_description="mask of the image", omit_empty_frames=False,
            )  # fmt: skip
        found.SyntheticData, found.PatientOrientation = picture.SyntheticData, ""
        self._settle(found, name, picture)
        return found

    def _settle(self, found: Any, name: str, picture: Any) -> None:
        """What highdicom draws by chance or takes from the clock follows from job and image instead."""
        known = {str(found.SOPInstanceUID), str(found.SeriesInstanceUID), str(picture.SOPInstanceUID)}
        known |= {str(picture.StudyInstanceUID), str(picture.SeriesInstanceUID)}
        fresh: dict[str, str] = {}

        def settle(_: Any, element: Any) -> None:
            if element.VR == "UI" and element.value and not str(element.value).startswith("1.2.840.10008."):
                if str(element.value) not in known:
                    element.value = fresh.setdefault(str(element.value), self._uid("part", name, len(fresh)))
            elif element.VR == "DA" and element.value:
                element.value = self._began
            elif element.VR == "TM" and element.value:
                element.value = "000000"
            elif element.VR == "DT" and element.value:
                element.value = self._began

        found.walk(settle)


def _meta(sop_class: str, instance: str) -> Any:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _encode(dataset: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _code(value: str, meaning: str, scheme: str = SCHEME) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _concept(value: str, meaning: str, scheme: str) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(value=value, meaning=meaning, scheme_designator=scheme)


def _property(name: str) -> Any:
    if name in TISSUES:
        return _concept(*TISSUES[name], "SCT")
    return _concept(name[:16], FINDINGS.get(name, name.replace("_", " "))[:64], SCHEME)

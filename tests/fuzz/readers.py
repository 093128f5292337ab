"""What the fuzzer reads: for each reader some valid files made by us, and a function that reads one."""

from __future__ import annotations

import io
import json
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from csg_edge.bundle.manifest import find_bundle, read_manifest
from csg_edge.conditions.colours import read_colours
from csg_edge.conditions.dicom_seg import labelled_frames
from csg_edge.conditions.fibre_files import read_field, write_field
from csg_edge.conditions.fibres import Wish, field_of_mask
from csg_edge.conditions.files import read_context, read_mask
from csg_edge.conditions.frames import frame_count, with_frame
from csg_edge.datasets.labelled_set import read_set, splits_of
from csg_edge.datasets.layouts import open_folder
from csg_edge.datasets.packed import PackedSet, encode_image, open_packed, pack, packed_names
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA
from csg_edge.quality.record import FORMAT, Figure, Gate, Record, Subject
from csg_edge.quality.registered import SHIPPED, read_registration
from csg_edge.quality.turing_score import score_study
from csg_edge.training.config import read_run
from csg_edge.training.model_files import read_json
from csg_edge.training.teacher_format import TeacherFormat

MASK = np.random.default_rng(0).integers(0, 10, (24, 32), dtype=np.uint8)
KINDS = ("BINARY", "LABELMAP")  # of DICOM Segmentations
GREY = MASK  # dark, but an image and a mask


@dataclass(frozen=True)
class Reader:
    """suffix: of the file; seeds: valid files, the first wholly; read: takes a path, raises CsgEdgeError or nothing.

    repair: makes checksums right again, so that what lies behind them is tried as well.
    """

    suffix: str
    seeds: Sequence[bytes]
    read: Callable[[Path], Any]
    repair: Callable[[bytes], bytes] = bytes


def segmentations(path: Path) -> None:
    """The mask of an image, or of each frame that a Segmentation says it labels."""
    for frame in labelled_frames(path) or [None]:
        read_mask(path if frame is None else with_frame(path, frame), MSK_SCHEMA)


def both(path: Path) -> None:
    """An image read as context, as mask and for its number of images; refused if any of these refuses it."""
    refused = None
    for read in (lambda file: read_mask(file, MSK_SCHEMA), frame_count, read_context):
        try:
            read(path)
        except InputError as error:
            refused = error
    if refused is not None:
        raise refused


def right_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have the checksums of what is in them."""
    made, start = bytearray(data[:8]), 8
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        made += data[start : end - 4] + zlib.crc32(data[start + 4 : end - 4]).to_bytes(4)
        start = end
    return bytes(made)


def encoded(kind: str, array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def palette() -> bytes:
    image = Image.fromarray(MASK)
    image.putpalette([level for index in range(10) for level in (index * 20, 255 - index, index)])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def oriented(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(kind, GREY, exif=exif)


def dicom_files() -> list[bytes]:
    from dicom_files import tissue_region, write_dicom

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.dcm"
        window = {"WindowCenter": 90, "WindowWidth": 80, "RescaleSlope": 1, "RescaleIntercept": 0}
        made = [
            write_dicom(path, GREY, SequenceOfUltrasoundRegions=[tissue_region(2, 2, 20, 20)], **window).read_bytes(),
            write_dicom(path, np.stack([GREY, GREY]), frames=2).read_bytes(),
            write_dicom(path, np.dstack([GREY] * 3), photometric="RGB").read_bytes(),
            write_dicom(path, GREY.astype(np.uint16) * 16, bits=12).read_bytes(),
        ]
    return made


def segmentation_files() -> list[bytes]:
    from dicom_files import write_clip_segmentation, write_segmentation, write_source

    with tempfile.TemporaryDirectory() as folder:
        source, path = (Path(folder) / name for name in ("image.dcm", "mask.dcm"))
        write_source(source, (24, 32))
        segments = MASK % 3  # two, and what lies beside them
        made = [write_segmentation(path, source, segments[None], kind=kind).read_bytes() for kind in KINDS]
        write_source(source, (24, 32), frames=3)
        made.append(write_clip_segmentation(path, source, {0: segments, 2: segments}).read_bytes())
    return made


def nifti_files() -> list[bytes]:
    import nibabel

    made = []
    with tempfile.TemporaryDirectory() as folder:
        for name, values in (("a.nii", GREY.T[..., None]), ("b.nii", MASK.T[..., None].repeat(3, 2))):
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.1, -0.1, 1, 1])), Path(folder) / name)
            made.append((Path(folder) / name).read_bytes())
    return made


def packed_file() -> bytes:
    from csg_edge.datasets.layouts import Example

    images = tuple(encode_image(np.resize(GREY, (32, 32))) for _ in range(2))
    masks = tuple(encode_image(np.resize(MASK, (32, 32))) for _ in range(2))
    examples = (Example("a", "g0", "train"), Example("b", "g1", "val"))
    card = {"layout": "x", "documents": [], "splits": {}}
    return pack([PackedSet(Path("p/s"), MSK_SCHEMA, 32, examples, images, masks, card)])


def read_packed(path: Path) -> None:
    for name in packed_names(path):
        found = open_packed(path, name)
        for position in range(len(found.examples)):
            found.read(position)


def folder_reader(name: str) -> Callable[[Path], None]:
    """A labelled folder in which one table or JSON file is the one fuzzed."""
    folder = Path(tempfile.mkdtemp(prefix="csg-fuzz-"))
    for kind in ("images", "masks", "imagesTr", "labelsTr"):
        (folder / kind).mkdir()
    for case in ("a", "b"):
        for place, array in (("images", GREY), ("masks", MASK % 3), ("labelsTr", MASK % 3)):
            cv2.imwrite(str(folder / place / f"{case}.png"), array)
        cv2.imwrite(str(folder / "imagesTr" / f"{case}_0000.png"), GREY)
    if name != "dataset.json":
        (folder / "labels.json").write_text(json.dumps({"names": ["background", "muscle", "bone"]}))

    def read(path: Path) -> None:
        (folder / name).write_bytes(path.read_bytes())
        open_folder(folder)
        for split in splits_of(folder):
            read_set(folder, MSK_SCHEMA, split=split, size=32)

    return read


def report() -> bytes:
    subject = Subject("engine", "engine", 5, {"kid": Figure(0.1, 0.0, 0.2, 9, "note")})
    gate = Gate("engine", "kid", 0.1, "<= 0.2", True)
    record = Record(FORMAT, "b", {"seed": 0}, {"cores": 2}, (subject,), (gate,), ("Few groups.",), {"all": 1.5})
    with tempfile.TemporaryDirectory() as folder:
        record.write(Path(folder) / "report.json")
        return (Path(folder) / "report.json").read_bytes()


def study_reader() -> tuple[list[bytes], Callable[[Path], None]]:
    folder = Path(tempfile.mkdtemp(prefix="csg-fuzz-"))
    images = {f"bcdf{letter}": {"truth": "real" if letter < "h" else "synthetic"} for letter in "bcdfghjk"}
    key = folder / "key.json"
    key.write_text(json.dumps({"format": 1, "study": "study-1", "images": images}))
    header = "study,reader,role,years,image,answer,confidence,milliseconds"
    rows = [f"study-1,r1,sonographer,7,{name},real,3,1500" for name in images]
    return [("\n".join([header, *rows]) + "\n").encode()], lambda path: score_study(key, [path]) and None


NNUNET = {"channel_names": {"0": "US"}, "labels": {"background": 0, "muscle": [1, 2], "bone": 2}, "file_ending": ".png"}
RUN = b'data = ["a"]\n[shares]\nphantom = 0.4\n[network]\nembedding = 96\n[optimisation]\niterations = 10\nbatch = 4\n'
ENTRY = {
    "format": 1, "image_size": 256, "mask": {"channels": "one_hot", "resize": "area", "dropped": "zeros"},
    "context": {"channels": "latents", "tokens": "none", "dropped": "zeros"},
    "channel_order": ["latent", "mask", "context"], "sampler": {"name": "ddim", "steps": 50},
}  # fmt: skip


def field_file(kind: str) -> bytes:
    """A fibre field with one class given."""
    with tempfile.TemporaryDirectory() as folder:
        field = field_of_mask(MASK, MSK_SCHEMA, [Wish("muscle", 18, 18)], seed=0)
        (path,) = write_field(Path(folder), "one", field, kind=kind)
        return path.read_bytes()


def readers() -> dict[str, Reader]:
    """Every reader by name."""
    bundle = find_bundle("msk-256") / "manifest.json"
    answers, read_answers = study_reader()
    tiff = [encoded("TIFF", GREY), encoded("TIFF", MASK, compression="tiff_lzw"), oriented("TIFF"),
            encoded("TIFF", GREY, save_all=True, append_images=[Image.fromarray(MASK)])]  # fmt: skip
    return {
        "manifest": Reader(".json", [bundle.read_bytes()], read_manifest),
        "dicom": Reader(".dcm", dicom_files(), both),
        "dicom-seg": Reader(".dcm", segmentation_files(), segmentations),
        "png": Reader(".png", [encoded("PNG", GREY), encoded("PNG", MASK), palette(), oriented("PNG")], both,
                      right_checksums),
        "tiff": Reader(".tif", tiff, both),
        "jpeg": Reader(".jpg", [encoded("JPEG", GREY), oriented("JPEG")], read_context),
        "bmp": Reader(".bmp", [encoded("BMP", MASK)], both),
        "nifti": Reader(".nii", nifti_files(), both),
        "packed": Reader(".safetensors", [packed_file()], read_packed),
        "manifest.csv": Reader(".csv", [b"name,group,split\na,g0,train\nb,g1,val\n"], folder_reader("manifest.csv")),
        "groups.csv": Reader(".csv", [b"name,group\na,g0\nb,g1\n"], folder_reader("groups.csv")),
        "labels.json": Reader(".json", [b'{"names": ["background", "muscle", "bone"], "partly_labelled": true}'],
                              folder_reader("labels.json")),
        "dataset.json": Reader(".json", [json.dumps(NNUNET).encode()], folder_reader("dataset.json")),
        "labelmap": Reader(".txt", [b"# comment\nbackground:0,0,0::\nmuscle:255,0,0::\n"], read_colours),
        "toml": Reader(".toml", [RUN], lambda path: read_run(path, {}, precision="fp32")),
        "teacher": Reader(".json", [json.dumps(ENTRY).encode()], lambda path: TeacherFormat.from_json(read_json(path))),
        "registration": Reader(".json", [SHIPPED.read_bytes()], read_registration),
        "report": Reader(".json", [report()], Record.read),
        "answers": Reader(".csv", answers, read_answers),
        "fibre.npz": Reader(".npz", [field_file("npz")], read_field),
        "fibre.csv": Reader(".csv", [field_file("csv")], read_field),
    }  # fmt: skip

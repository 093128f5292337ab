"""DICOM in and out: nothing of a patient passes, the standard's own tools agree, masks lie on their images."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from csg_edge.augment.make import PREFIX
from csg_edge.conditions.files import read_context, read_mask, write_png
from csg_edge.datasets.labelled_set import open_set
from csg_edge.labels import MSK_SCHEMA
from tests.command import run
from tests.dicom_files import tissue_region, write_dicom

ACROSS, DOWN = 0.012, 0.02  # centimetres a pixel
UNKNOWN = "(0x0008,0x001c)"  # Synthetic Data: dciodvfy of 2022 does not know it, the standard of 2023 has it


@pytest.fixture(scope="module")
def source(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten single images and a clip of two frames, each with a patient and private elements."""
    folder = tmp_path_factory.mktemp("dicom") / "Meyer study"
    (folder / "images").mkdir(parents=True)
    shutil.copytree(phantom_set / "masks", folder / "masks")
    shutil.copy(phantom_set / "labels.json", folder)
    region = tissue_region(0, 0, 255, 191)
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY, region.RegionFlags = ACROSS, DOWN, 0
    rows = ["name,group"]
    names = sorted(path.stem for path in (phantom_set / "images").iterdir())
    patient = {"PatientName": "Meyer^Jane", "PatientID": "MRN4711", "InstitutionName": "Charite Meyer"}
    pictures = {name: read_context(phantom_set / "images" / f"{name}.png")[:192] for name in names}
    for name in names[:10]:
        write_dicom(
            folder / "images" / f"{name}.dcm", pictures[name], SequenceOfUltrasoundRegions=[region], **patient
        )  # fmt: skip
        dataset = pydicom.dcmread(folder / "images" / f"{name}.dcm")
        dataset.private_block(0x0099, "MEYER", create=True).add_new(1, "LO", "Meyer private")
        dataset.save_as(folder / "images" / f"{name}.dcm")
    clip = np.stack([pictures[name] for name in names[10:]])
    write_dicom(folder / "images" / "clip.dcm", clip, frames=2, **patient)
    for place, name in enumerate(names[10:]):
        (folder / "masks" / f"{name}.png").rename(folder / "masks" / f"clip_f{place:03d}.png")
    for path in (folder / "masks").iterdir():
        write_png(path, np.ascontiguousarray(read_mask(path, MSK_SCHEMA)[:192]))
        rows.append(f"{path.stem},Meyer{int(path.stem) // 2 if path.stem.isdecimal() else 9}")
    (folder / "groups.csv").write_text("\n".join(rows) + "\n")
    return folder


def augment(source: Path, out: Path, *arguments: object) -> Path:
    done = run("augment", source, "--out", out, "--multiply", 3, "--no-checks", *arguments)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return augment(source, tmp_path_factory.mktemp("augmented") / "out", "--only-synthetic")


def pictures(out: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted((out / "images").iterdir())]


def test_nothing_of_a_patient_passes(out: Path, source: Path) -> None:
    for path in out.rglob("*"):
        if path.is_file():
            assert b"Meyer" not in path.read_bytes(), path
            assert b"MRN4711" not in path.read_bytes(), path
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in (source / "images").iterdir()}
    found = pictures(out)
    assert len({item.SOPInstanceUID for item in found}) == len(found) > 10
    assert not uids & {item.SOPInstanceUID for item in found}
    for item in found:
        assert item.SyntheticData == "YES"
        assert not [element for element in item.iterall() if element.tag.is_private]
        assert str(item.PatientName).startswith("csg-edge")
        assert item.ImageType[0] == "DERIVED"
        assert "not for diagnosis" in item.DerivationDescription
        assert item.ContributingEquipmentSequence[0].Manufacturer == "csg-edge"
        assert all(pydicom.uid.UID(uid).is_valid for uid in (item.SOPInstanceUID, item.StudyInstanceUID))


def test_segmentations_lie_on_their_images(out: Path) -> None:
    classes = open_set(out).classes
    for item in pictures(out):
        path = out / "segmentations" / Path(str(item.filename)).name
        found = highdicom.seg.segread(path)
        assert (found.Rows, found.Columns) == (item.Rows, item.Columns) == (192, 256)
        assert found.StudyInstanceUID == item.StudyInstanceUID
        assert found.SyntheticData == "YES"
        mask = read_mask(out / "masks" / f"{path.stem}.png", classes)
        pixels = found.get_pixels_by_source_instance([item.SOPInstanceUID], combine_segments=False)[0]
        names = [found.get_segment_description(number).segment_label for number in found.segment_numbers]
        assert set(names) == {classes.names[index] for index in np.unique(mask) if index}
        for place, name in enumerate(names):
            np.testing.assert_array_equal(pixels[..., place] > 0, mask == classes.index(name))


def test_size_of_pixels_stays_where_it_is_known(source: Path, tmp_path: Path) -> None:
    for size, columns in (("source", 256), ("model", 256)):
        found = pictures(augment(source, tmp_path / size, "--size", size, "--only-synthetic"))
        known = [item for item in found if "SequenceOfUltrasoundRegions" in item]
        assert known
        for item in known:
            region = item.SequenceOfUltrasoundRegions[0]
            assert region.PhysicalDeltaX == pytest.approx(ACROSS * 256 / columns)
            assert region.PhysicalDeltaY == pytest.approx(DOWN * 192 / item.Rows)


def test_real_images_go_along_as_they_look_and_are_no_synthetic_data(source: Path, tmp_path: Path) -> None:
    out = augment(source, tmp_path / "out")
    before, after = open_set(source), open_set(out)
    real = [item for item in after.examples if not item.name.startswith(PREFIX)]
    assert {item.name for item in real} == {item.name for item in before.examples}
    assert "clip_f001" in {item.name for item in real}
    for position, item in enumerate(after.examples):
        dataset = pydicom.dcmread(out / "images" / f"{item.name}.dcm")
        assert b"MRN4711" not in (out / "images" / f"{item.name}.dcm").read_bytes()
        if item.name.startswith(PREFIX):
            continue
        assert dataset.SyntheticData == "NO"
        image, mask = before.read([other.name for other in before.examples].index(item.name))
        np.testing.assert_array_equal(after.read(position)[0], image)
        np.testing.assert_array_equal(after.read(position)[1], mask)


def test_the_same_job_writes_the_same_bytes(out: Path, source: Path, tmp_path: Path) -> None:
    again = augment(source, tmp_path / "again", "--only-synthetic")
    for path in sorted([*(out / "images").iterdir(), *(out / "segmentations").iterdir()]):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes(), path


def test_the_validator_of_the_standard_finds_no_error(out: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    for path in [*sorted((out / "images").iterdir())[:3], *sorted((out / "segmentations").iterdir())[:3]]:
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True).stderr.splitlines()
        assert not [line for line in said if line.startswith("Error") and UNKNOWN not in line], path


def test_sent_and_received_by_an_archive(out: Path, tmp_path: Path) -> None:
    if shutil.which("storescp") is None:
        pytest.skip("storescp is not installed (Debian: dcmtk)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "archive").mkdir()
    archive = subprocess.Popen(["storescp", "-od", tmp_path / "archive", port])
    try:
        sent = [*sorted((out / "images").iterdir()), *sorted((out / "segmentations").iterdir())]
        for _ in range(50):
            done = subprocess.run(["storescu", "-R", "127.0.0.1", port, *sent], capture_output=True, text=True)
            if done.returncode == 0:
                break
            time.sleep(0.1)
        assert done.returncode == 0, done.stderr
    finally:
        archive.terminate()
        archive.wait(10)
    received = [pydicom.dcmread(path) for path in (tmp_path / "archive").iterdir()]
    assert {item.SOPInstanceUID for item in received} == {pydicom.dcmread(path).SOPInstanceUID for path in sent}
    pixels = {item.SOPInstanceUID: item.PixelData for item in map(pydicom.dcmread, sent)}
    assert all(item.PixelData == pixels[item.SOPInstanceUID] for item in received)

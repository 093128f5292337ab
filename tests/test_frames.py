"""Files of several images: one named by `FILE#N` or `--frame`, DICOM clips, TIFF stacks and NIfTI alike."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from command import run
from dicom_files import write_dicom
from numpy.typing import NDArray
from PIL import Image

from csg_edge.conditions.files import list_images, read_context, read_mask, write_png
from csg_edge.conditions.frames import choose_frames, frame_count, image_name, split_frame
from csg_edge.conditions.nifti import read_header
from csg_edge.datasets.labelled_set import read_set
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA

CLIP = np.random.default_rng(0).integers(0, 256, (5, 20, 30), dtype=np.uint8)


def write_tiff(path: Path, frames: NDArray[np.uint8]) -> Path:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest)
    return path


def write_nifti(path: Path, frames: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
    """frames: ([N,] rows, columns), written as ITK does: columns to the left, rows to the back."""
    values = np.atleast_3d(frames.T) if frames.ndim == 2 else frames.transpose(2, 1, 0)
    itk = np.diag([-0.2, -0.1, 1.0, 1.0])
    image = nibabel.Nifti1Image(np.ascontiguousarray(values), itk if affine is None else affine)
    nibabel.save(image, path)
    return path


def clip(folder: Path, kind: str) -> Path:
    if kind == "dcm":
        return write_dicom(folder / "clip.dcm", CLIP, frames=len(CLIP))
    return write_tiff(folder / "clip.tif", CLIP) if kind == "tif" else write_nifti(folder / f"clip.{kind}", CLIP)


@pytest.mark.parametrize("kind", ["dcm", "tif", "nii", "nii.gz"])
def test_one_image_of_a_file_is_named_by_its_number(tmp_path: Path, kind: str) -> None:
    path = clip(tmp_path, kind)
    assert frame_count(path) == 5 and image_name(path) == "clip"
    for frame in (0, 3, 4):
        named = path.with_name(f"{path.name}#{frame}")
        assert np.array_equal(read_context(named), CLIP[frame])
        assert split_frame(named) == (path, frame) and image_name(named) == f"clip_f{frame:03d}"
        assert list_images(named) == [named]
    with pytest.raises(InputError, match=r"name one, clip\..*#0 to #4"):
        read_context(path)
    with pytest.raises(InputError, match=r"no (frame|slice|image) 5; it has 5"):
        read_context(path.with_name(f"{path.name}#5"))
    assert [split_frame(item)[1] for item in choose_frames(path, "all")] == [0, 1, 2, 3, 4]
    assert split_frame(choose_frames(path, "middle")[0])[1] == 2
    with pytest.raises(InputError, match="no frame 9; it has 5"):
        choose_frames(path, "9")
    with pytest.raises(InputError, match="--frame last: give a number from 0, middle or all"):
        choose_frames(path, "last")


def test_a_file_whose_name_holds_a_number_sign_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "leg#2"
    assert split_frame(path) == (tmp_path / "leg", 2)
    write_png(tmp_path / "leg#2.png", CLIP[0])
    assert np.array_equal(read_context(tmp_path / "leg#2.png"), CLIP[0])
    path.write_bytes((tmp_path / "leg#2.png").read_bytes())
    assert split_frame(path) == (path, None)


@pytest.mark.parametrize(
    ("affine", "turned"),
    [
        (np.diag([-0.2, -0.1, 1, 1]), lambda image: image),  # as ITK writes without a direction
        (np.diag([0.2, -0.1, 1, 1]), lambda image: image[:, ::-1]),
        (np.diag([-0.2, 0.1, 1, 1]), lambda image: image[::-1]),
        (np.array([[0, -0.1, 0, 0], [-0.2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), lambda image: image.T),
    ],
    ids=["identity", "columns run right", "rows run forward", "axes swapped"],
)
def test_nifti_is_turned_by_its_affine(tmp_path: Path, affine: NDArray[np.float64], turned: object) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", CLIP[0], affine)
    assert callable(turned)
    assert np.array_equal(read_context(path), turned(CLIP[0]))
    swapped = affine[0, 0] == 0
    assert read_header(path).spacing == pytest.approx((0.1, 0.2, 1.0) if swapped else (0.2, 0.1, 1.0))


def test_nifti_masks_hold_indices_of_any_number_type(tmp_path: Path) -> None:
    mask = CLIP[0] % 10
    for kind in (np.uint8, np.int16, np.float32):
        path = write_nifti(tmp_path / f"{np.dtype(kind).name}.nii", mask.astype(kind))
        assert np.array_equal(read_mask(path, MSK_SCHEMA), mask)
    for values, said in (
        (mask - 0.5, "values from -0.5"),
        (mask + 300.0, "to 309"),
        (mask * np.nan, "values from nan"),
    ):
        path = write_nifti(tmp_path / "bad.nii", values.astype(np.float32))
        with pytest.raises(InputError, match=said):
            read_mask(path, MSK_SCHEMA)


def test_damaged_nifti_is_one_line(tmp_path: Path) -> None:
    whole = write_nifti(tmp_path / "a.nii.gz", CLIP).read_bytes()
    plain = write_nifti(tmp_path / "a.nii", CLIP).read_bytes()
    random = np.random.default_rng(0)
    for data, suffix in ((whole, ".nii.gz"), (plain, ".nii")):
        for _ in range(150):
            broken = bytearray(data[: random.integers(1, len(data))] if random.random() < 0.3 else data)
            for at in random.integers(0, min(len(broken), 352), 3):
                broken[at] = random.integers(256)
            path = tmp_path / f"b{suffix}"
            path.write_bytes(broken)
            try:
                read_context(path.with_name(f"{path.name}#1"))
            except InputError as error:
                assert str(error).startswith(str(tmp_path)) and "\n" not in str(error)


@pytest.mark.parametrize("kind", ["dcm", "tif", "nii.gz"])
def test_generate_takes_frames_as_contexts(phantom_set: Path, tmp_path: Path, kind: str) -> None:
    path = clip(tmp_path, kind)
    mask = sorted((phantom_set / "masks").iterdir())[0]
    engine = ["--runtime", "onnxruntime", "--precision", "fp32"]
    named = run("generate", "--mask", mask, "--context", f"{path}#2", "--out", tmp_path / "a", *engine)
    middle = run("generate", "--mask", mask, "--context", path, "--frame", "middle", "--out", tmp_path / "b", *engine)
    assert named.returncode == middle.returncode == 0, named.stderr + middle.stderr
    assert (tmp_path / "a" / mask.name).read_bytes() == (tmp_path / "b" / mask.name).read_bytes()
    (row,) = json.loads((tmp_path / "b" / "generated.json").read_text())["images"]
    assert row["context"] == f"{path}#2"
    assert row.get("context_spacing_mm") == (pytest.approx([0.2, 0.1]) if kind == "nii.gz" else None)
    every = run("generate", "--mask", "none", "--context", path, "--frame", "all", "--out", tmp_path / "c", *engine)
    assert every.returncode == 0, every.stderr
    assert sorted(item.name for item in (tmp_path / "c").glob("*.png")) == [f"clip_f{n:03d}.png" for n in range(5)]
    refused = run("generate", "--mask", mask, "--context", path, "--out", tmp_path / "d", *engine)
    assert refused.returncode == 2 and "name one" in refused.stderr


def test_nnunet_sets_of_nifti_are_read_by_slice(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001_Leg"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in ("a", "b", "c"):
        write_nifti(folder / "imagesTr" / f"{case}_0000.nii.gz", CLIP[:2])
        write_nifti(folder / "labelsTr" / f"{case}.nii.gz", CLIP[:2] % 3)
    about = {
        "channel_names": {"0": "US"},
        "labels": {"background": 0, "muscle": 1, "bone": 2},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    found = [read_set(folder, MSK_SCHEMA, split=split, size=20) for split in ("train", "val")]
    assert sorted(name for data in found for name in data.names) == [f"{c}_f00{n}" for c in "abc" for n in (0, 1)]
    assert len({group for data in found for group in data.groups}) == 3  # the slices of one file are one group
    assert set(np.unique(found[0].masks)) == {0, 3, 8}

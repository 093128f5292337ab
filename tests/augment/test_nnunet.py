"""nnU-Net v2 in and out: the numbers of its labels, its endings, and folds that no group crosses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest

from csg_edge.augment.make import PREFIX
from csg_edge.datasets.labelled_set import open_set
from csg_edge.datasets.layouts import FolderSet
from csg_edge.labels import MSK_SCHEMA
from tests.command import run
from tests.nnunet_files import NUMBERS, SPACING, write_raw

QUICK = ("--no-checks", "--size", "model")


@pytest.fixture(scope="module", params=[".png", ".tif", ".nii.gz"])
def raw(request: pytest.FixtureRequest, phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(phantom_set, tmp_path_factory.mktemp("raw") / "Dataset300_Phantom", ending=request.param)


def augment(raw: Path, out: Path, *arguments: object) -> Path:
    done = run("augment", raw, "--out", out, "--multiply", 3, *arguments)
    assert done.returncode == 0, done.stderr
    return out


def test_out_as_in(raw: Path, tmp_path: Path) -> None:
    out = augment(raw, tmp_path / "Dataset301_More", "--no-checks")
    before, after = open_set(raw), open_set(out)
    assert isinstance(before, FolderSet)
    assert isinstance(after, FolderSet)
    assert after.classes == before.classes
    about, came = (json.loads((folder / "dataset.json").read_text()) for folder in (out, raw))
    assert about == {**came, "numTraining": 36}
    ending = about["file_ending"]
    assert len(list((out / "imagesTr").iterdir())) == len(list((out / "labelsTr").iterdir())) == 36
    stored = set()
    for position, item in enumerate(after.examples):
        image, mask = after.read(position)
        assert image.shape == mask.shape == (200, 240)  # of the real image, though the model makes 256 x 256
        if not item.name.startswith(PREFIX):
            real, real_mask = before.read([other.name for other in before.examples].index(item.name))
            np.testing.assert_array_equal(image, real)
            np.testing.assert_array_equal(mask, real_mask)
        elif ending == ".nii.gz":
            found = nibabel.load(out / "labelsTr" / f"{item.name}.nii.gz")
            stored |= set(np.unique(np.asanyarray(found.dataobj)).tolist())
            assert found.shape == (240, 200, 1)
            np.testing.assert_allclose(found.header.get_zooms(), SPACING, rtol=1e-6)
            picture = nibabel.load(out / "imagesTr" / f"{item.name}_0000.nii.gz")
            np.testing.assert_array_equal(picture.affine, found.affine)
        else:
            stored |= set(np.unique(cv2.imread(str(out / "labelsTr" / f"{item.name}{ending}"), 0)).tolist())
    assert stored <= set(NUMBERS.values())
    assert NUMBERS["ignore"] in stored


def test_no_group_crosses_a_fold(raw: Path, tmp_path: Path) -> None:
    out = augment(raw, tmp_path / "out", *QUICK)
    groups = {row["name"]: row["group"] for row in csv.DictReader((out / "groups.csv").open())}
    splits = json.loads((out / "splits_final.json").read_text())
    assert len(splits) == 5
    contexts = contexts_of(raw, out)
    validated: list[str] = []
    for split in splits:
        assert not any(name.startswith(PREFIX) for name in split["val"])
        held = {groups[name] for name in split["val"]}
        validated += split["val"]
        made = [name for name in split["train"] if name.startswith(PREFIX)]
        assert made
        for name in made:
            assert groups[name] not in held
            assert contexts[name] not in held
        assert not held & {groups[name] for name in split["train"]}
    assert sorted(validated) == [f"case{place:02d}" for place in range(12)]


def contexts_of(raw: Path, out: Path) -> dict[str, str]:
    """The group that each made image's context is of, by the hashes of its provenance."""
    from csg_edge.augment.sources import Context, Sources
    from csg_edge.conditions.arrays import image_digest

    sources = Sources(raw, MSK_SCHEMA, (256, 256), folds=True)
    known = {image_digest(sources.context(Context(place))): sources.group(place) for place in sources.positions}
    rows = [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]
    return {row["id"]: known[row["context_sha256"]] for row in rows}


def test_folds_that_are_there_are_kept(raw: Path, tmp_path: Path) -> None:
    names = [f"case{place:02d}" for place in range(12)]
    splits = [
        {"train": names[4:], "val": names[:4]},
        {"train": [*names[:4], *names[8:]], "val": names[4:8]},
        {"train": names[:8], "val": names[8:]},
    ]
    (raw / "splits_final.json").write_text(json.dumps(splits))
    try:
        out = augment(raw, tmp_path / "out", *QUICK)
        found = json.loads((out / "splits_final.json").read_text())
        assert [split["val"] for split in found] == [split["val"] for split in splits]
        for before, after in zip(splits, found, strict=True):
            assert [name for name in after["train"] if not name.startswith(PREFIX)] == before["train"]
        splits[0] = {"train": names[3:], "val": names[:3]}
        (raw / "splits_final.json").write_text(json.dumps(splits))
        done = run("augment", raw, "--out", tmp_path / "other", "--multiply", 2, *QUICK)
        assert done.returncode == 2
        assert "group patient1" in done.stderr
    finally:
        (raw / "splits_final.json").unlink()


def test_a_folder_becomes_nnunet_and_back(phantom_set: Path, tmp_path: Path) -> None:
    out = augment(phantom_set, tmp_path / "out", *QUICK, "--format", "nnunet")
    about = json.loads((out / "dataset.json").read_text())
    assert about["labels"] == {name: index for index, name in enumerate(MSK_SCHEMA.names)}
    (split,) = json.loads((out / "splits_final.json").read_text())
    before = open_set(phantom_set)
    assert sorted(split["val"]) == sorted(item.name for item in before.examples if item.split == "val")
    back = augment(out_without_made(out, tmp_path / "raw"), tmp_path / "back", *QUICK, "--format", "folder")
    assert {item.split for item in open_set(back).examples} == {"train", "val"}


def out_without_made(out: Path, folder: Path) -> Path:
    """The set as it was: made images and the folds that name them taken away."""
    out.rename(folder)
    for path in folder.rglob(f"{PREFIX}*"):
        path.unlink()
    (folder / "splits_final.json").unlink()
    return folder

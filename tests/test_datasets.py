"""Labelled sets: phantom folders and public sets in one schema, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from csg_edge.conditions.files import write_png
from csg_edge.datasets.labelled_set import find_sets, read_set
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA, LabelSchema

THREE_CLASSES = np.repeat(np.array([[0, 1, 2, 2]], np.uint8), 4, axis=0).repeat(8, axis=0).repeat(8, axis=1)


def tiny_set(folder: Path, mask: NDArray[np.uint8] = THREE_CLASSES) -> Path:
    """Three 32 x 32 images in the columns of a public set: two of group g0 to train with, one of g1 to validate."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(3):
        write_png(folder / "images" / f"000{index}.png", np.full((32, 32), 50 + index, np.uint8))
        write_png(folder / "masks" / f"000{index}.png", mask)
    rows = ("idx,group,split", "0000,g0,train", "0001,g0,train", "0002,g1,val")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_phantom_folder(phantom_set: Path) -> None:
    train = read_set(phantom_set, MSK_SCHEMA, split="train", size=256)
    val = read_set(phantom_set, MSK_SCHEMA, split="val", size=256)
    assert (len(train), len(val)) == (7, 5)  # twelve images in groups of five; the second group is for validation
    assert not set(train.groups) & set(val.groups)
    assert sorted(train.names + val.names) == [f"{index:06d}" for index in range(12)]
    for kind, arrays in (("images", val.images), ("masks", val.masks)):
        for name, array in zip(val.names, arrays, strict=True):
            saved = cv2.imread(str(phantom_set / kind / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(array, saved)


def test_images_and_masks_are_stretched_together(phantom_set: Path) -> None:
    small = read_set(phantom_set, MSK_SCHEMA, split="val", size=64)
    large = read_set(phantom_set, MSK_SCHEMA, split="val", size=256)
    assert small.images.shape == small.masks.shape == (5, 64, 64)
    assert small.images.dtype == small.masks.dtype == np.uint8
    assert np.mean(small.masks.repeat(4, axis=1).repeat(4, axis=2) == large.masks) > 0.95


def test_the_first_image_of_each_group_and_no_other_is_read(phantom_set: Path, tmp_path: Path) -> None:
    whole = read_set(phantom_set, MSK_SCHEMA, split="train", size=64)
    firsts = [positions[0] for positions in whole.indices_by_group().values()]
    assert 1 < len(firsts) < len(whole)
    copy = Path(shutil.copytree(phantom_set, tmp_path / phantom_set.name))
    for name in set(whole.names) - {whole.names[position] for position in firsts}:
        (copy / "images" / f"{name}.png").write_bytes(b"damaged")
    found = read_set(copy, MSK_SCHEMA, split="train", size=64, first_of_groups=len(firsts))
    assert found.names == tuple(whole.names[position] for position in firsts)
    np.testing.assert_array_equal(found.images, whole.images[firsts])
    np.testing.assert_array_equal(found.masks, whole.masks[firsts])
    assert read_set(copy, MSK_SCHEMA, split="train", size=64, first_of_groups=1).names == found.names[:1]


def test_classes_of_a_public_set_are_mapped_by_name(tmp_path: Path) -> None:
    found = read_set(tiny_set(tmp_path / "usgra_nerve_vessel"), MSK_SCHEMA, split="train", size=32)
    expected = np.array([0, MSK_SCHEMA.index("nerve"), MSK_SCHEMA.index("vessel")], np.uint8)[THREE_CLASSES]
    np.testing.assert_array_equal(found.masks, [expected, expected])
    assert found.images[:, 0, 0].tolist() == [50, 51]
    assert found.names == ("0000", "0001")
    assert found.indices_by_group() == {"usgra_nerve_vessel/g0": [0, 1]}  # no other set has this group


def test_images_without_a_mask_are_left_out(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "usgra_nerve_vessel")
    (folder / "masks" / "0000.png").unlink()
    assert read_set(folder, MSK_SCHEMA, split="train", size=32).names == ("0001",)


def test_own_classes_come_from_labels_json(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "mine")
    (folder / "labels.json").write_text(json.dumps({"names": ["background", "bone", "tendon"]}))
    masks = read_set(folder, MSK_SCHEMA, split="val", size=32).masks
    assert np.unique(masks).tolist() == sorted([0, MSK_SCHEMA.index("bone"), MSK_SCHEMA.index("tendon")])


@pytest.mark.parametrize("text", [None, "", "[]", '{"classes": []}'], ids=["missing", "empty", "list", "other key"])
def test_unreadable_labels_are_named(tmp_path: Path, text: str | None) -> None:
    folder = tiny_set(tmp_path / "mine")
    if text is not None:
        (folder / "labels.json").write_text(text)
    with pytest.raises(InputError, match=r'mine/labels\.json: missing or unreadable; write \{"names"'):
        read_set(folder, MSK_SCHEMA, split="train", size=32)


def test_a_class_that_the_schema_lacks(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "usgra_nerve_vessel")
    with pytest.raises(InputError, match="no class 'vessel'; choose from background, nerve"):
        read_set(folder, LabelSchema(("background", "nerve")), split="train", size=32)


def test_an_index_that_the_set_does_not_name(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "usgra_nerve_vessel", mask=THREE_CLASSES + 1)
    with pytest.raises(InputError, match=r"masks/0000\.png: class index 3 is outside the schema 0\.\.2"):
        read_set(folder, MSK_SCHEMA, split="train", size=32)


def test_mask_and_image_of_different_sizes(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "usgra_nerve_vessel", mask=THREE_CLASSES[:-1])
    with pytest.raises(InputError, match=r"masks/0000\.png: \(31, 32\) mask for a \(32, 32\) image; export both"):
        read_set(folder, MSK_SCHEMA, split="train", size=32)


def test_a_split_without_images(tmp_path: Path) -> None:
    folder = tiny_set(tmp_path / "usgra_nerve_vessel")
    with pytest.raises(InputError, match="no labelled image in split 'test'; check the split column"):
        read_set(folder, MSK_SCHEMA, split="test", size=32)


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.csv; give a folder written by"):
        read_set(tmp_path, MSK_SCHEMA, split="train", size=32)


@pytest.mark.parametrize(("column", "named"), [("group", "group"), ("split", "split"), ("idx", "name")])
def test_a_manifest_without_a_column(tmp_path: Path, column: str, named: str) -> None:
    folder = tiny_set(tmp_path / "usgra_nerve_vessel")
    path = folder / "manifest.csv"
    path.write_text(path.read_text().replace(column, "other", 1))
    with pytest.raises(InputError, match=rf"manifest\.csv: no column {named}; write the columns"):
        read_set(folder, MSK_SCHEMA, split="train", size=32)


def test_sets_are_found_alone_or_below_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        tiny_set(tmp_path / name)
    assert find_sets(tmp_path / "b") == [tmp_path / "b"]
    assert find_sets(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(InputError, match=r"images: no labelled set here; give a folder with manifest\.csv"):
        find_sets(tmp_path / "b" / "images")


@pytest.mark.parametrize(
    ("name", "split", "images", "groups", "classes"),
    [
        # 447 and 38 rows, but three images of the first have no layers.
        ("dltrack_aponeurosis", "train", 444, 60, {1, 2, 3, 4}),
        ("dltrack_aponeurosis", "val", 38, 9, {1, 2, 3, 4}),
        ("usgra_nerve_vessel", "train", 181, 152, {0, 5, 6}),
        ("usgra_nerve_vessel", "val", 25, 15, {0, 5, 6}),
    ],
)
def test_the_public_sets(real_data: Path, name: str, split: str, images: int, groups: int, classes: set[int]) -> None:
    found = read_set(real_data / name, MSK_SCHEMA, split=split, size=32)
    assert (len(found), len(found.indices_by_group())) == (images, groups)
    assert set(np.unique(found.masks)) == classes


@pytest.mark.parametrize("name", ["dltrack_aponeurosis", "usgra_nerve_vessel"])
def test_no_group_of_a_public_set_is_in_two_splits(real_data: Path, name: str) -> None:
    groups: dict[str, set[str]] = {}
    with (real_data / name / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            groups.setdefault(row["split"], set()).add(row["group"])
    assert groups.keys() == {"train", "val"}
    assert not groups["train"] & groups["val"]

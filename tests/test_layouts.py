"""Labelled folders without a manifest: plain ones and nnU-Net v2, DICOM in them, splits by group, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from dicom_files import tissue_region, write_dicom
from numpy.typing import NDArray

from csg_edge.conditions.files import write_png
from csg_edge.datasets.card import set_card
from csg_edge.datasets.labelled_set import find_sets, read_set, schema_of, splits_of
from csg_edge.datasets.layouts import ELSEWHERE, VAL_SHARE, open_folder, split_of
from csg_edge.datasets.packing import pack_sets
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA, NO_MASK, LabelSchema

NAMES = [f"case{index}" for index in range(6)]
MASK = np.repeat(np.array([[0, 1, 2, 2]], np.uint8), 4, axis=0).repeat(8, axis=0).repeat(8, axis=1)  # (32, 32)
COLOUR = np.zeros((32, 32, 3), np.uint8) + np.array([0, 0, 90], np.uint8)


def grey(index: int) -> NDArray[np.uint8]:
    return np.full((32, 32), 50 + index, np.uint8)


def plain_set(folder: Path, masks: str = "masks", names: tuple[str, ...] = ("background", "bone", "tendon")) -> Path:
    for kind in ("images", masks):
        (folder / kind).mkdir(parents=True)
    for index, name in enumerate(NAMES):
        write_png(folder / "images" / f"{name}.png", grey(index))
        write_png(folder / masks / f"{name}.png", MASK)
    (folder / "labels.json").write_text(json.dumps({"names": names}))
    return folder


def nnunet_set(folder: Path, *, ending: str = ".png", **changes: Any) -> Path:
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for index, name in enumerate(NAMES):
        (folder / "imagesTr" / f"{name}_0000{ending}").write_bytes(cv2.imencode(ending, grey(index))[1].tobytes())
        (folder / "labelsTr" / f"{name}{ending}").write_bytes(cv2.imencode(ending, MASK)[1].tobytes())
    about = {
        "channel_names": {"0": "ultrasound"}, "labels": {"background": 0, "tendon": 2, "muscle": 1},
        "numTraining": len(NAMES), "file_ending": ending,
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(about | changes))
    return folder


def everything(folder: Path, schema: LabelSchema = MSK_SCHEMA) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    """Split, grey level and classes by name."""
    found = {}
    for split in splits_of(folder):
        data = read_set(folder, schema, split=split, size=32)
        for name, image, mask in zip(data.names, data.images, data.masks, strict=True):
            found[name] = (split, int(image[0, 0]), tuple(np.unique(mask).tolist()))
    return found


@pytest.mark.parametrize("masks", ["masks", "labels"])
def test_a_plain_folder(tmp_path: Path, masks: str) -> None:
    folder = plain_set(tmp_path / "mine", masks)
    found = everything(folder)
    assert sorted(found) == NAMES
    assert [found[name][1] for name in NAMES] == [50, 51, 52, 53, 54, 55]
    assert {classes for _, _, classes in found.values()} == {(0, MSK_SCHEMA.index("tendon"), MSK_SCHEMA.index("bone"))}
    assert {split for split, _, _ in found.values()} == {"train", "val"}
    assert find_sets(tmp_path) == find_sets(folder) == [folder]


@pytest.mark.parametrize("name", ["dltrack_aponeurosis", "usgra_nerve_vessel"])
def test_a_folder_that_says_its_classes_is_no_public_set_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = plain_set(tmp_path / name)
    rows = [f"{case},{case},{'val' if case == NAMES[0] else 'train'}" for case in NAMES]
    (folder / "manifest.csv").write_text("\n".join(["name,group,split", *rows]) + "\n")
    assert schema_of([folder]).names == ("background", "tendon", "bone")
    assert len(everything(folder)) == len(NAMES)


def test_masks_of_other_formats_than_the_images(tmp_path: Path) -> None:
    folder = plain_set(tmp_path / "mine")
    before = everything(folder)
    for index, name in enumerate(NAMES):
        (folder / "images" / f"{name}.png").unlink()
        (folder / "masks" / f"{name}.png").unlink()
        write_dicom(folder / "images" / f"{name}.dcm", grey(index))
        (folder / "masks" / f"{name}.tif").write_bytes(cv2.imencode(".tif", MASK.astype(np.uint16))[1].tobytes())
    (folder / "images" / ".hidden.png").write_bytes(b"a note of the file system")
    assert everything(folder) == before


def test_groups_stay_together(tmp_path: Path) -> None:
    folder = plain_set(tmp_path / "mine")
    rows = [f"{name},{'left' if index % 2 else 'right'}" for index, name in enumerate(NAMES)]
    (folder / "groups.csv").write_text("\n".join(["name,group", *rows]))
    found = everything(folder)
    assert {found[name][0] for name in NAMES[::2]} != {found[name][0] for name in NAMES[1::2]}
    assert len({found[name][0] for name in NAMES[::2]}) == len({found[name][0] for name in NAMES[1::2]}) == 1
    groups = {
        group for split in ("train", "val") for group in read_set(folder, MSK_SCHEMA, split=split, size=32).groups
    }
    assert groups == {"mine/left", "mine/right"}


@pytest.mark.parametrize("mark", [";", "\t"])
def test_tables_of_spreadsheets_in_other_languages(tmp_path: Path, mark: str) -> None:
    folder = plain_set(tmp_path / "mine")
    rows = [mark.join(("name", "group")), *(mark.join((name, f"p{index // 2}")) for index, name in enumerate(NAMES))]
    (folder / "groups.csv").write_text("\r\n".join(rows), encoding="utf-8-sig")
    assert len({example.group for example in open_folder(folder).examples}) == 3


def test_names_that_differ_only_in_how_unicode_writes_them_belong_together(tmp_path: Path) -> None:
    folder = plain_set(tmp_path / "mine")
    for kind, name in (("images", "oberschenkel_\u00fc"), ("masks", "oberschenkel_u\u0308")):
        (folder / kind / "case0.png").rename(folder / kind / f"{name}.png")
    rows = ["name,group", "oberschenkel_u\u0308,p0", *(f"{name},p1" for name in NAMES[1:])]
    (folder / "groups.csv").write_text("\n".join(rows), encoding="utf-8")
    assert "oberschenkel_\u00fc" in everything(folder)


def test_frames_of_a_clip_are_images_of_one_group(tmp_path: Path) -> None:
    folder = plain_set(tmp_path / "mine")
    frames = np.stack([grey(100), grey(101), grey(102)])
    write_dicom(folder / "images" / "clip.dcm", frames, frames=3)
    for frame in (0, 2):  # the second is not annotated
        write_png(folder / "masks" / f"clip_f{frame:03d}.png", MASK)
    found = everything(folder)
    assert sorted(found.keys() - set(NAMES)) == ["clip_f000", "clip_f002"]
    assert (found["clip_f000"][1], found["clip_f002"][1]) == (150, 152)
    assert found["clip_f000"][0] == found["clip_f002"][0]
    assert {item.group for item in open_folder(folder).examples if item.name.startswith("clip")} == {"clip"}


def test_frames_of_a_clip_in_a_manifest(tmp_path: Path) -> None:
    folder = plain_set(tmp_path / "mine")
    write_dicom(folder / "images" / "clip.dcm", np.stack([grey(100), grey(101)]), frames=2)
    write_png(folder / "masks" / "clip_f001.png", MASK)
    (folder / "manifest.csv").write_text("name,group,split\nclip_f000,a,train\nclip_f001,a,train\ncase1,b,val\n")
    assert {name: (split, level) for name, (split, level, _) in everything(folder).items()} == {
        "clip_f001": ("train", 151),
        "case1": ("val", 51),
    }


def test_a_mask_of_the_whole_dicom_frame_is_cut_with_it(tmp_path: Path) -> None:
    folder = plain_set(tmp_path / "mine")
    (folder / "images" / "case0.png").unlink()
    region = tissue_region(8, 0, 15, 31)  # the columns of class 1
    write_dicom(folder / "images" / "case0.dcm", grey(0), SequenceOfUltrasoundRegions=[region])
    assert everything(folder)["case0"][2] == (MSK_SCHEMA.index("bone"),)


@pytest.mark.parametrize("ending", [".png", ".tif", ".bmp"])
def test_nnunet(tmp_path: Path, ending: str) -> None:
    folder = nnunet_set(tmp_path / "Dataset001_Leg", ending=ending)
    (folder / "imagesTs").mkdir()
    found = everything(folder)
    assert sorted(found) == NAMES
    assert [found[name][1] for name in NAMES] == [50, 51, 52, 53, 54, 55]
    assert found["case0"][2] == (0, MSK_SCHEMA.index("muscle"), MSK_SCHEMA.index("tendon"))
    assert {split for split, _, _ in found.values()} == {"train", "val"}
    assert find_sets(tmp_path) == [folder]


def test_an_ignore_label_of_nnunet_says_nothing(tmp_path: Path) -> None:
    labels = {"background": 0, "tendon": 1, "ignore": 2}
    folder = nnunet_set(tmp_path / "Dataset001_Leg", labels=labels)
    assert everything(folder)["case0"][2] == (0, MSK_SCHEMA.index("tendon"), NO_MASK)


@pytest.mark.parametrize(
    ("labels", "meant"),
    [
        ({"background": 0, "tendon": [1, 2], "ditf": [2]}, (0, 7, 9)),  # a tear inside its tendon
        ({"background": 0, "whole": [1, 2], "tendon": 1, "bone": 2}, (0, 7, 8)),  # a region without pixels of its own
        ({"background": 0, "tendon": [1, 2]}, (0, 7)),
    ],
)
def test_regions_of_nnunet_that_nest_are_taken(tmp_path: Path, labels: dict[str, Any], meant: tuple[int, ...]) -> None:
    folder = nnunet_set(tmp_path / "Dataset001_Leg", labels=labels)
    assert everything(folder)["case0"][2] == meant


def test_the_first_fold_of_nnunet_is_kept(tmp_path: Path) -> None:
    folder = nnunet_set(tmp_path / "Dataset001_Leg")
    folds = [{"train": NAMES[2:], "val": NAMES[:2]}, {"train": NAMES[:2], "val": NAMES[2:]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    found = everything(folder)
    assert [name for name in NAMES if found[name][0] == "val"] == NAMES[:2]
    folds[0]["train"].remove("case5")
    (folder / "splits_final.json").write_text(json.dumps(folds))
    assert {item.split for item in open_folder(folder).examples if item.name == "case5"} == {ELSEWHERE}
    folds[1]["val"].remove("case5")
    (folder / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(InputError, match=r"splits_final\.json: case5 not in any fold"):
        open_folder(folder)


def test_splits_do_not_move_when_groups_are_added() -> None:
    many = [f"subject {index}" for index in range(2000)]
    few = split_of(many[:1000])
    assert few == {group: split for group, split in split_of(many).items() if group in few}
    share = list(split_of(many).values()).count("val") / len(many)
    assert abs(share - VAL_SHARE) < 0.03


@pytest.mark.parametrize("groups", [["a", "b"], ["b", "c"], ["x1", "x2", "x3"], ["p", "q"]])
def test_each_split_has_a_group(groups: list[str]) -> None:
    assert set(split_of(groups).values()) == {"train", "val"}


def test_what_nobody_labelled_is_neither_background_nor_counted(tmp_path: Path) -> None:
    whole, partly = plain_set(tmp_path / "whole"), plain_set(tmp_path / "partly")
    (partly / "labels.json").write_text(
        json.dumps({"names": ["background", "bone", "tendon"], "partly_labelled": True})
    )
    split = next(iter(splits_of(partly)))
    masks = {path: read_set(path, MSK_SCHEMA, split=split, size=32).masks for path in (whole, partly)}
    assert set(np.unique(masks[whole])) == {0, 7, 8} and set(np.unique(masks[partly])) == {7, 8, NO_MASK}
    assert np.array_equal(masks[whole] == 0, masks[partly] == NO_MASK)
    card = set_card(open_folder(partly), [split])["splits"][split]
    assert card["classes"]["background"]["images"] == 0
    assert sum(found["pixel_share"] for found in card["classes"].values()) == pytest.approx(1)
    pack_sets([partly], tmp_path / "p.safetensors", size=32, splits=[split], limit=10**6)
    packed = read_set(tmp_path / "p.safetensors" / "partly", MSK_SCHEMA, split=split, size=32)
    assert np.array_equal(packed.masks, masks[partly])
    (partly / "labels.json").write_text(json.dumps({"names": ["background", "bone", "tendon"], "partly_labelled": 1}))
    with pytest.raises(InputError, match="missing or unreadable"):
        open_folder(partly)


def test_a_folder_of_colour_masks_has_the_classes_of_its_labelmap(tmp_path: Path) -> None:
    folder = plain_set(tmp_path / "cvat")
    (folder / "labels.json").unlink()
    (folder / "labelmap.txt").write_text("bone:255,0,0::\nbackground:0,0,0::\ntendon:0,255,0::\n")
    colours = np.array([[0, 0, 0], [0, 0, 255], [0, 255, 0]], np.uint8)
    for name in NAMES:
        write_png(folder / "masks" / f"{name}.png", colours[MASK])
    assert open_folder(folder).classes.names == ("background", "bone", "tendon")
    assert everything(folder)["case0"][2] == (0, MSK_SCHEMA.index("tendon"), MSK_SCHEMA.index("bone"))


@pytest.mark.parametrize(("name", "partly"), [("ccaus_carotid", True), ("timtrack_muscle", False)])
def test_public_sets_with_few_labels_are_known(real_data: Path, name: str, partly: bool) -> None:
    data = read_set(real_data / name, MSK_SCHEMA, split="val", size=64)
    assert (data.masks == NO_MASK).any() == partly and (data.masks != NO_MASK).any()


def test_the_classes_of_sets(tmp_path: Path) -> None:
    bone = plain_set(tmp_path / "one" / "bone")
    muscle = nnunet_set(tmp_path / "two" / "muscle")
    assert schema_of([bone, muscle]).names == ("background", "muscle", "tendon", "bone")  # in the order of MSK
    lesion = plain_set(tmp_path / "lesion", names=("background", "lesion", "cyst"))
    assert schema_of([lesion, tmp_path / "one"]).names == ("background", "lesion", "cyst", "bone", "tendon")
    found = everything(lesion, schema_of([lesion]))
    assert found["case0"][2] == (0, 1, 2)
    with pytest.raises(
        InputError, match=r"lesion: .*no class 'lesion'; choose from .*; rename the class .*--schema own"
    ):
        read_set(lesion, MSK_SCHEMA, split="train", size=32)
    no_background = plain_set(tmp_path / "odd", names=("bone", "background", "tendon"))
    with pytest.raises(InputError, match="odd: class 0 is 'bone'; index 0 must be named background"):
        schema_of([no_background])


def remove_images(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()


BAD_PLAIN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "image without mask": (
        lambda f: [(f / "masks" / f"case{i}.png").unlink() for i in (2, 4)],
        r"masks: no mask for case2 and 1 more; add masks, or take the images out",
    ),
    "mask without image": (
        lambda f: (f / "images" / "case3.png").unlink(),
        r"masks: no image for case3; add images, or take the masks out",
    ),
    "empty": (remove_images, r"mine: no images; put \.png"),
    "two of a name": (
        lambda f: (f / "images" / "case1.tif").write_bytes(b""),
        r"images: case1\.png and case1\.tif share a name; keep one of them",
    ),
    "no names of classes": (lambda f: (f / "labels.json").unlink(), r"labels\.json: missing or unreadable; write"),
    "one class": (
        lambda f: (f / "labels.json").write_text('{"names": ["background"]}'),
        r"labels\.json: label schema: 1 classes",
    ),
    "one group": (
        lambda f: (f / "groups.csv").write_text("name,group\n" + "".join(f"{name},same\n" for name in NAMES)),
        r"mine: one group only; .* or correct groups\.csv",
    ),
    "image without group": (
        lambda f: (f / "groups.csv").write_text("name,group\ncase0,a\ncase1,b\ncase2,\n"),
        r"groups\.csv: no group for case2 and 3 more; add rows, with names without suffix",
    ),
    "groups without header": (
        lambda f: (f / "groups.csv").write_text("case0,a\ncase1,b\n"),
        r"groups\.csv: no columns name and group",
    ),
    "other size": (
        lambda f: [write_png(f / "masks" / f"{name}.png", MASK[1:]) for name in NAMES],
        r"masks/case\d\.png: \(31, 32\) mask for a \(32, 32\) image; export both at one size",
    ),
    "colour": (
        lambda f: [write_png(f / "images" / f"{name}.png", COLOUR) for name in NAMES],
        r"images/case\d\.png: a colour image",
    ),
    "damaged": (
        lambda f: [(f / "images" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n") for name in NAMES],
        r"images/case\d\.png: a truncated or damaged PNG",
    ),
    "index without name": (
        lambda f: [write_png(f / "masks" / f"{name}.png", MASK + 1) for name in NAMES],
        r"masks/case\d\.png: class index 3 is outside the schema 0\.\.2 \(background, bone, tendon\)",
    ),
    "group in two splits": (
        lambda f: (f / "manifest.csv").write_text("name,group,split\ncase0,a,train\ncase1,a,val\n"),
        r"mine: group a is in splits train and val; put all images of a group into one split",
    ),
    "names with suffix": (
        lambda f: (f / "manifest.csv").write_text("name,group,split\ncase0.png,a,train\ncase1.png,b,val\n"),
        r"manifest\.csv: no row has a mask; names are those of the files without suffix",
    ),
    "row without image": (
        lambda f: [
            (f / "manifest.csv").write_text("name,group,split\ncase0,a,train\ncase1,b,val\n"),
            (f / "images" / "case1.png").unlink(),
        ],
        r"images: no image case1, which manifest\.csv names",
    ),
    "table in another encoding": (
        lambda f: (f / "manifest.csv").write_bytes("name,group,split\ncase0,ä,train\n".encode("latin-1")),
        r"manifest\.csv: not readable as a table; save it as CSV, UTF-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PLAIN)
def test_bad_folders(tmp_path: Path, case: str) -> None:
    folder = plain_set(tmp_path / "mine")
    spoil, message = BAD_PLAIN[case]
    spoil(folder)
    with pytest.raises(InputError, match=message) as refusal:
        everything(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"file_ending": ".mha"},
            r"dataset\.json: \.mha images are not read; convert them to \.png, \.tif or \.nii\.gz",
        ),
        ({"channel_names": {"0": "R", "1": "G", "2": "B"}}, r"dataset\.json: 3 channels; one channel of grey levels"),
        ({"labels": {"0": "background", "1": "muscle"}}, r"dataset\.json: labels must number the classes 0, 1"),
        ({"labels": {"background": 0, "muscle": [1, 3]}}, r"dataset\.json: labels must number the classes 0, 1"),
        (
            {"labels": {"background": 0, "ignore": 1, "muscle": 2}},
            r"dataset\.json: the ignore label must be the highest",
        ),
        ({"labels": {"background": 0, "ignore": 1}}, r"dataset\.json: label schema: 1 classes"),
        ({"labels": {"background": 0, "a": [1, 2], "b": [2, 3]}}, r"regions a and b overlap and neither is inside"),
        ({"labels": None}, r"dataset\.json: no file_ending, labels or channel_names"),
    ],
)
def test_bad_nnunet(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_folder(nnunet_set(tmp_path / "Dataset001_Leg", **changes))


def test_a_second_channel_of_nnunet_is_refused(tmp_path: Path) -> None:
    folder = nnunet_set(tmp_path / "Dataset001_Leg")
    write_png(folder / "imagesTr" / "case0_0001.png", grey(0))
    with pytest.raises(InputError, match=r"case0_0001\.png: not named NAME_0000\.png"):
        open_folder(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset\.json: not readable as JSON"):
        open_folder(folder)

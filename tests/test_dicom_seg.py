"""DICOM Segmentations as masks, of images and of clips, as highdicom writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_clip_segmentation, write_segmentation, write_source
from numpy.typing import NDArray

from csg_edge.conditions.dicom_seg import labelled_frames
from csg_edge.conditions.files import read_mask
from csg_edge.conditions.frames import frame_count
from csg_edge.datasets.labelled_set import open_set
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA, LabelSchema

pytest.importorskip("highdicom", reason="the augment extra is not installed")
SHAPE = (37, 45)  # whose bits fill no whole byte
SCHEMA = LabelSchema(("background", "nerve", "vessel"))

Image = NDArray[np.uint8]


def labels(shift: int = 0) -> Image:
    """A nerve and a vessel."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[5 + shift : 15 + shift, 7:20] = 1
    mask[18:30, 21 : 33 + shift] = 2
    return mask


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segments_become_classes_by_their_labels(tmp_path: Path, kind: str) -> None:
    image = write_source(tmp_path / "image.dcm", SHAPE)
    path = write_segmentation(tmp_path / "mask.dcm", image, labels()[None], kind=kind)
    assert labelled_frames(path) is None
    np.testing.assert_array_equal(read_mask(path, SCHEMA), labels())
    wanted = np.array([0, MSK_SCHEMA.index("nerve"), MSK_SCHEMA.index("vessel")], np.uint8)[labels()]
    np.testing.assert_array_equal(read_mask(path, MSK_SCHEMA), wanted)


def test_half_a_fraction_is_inside(tmp_path: Path) -> None:
    image = write_source(tmp_path / "image.dcm", SHAPE)
    shares = np.stack([np.where(labels() == 1, 0.5, 0.0), np.where(labels() == 2, 0.45, 0.2)], -1)[None]
    path = write_segmentation(tmp_path / "mask.dcm", image, shares, kind="FRACTIONAL")
    np.testing.assert_array_equal(read_mask(path, SCHEMA), np.where(labels() == 1, 1, 0))


def test_only_the_frames_that_a_clip_has_labelled(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(("first", "second")):
        image = write_source(tmp_path / "images" / f"{name}.dcm", SHAPE, frames=5)
        masks = {1: labels(number), 3: labels(number + 2)}
        write_clip_segmentation(tmp_path / "masks" / f"{name}.dcm", image, masks)
    assert labelled_frames(tmp_path / "masks" / "first.dcm") == [1, 3]
    (tmp_path / "labels.json").write_text(json.dumps({"names": SCHEMA.names}))
    found = open_set(tmp_path)
    names = [item.name for item in found.examples]
    assert names == ["first_f001", "first_f003", "second_f001", "second_f003"]
    image, mask = found.read(names.index("second_f003"))
    assert image.shape == SHAPE
    np.testing.assert_array_equal(mask, labels(3))
    with pytest.raises(InputError, match=r"labels 2 frames of a clip; name one, first.dcm#1"):
        read_mask(tmp_path / "masks" / "first.dcm", SCHEMA)
    with pytest.raises(InputError, match=r"labels no frame 2; those it labels are 1, 3"):
        read_mask(tmp_path / "masks" / "first.dcm#2", SCHEMA)
    assert frame_count(tmp_path / "masks" / "first.dcm") == 4


def test_what_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    image = write_source(tmp_path / "image.dcm", SHAPE)
    path = write_segmentation(tmp_path / "mask.dcm", image, labels()[None], names=("nerve", "lesion"))
    with pytest.raises(InputError, match="segment 'lesion' is no class; label segments nerve, vessel"):
        read_mask(path, SCHEMA)
    path = write_segmentation(tmp_path / "mask.dcm", image, labels()[None])
    damaged = pydicom.dcmread(path)
    damaged.PerFrameFunctionalGroupsSequence[1].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 7
    damaged.save_as(path)
    with pytest.raises(InputError, match="a frame of segment 7, which it does not describe"):
        read_mask(path, SCHEMA)
    sources = damaged.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence
    sources[0].ReferencedSOPInstanceUID = "1.2.3.9"
    damaged.save_as(path)
    with pytest.raises(InputError, match="labels 2 images; export one Segmentation"):
        read_mask(path, SCHEMA)
    del damaged.PerFrameFunctionalGroupsSequence
    damaged.save_as(path)
    with pytest.raises(InputError, match="frames cannot be told apart"):
        read_mask(path, SCHEMA)

"""Calibration samples: by id, from train groups only, the same list the same pixels; what cannot be used is refused."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import tiny_data

from csg_edge.bundle.manifest import Manifest, read_manifest
from csg_edge.calibration.samples import CalibrationSet, Sample, draw_samples, read_list, read_samples, write_list
from csg_edge.conditions.files import write_png
from csg_edge.datasets.layouts import open_folder
from csg_edge.datasets.phantom import split_of
from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema
from csg_edge.noise import noise_for


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six train images of as many groups, then two held out."""
    return tiny_data(tmp_path_factory.mktemp("calibration") / "scans", train=6, val=2)


@pytest.fixture(scope="session")
def manifest(shipped: Path) -> Manifest:
    return read_manifest(shipped / "manifest.json")


def read(data: Path, manifest: Manifest, count: int = 4) -> CalibrationSet:
    return read_samples([data], draw_samples([data], count=count, seed=0), manifest)


def test_samples_are_of_train_groups_with_contexts_of_another(data: Path) -> None:
    splits = {example.name: (example.group, example.split) for example in open_folder(data).examples}
    samples = draw_samples([data], count=6, seed=0)
    assert len({sample.image for sample in samples}) == 6
    for sample in samples:
        assert splits[sample.image] == (sample.group, "train")
        assert splits[sample.context][1] == "train"
        assert splits[sample.context][0] != sample.group


def test_the_seed_decides(data: Path) -> None:
    first, again, other = (draw_samples([data], count=6, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_several_sets_take_turns(data: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(data, tmp_path / "other"))
    samples = draw_samples([data, second], count=6, seed=0)
    assert [sample.set for sample in samples] == ["scans", "other"] * 3


def test_a_list_gives_the_same_feeds_again(data: Path, manifest: Manifest, tmp_path: Path) -> None:
    drawn = draw_samples([data], count=4, seed=0)
    write_list(tmp_path / "list.csv", drawn)
    assert read_list(tmp_path / "list.csv", count=4) == drawn
    first, again = (
        read_samples([data], samples, manifest) for samples in (drawn, read_list(tmp_path / "list.csv", count=4))
    )
    assert first.fingerprint == again.fingerprint
    feeds = again.feeds(2)
    assert feeds["mask"].shape == feeds["context"].shape == (1, 256, 256)
    np.testing.assert_array_equal(feeds["noise"], noise_for(drawn[2].seed, manifest.noise_shape)[None])
    # Another seed is another calibration.
    changed = read_samples([data], [replace(drawn[0], seed=drawn[0].seed + 1), *drawn[1:]], manifest)
    assert changed.fingerprint != first.fingerprint
    assert first.take(2).fingerprint == read_samples([data], drawn[:2], manifest).fingerprint


def test_an_image_of_a_held_out_group_is_refused_by_id(data: Path, manifest: Manifest) -> None:
    held_out = next(example for example in open_folder(data).examples if example.split == "val")
    good = draw_samples([data], count=3, seed=0)
    for bad in (
        Sample("scans", held_out.group, held_out.name, good[0].image, 1),
        replace(good[0], context=held_out.name),
    ):
        with pytest.raises(
            InputError, match=rf"scans/{held_out.name}: group {held_out.group} is held out.*take it off"
        ):
            read_samples([data], [*good, bad], manifest)


def test_a_group_of_two_splits_is_held_out(data: Path, tmp_path: Path, manifest: Manifest) -> None:
    mixed = Path(shutil.copytree(data, tmp_path / "scans"))
    samples = draw_samples([data], count=6, seed=0)
    regroup(mixed, lambda row: {**row, "group": "g7"} if row["name"] == samples[0].image else row)
    with pytest.raises(InputError, match="is in splits"):
        read_samples([mixed], samples, manifest)


def test_masks_with_unknown_classes_are_refused(data: Path, manifest: Manifest) -> None:
    fewer = replace(manifest, labels=LabelSchema(("background", "muscle")).names)
    with pytest.raises(InputError, match="rename the class"):
        read(data, fewer)


def test_equal_masks_or_constant_contexts_are_refused(data: Path, tmp_path: Path, manifest: Manifest) -> None:
    for kind, message in (("masks", "masks are the same"), ("images", "contexts are constant")):
        flat = Path(shutil.copytree(data, tmp_path / kind / "scans"))
        for path in (flat / kind).iterdir():
            write_png(path, np.full((256, 256), 3, np.uint8))
        with pytest.raises(InputError, match=message):
            read(flat, manifest)


@pytest.mark.parametrize(
    ("count", "message"),
    [(7, "has 6 images of train groups; give more data or --samples 6"), (1, "at least 2")],
)
def test_fewer_samples_than_asked(data: Path, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_samples([data], count=count, seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("a,b\n1,2\n", "not a list of samples"),
        ("set,group,image,context,seed\nscans,g0,000000,000001,x\n", "not a list of samples"),
        ("set,group,image,context,seed\n", "0 samples, 3 asked for"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "list.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_list(path, count=3)


def test_a_list_of_other_data(data: Path, manifest: Manifest) -> None:
    samples = draw_samples([data], count=3, seed=0)
    with pytest.raises(InputError, match=r"sample of set other.*add the folder"):
        read_samples([data], [replace(samples[0], set="other")], manifest)
    with pytest.raises(InputError, match=r"scans/nowhere: no such image"):
        read_samples([data], [replace(samples[0], image="nowhere")], manifest)


def regroup(folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    path = folder / "manifest.csv"
    with path.open(newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


class TestCommittedList:
    """`calibration/msk-256.csv`, by which the shipped int8 engines were made."""

    path = Path(__file__).parents[1] / "calibration" / "msk-256.csv"

    def test_it_is_the_one_in_the_bundle_and_its_phantoms_are_of_train_groups(self, shipped: Path) -> None:
        assert self.path.read_bytes() == (shipped / "calibration" / "samples.csv").read_bytes()
        samples = read_list(self.path, count=300)
        phantoms = [sample for sample in samples if sample.set == "phantom"]
        assert len(phantoms) == 100
        assert {split_of(int(name)) for sample in phantoms for name in (sample.image, sample.context)} == {"train"}

    def test_its_real_images_are_of_train_groups(self, real_data: Path, manifest: Manifest) -> None:
        samples = [sample for sample in read_list(self.path, count=300) if sample.set != "phantom"]
        assert len(samples) == 200
        assert len(read_samples([real_data], samples, manifest)) == 200  # refuses others by id

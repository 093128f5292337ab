"""The phantom: reproducible bytes, anatomy apart from look, the physics a reader would check, the written folder."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from csg_edge.datasets import phantom
from csg_edge.datasets.anatomy import Band, Blob, Curve, Geometry
from csg_edge.datasets.phantom import (
    SCENES,
    Appearance,
    make_phantom,
    render_image,
    render_mask,
    sample_appearance,
    sample_geometry,
    write_phantoms,
)
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA

NEUTRAL = Appearance(noise_db=-90.0, near_field_db=0.0)  # no noise floor, no near-field glare
SEEDS = range(6)


def envelope_of_homogeneous_tissue(appearance: Appearance, *, seed: int, size: int = 512) -> NDArray[np.float32]:
    return phantom.form_envelope(np.full((size, size), 0.1, np.float32), appearance, seed=seed)


def mean_grey(scene: str, label: str, other: str) -> list[tuple[float, float]]:
    """Mean grey level inside two labels, over the seeds whose mask holds enough of both."""
    pairs = []
    for seed in SEEDS:
        geometry = sample_geometry(seed, scene=scene)
        image, mask = render_image(geometry, NEUTRAL, seed=seed), render_mask(geometry)
        inside = [mask == MSK_SCHEMA.index(name) for name in (label, other)]
        if min(np.count_nonzero(region) for region in inside) > 80:
            pairs.append((float(image[inside[0]].mean()), float(image[inside[1]].mean())))
    assert len(pairs) >= 3
    return pairs


@pytest.mark.parametrize("scene", SCENES)
def test_same_seed_same_bytes(scene: str) -> None:
    first, second = (make_phantom(3, scene=scene) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.mask.tobytes() == second.mask.tobytes()
    assert (first.geometry, first.appearance) == (second.geometry, second.appearance)
    assert first.image.dtype == first.mask.dtype == np.uint8
    assert first.image.tobytes() != make_phantom(4, scene=scene).image.tobytes()


def test_appearance_seed_changes_image_and_not_mask() -> None:
    one, two = make_phantom(5, appearance_seed=1), make_phantom(5, appearance_seed=2)
    assert one.geometry == two.geometry
    assert np.array_equal(one.mask, two.mask)
    assert one.appearance == sample_appearance(1)
    assert np.mean(one.image != two.image) > 0.5


def test_one_appearance_serves_many_geometries() -> None:
    one, two = make_phantom(5, appearance_seed=7), make_phantom(6, appearance_seed=7)
    assert one.appearance == two.appearance
    assert one.geometry != two.geometry


def test_realisation_changes_speckle_and_not_structure() -> None:
    geometry = sample_geometry(2, scene="muscle")
    one, two = (render_image(geometry, NEUTRAL, seed=seed).astype(np.float32) for seed in (0, 1))
    assert np.mean(one != two) > 0.5
    smooth = [cv2.GaussianBlur(image, (0, 0), 4).ravel() for image in (one, two)]
    assert np.corrcoef(*smooth)[0, 1] > 0.9  # the streaks belong to the anatomy


def test_every_class_appears_and_scenes_carry_their_own() -> None:
    names = {}
    for scene in SCENES:
        masks = [render_mask(sample_geometry(seed, scene=scene)) for seed in SEEDS]
        names[scene] = {MSK_SCHEMA.names[k] for k in np.unique(masks)}
    assert set().union(*names.values()) == set(MSK_SCHEMA.names)
    assert names["nerve_vessel"] == {"background", "nerve", "vessel"}
    assert names["muscle"] == {"superficial_tissue", "aponeurosis", "muscle", "deep_tissue"}
    assert "ditf" in names["tendon_ditf"]
    assert "ditf" not in names["tendon"]


def test_muscle_scene_is_labelled_in_the_bands_of_the_public_set() -> None:
    for seed in SEEDS:
        for column in render_mask(sample_geometry(seed, scene="muscle")).T[::32]:
            changes = column[np.flatnonzero(np.diff(column, prepend=255))]
            assert changes.tolist() == [2, 1, 3, 1, 4]


@pytest.mark.parametrize("seed", SEEDS)
def test_ditf_lies_within_tendon_in_every_torn_scene(seed: int) -> None:
    torn = render_mask(sample_geometry(seed, scene="tendon_ditf"))
    gap = (torn == MSK_SCHEMA.index("ditf")).astype(np.uint8)
    assert gap.sum() > 30
    rim = cv2.dilate(gap, np.ones((3, 3), np.uint8)).astype(bool) & ~gap.astype(bool)
    assert np.mean(torn[rim] == MSK_SCHEMA.index("tendon")) > 0.5


@pytest.mark.parametrize("frequency", [5.0, 10.0])
def test_homogeneous_tissue_gives_fully_developed_speckle(frequency: float) -> None:
    envelope = envelope_of_homogeneous_tissue(replace(NEUTRAL, frequency_mhz=frequency), seed=0)
    for rows in (slice(32, 160), slice(192, 320), slice(352, 480)):  # every depth band and the joints between them
        area = envelope[rows, 32:-32]
        # Rayleigh: sqrt(pi / (4 - pi)) = 1.913; a few thousand speckles leave about 2 %, the joints another 2 %.
        assert area.mean() / area.std() == pytest.approx(1.913, rel=0.05)
    assert np.sqrt(np.mean(envelope**2)) == pytest.approx(0.1, rel=0.08)


def axial_correlation(envelope: NDArray[np.float32], lag: int) -> float:
    centred = envelope - envelope.mean()
    return float(np.mean(centred[lag:] * centred[:-lag]) / np.mean(centred**2))


def test_higher_frequency_narrows_the_axial_autocorrelation() -> None:
    low, high = (
        axial_correlation(envelope_of_homogeneous_tissue(replace(NEUTRAL, frequency_mhz=f), seed=1), lag=2)
        for f in (5.0, 12.0)
    )
    assert high < 0.5 * low


def test_lateral_resolution_is_best_at_the_focus() -> None:
    focus, deep = (phantom.psf_sigma(replace(NEUTRAL, focal_depth=0.3), depth)[1] for depth in (0.3, 0.9))
    assert focus < 0.7 * deep


@pytest.mark.parametrize(
    ("scene", "dark", "bright", "ratio"),
    [
        ("nerve_vessel", "vessel", "background", 0.5),
        ("nerve_vessel", "vessel", "nerve", 0.5),
        ("bone", "background", "muscle", 0.5),  # background in a bone scene is the shadow
        ("bone", "muscle", "bone", 0.7),
        ("tendon_ditf", "ditf", "tendon", 0.75),
        ("muscle", "muscle", "aponeurosis", 0.7),
        ("tendon", "deep_tissue", "tendon", 0.75),
    ],
)
def test_contrast_between_tissues(scene: str, dark: str, bright: str, ratio: float) -> None:
    pairs = mean_grey(scene, dark, bright)
    assert np.mean([a for a, _ in pairs]) < ratio * np.mean([b for _, b in pairs])
    assert all(a < b for a, b in pairs)


def test_tissue_behind_a_vessel_is_enhanced() -> None:
    vessel = Blob("vessel", 0.5, 0.35, 0.12, 0.1)
    geometry = Geometry("muscle", 0, (Band("muscle", Curve(-0.1)),), (vessel,))
    image = render_image(geometry, replace(NEUTRAL, frequency_mhz=10.0), seed=0)
    behind, beside = image[128:220, 113:143], np.delete(image[128:220], np.s_[80:176], axis=1)
    assert behind.mean() > beside.mean() + 10


@pytest.mark.parametrize("size", [64, 512])
def test_sizes(size: int) -> None:
    small = make_phantom(1, size=size, scene="tendon")
    assert small.image.shape == small.mask.shape == (size, size)
    reference = cv2.resize(render_mask(small.geometry), (size, size), interpolation=cv2.INTER_NEAREST)
    assert np.mean(reference == small.mask) > 0.97  # the same anatomy at every size
    assert small.image.std() > 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": 1, "size": 100}, "multiple of 32"),
        ({"seed": 1, "size": 32}, "multiple of 32"),
        ({"seed": 1, "size": 1024}, "multiple of 32"),
        ({"seed": 1, "scene": "liver"}, "choose from muscle"),
        ({"seed": 1, "appearance_seed": -2}, "seed is -2"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_phantom(**arguments)  # type: ignore[arg-type]


def test_write_phantoms_layout(tmp_path: Path) -> None:
    target = tmp_path / "new" / "set"
    write_phantoms(target, count=7, seed=11, size=64)
    names = [f"{k:06d}.png" for k in range(7)]
    for folder in ("images", "masks", "contexts"):
        assert sorted(path.name for path in (target / folder).iterdir()) == names
    assert json.loads((target / "labels.json").read_text())["names"] == list(MSK_SCHEMA.names)
    with (target / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "scene", "seed", "appearance_seed", "group", "split"]
    assert [row["name"] + ".png" for row in rows] == names
    assert [len({row["group"] for row in part}) for part in (rows[:5], rows[5:], rows)] == [1, 1, 2]
    row = rows[6]
    again = make_phantom(int(row["seed"]), size=64, appearance_seed=int(row["appearance_seed"]))
    read = {kind: cv2.imread(str(target / kind / names[6]), cv2.IMREAD_UNCHANGED) for kind in ("images", "masks")}
    assert np.array_equal(read["images"], again.image)
    assert np.array_equal(read["masks"], again.mask)
    assert again.geometry.scene == row["scene"]
    assert [path.name for path in target.parent.iterdir()] == ["set"]  # nothing left aside


def read_splits(folder: Path) -> list[tuple[str, str]]:
    """(group, split) of each image, in order."""
    with (folder / "manifest.csv").open() as file:
        return [(row["group"], row["split"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("count", "train", "val"),
    [(5, 1, 0), (6, 1, 1), (20, 3, 1), (30, 5, 1), (35, 5, 2)],  # a second group, however small, is a val group
)
def test_write_phantoms_splits_by_group(tmp_path: Path, count: int, train: int, val: int) -> None:
    write_phantoms(tmp_path, count=count, seed=0, size=64)  # an empty folder that exists is fine
    rows = read_splits(tmp_path)
    groups = {split: {group for group, own in rows if own == split} for split in ("train", "val")}
    assert (len(groups["train"]), len(groups["val"])) == (train, val)
    assert not groups["train"] & groups["val"]


def test_a_longer_folder_begins_with_the_shorter_one(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    for folder, count in ((short, 6), (long, 12)):
        write_phantoms(folder, count=count, seed=3, size=64)
    assert read_splits(long)[:6] == read_splits(short)
    for path in short.glob("*/*.png"):
        assert path.read_bytes() == (long / path.relative_to(short)).read_bytes()


def test_write_phantoms_refuses_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty folder"):
        write_phantoms(full, count=1, seed=0)
    for arguments, message in (({"count": 0, "seed": 0}, "count is 0"), ({"count": 1, "seed": -3}, "seed is -3")):
        with pytest.raises(InputError, match=message):
            write_phantoms(tmp_path / "new", **arguments)
    with pytest.raises(InputError, match="multiple of 32"):
        write_phantoms(tmp_path / "new", count=1, seed=0, size=65)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(phantom.json, "dumps", fail)
    with pytest.raises(InputError, match=r"cannot write \(disk full\)"):
        write_phantoms(tmp_path / "new", count=1, seed=0, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (full / "mine.txt").read_text() == "keep"

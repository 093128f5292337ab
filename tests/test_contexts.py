"""The bank of contexts: what its style measures, how it chooses, what it keeps between runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from csg_edge.conditions import contexts, mask_moves
from csg_edge.conditions.contexts import ContextBank, style_of
from csg_edge.conditions.files import read_context, write_png
from csg_edge.datasets.labelled_set import find_sets, read_set
from csg_edge.datasets.phantom import render_image, sample_appearance, sample_geometry
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA

Image = NDArray[np.uint8]
LOOKS = 6
ANATOMIES = 3


def in_look(look: int, anatomy: int) -> Image:
    return render_image(sample_geometry(anatomy, scene="muscle"), sample_appearance(look), seed=anatomy, size=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every look with every anatomy: `LOOK_ANATOMY.png`."""
    path = tmp_path_factory.mktemp("contexts")
    for look in range(LOOKS):
        for anatomy in range(ANATOMIES):
            write_png(path / f"{look}_{anatomy}.png", in_look(look, anatomy))
    return path


@pytest.fixture(scope="module")
def bank(folder: Path) -> ContextBank:
    return ContextBank.index(folder, cache=False)


class TestStyle:
    def test_the_nearest_shares_the_look_more_often_than_chance(self, folder: Path, bank: ContextBank) -> None:
        hits = [bank.nearest(read_context(path))[0].path.name[0] == path.name[0] for path in bank.paths]
        assert np.mean(hits) > 0.4  # chance: 2 of 17

    def test_left_and_right_are_the_same(self) -> None:
        image = in_look(0, 0)
        np.testing.assert_allclose(style_of(image), style_of(image[:, ::-1].copy()), atol=1e-5)

    @pytest.mark.parametrize("change", ["gain", "blur", "speckle"])
    def test_looks_weigh_more_than_a_bend(self, bank: ContextBank, change: str) -> None:
        def moved(other: Image, image: Image) -> float:
            return float(np.linalg.norm(bank._placed(style_of(other)) - bank._placed(style_of(image))))

        look, geometry = sample_appearance(1), sample_geometry(1)
        image = render_image(geometry, look, seed=1, size=256)
        source = mask_moves.deformed(0.02, np.random.default_rng(0)).source(image.shape)
        bent = cv2.remap(image, *source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        changed = {
            "gain": lambda: render_image(geometry, replace(look, gain_db=look.gain_db + 8), seed=1),
            "blur": lambda: np.asarray(cv2.GaussianBlur(image, (0, 0), 1.5), np.uint8),
            "speckle": lambda: render_image(geometry, replace(look, speckle_size=2 * look.speckle_size), seed=1),
        }[change]()
        assert moved(changed, image) > 2 * moved(np.asarray(bent, np.uint8), image)

    def test_real_images_are_nearest_to_their_own_kind(self, real_data: Path) -> None:
        images, sets = [], []
        for directory in find_sets(real_data):
            data = read_set(directory, MSK_SCHEMA, split="val", size=256)
            images += list(data.images)
            sets += [data.name] * len(data)
        bank = ContextBank([Path(str(i)) for i in range(len(images))], np.stack([style_of(image) for image in images]))
        found = [sets[int(bank.nearest(image)[0].path.name)] for image in images]
        assert np.mean([one == other for one, other in zip(found, sets, strict=True)]) > 0.85  # chance: 0.52


class TestChoosing:
    def test_nearest_first_and_never_itself(self, folder: Path, bank: ContextBank) -> None:
        path = folder / "2_1.png"
        image = read_context(path)
        found = bank.nearest(image, 5)
        distances = [chosen.distance for chosen in found]
        assert distances == sorted(distances)  # type: ignore[type-var]
        assert path not in [chosen.path for chosen in found]
        assert bank.nearest(image[:, ::-1].copy())[0].path == found[0].path  # nor its mirror image's original
        itself = bank.nearest(image, itself=True)[0]
        assert itself.path == path
        assert itself.distance == pytest.approx(0, abs=1e-4)

    def test_more_than_there_are(self, folder: Path, bank: ContextBank) -> None:
        with pytest.raises(InputError, match="18 of 17 that are not the query itself; give more contexts"):
            bank.nearest(read_context(folder / "0_0.png"), 18)
        with pytest.raises(InputError, match="diverse contexts: 19 of 18; give more"):
            bank.diverse(19, seed=0)

    def test_diverse_is_farther_apart_than_random(self, bank: ContextBank) -> None:
        def spread(paths: list[Path]) -> float:
            points = bank.points[[bank.paths.index(path) for path in paths]]
            gaps = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(len(points))
            return float(gaps.min())

        drawn = [spread([bank.paths[i] for i in np.random.default_rng(s).permutation(18)[:5]]) for s in range(20)]
        assert spread([chosen.path for chosen in bank.diverse(5, seed=0)]) > np.max(drawn)

    def test_diverse_takes_each_once_from_a_seeded_start(self, bank: ContextBank) -> None:
        order = bank.diverse(18, seed=3)
        assert {chosen.path for chosen in order} == set(bank.paths)
        gaps = [chosen.distance for chosen in order]
        assert gaps[0] is None
        assert gaps[1:] == sorted(gaps[1:], reverse=True)  # type: ignore[type-var]
        assert order == bank.diverse(18, seed=3)
        assert len({bank.diverse(1, seed=seed)[0].path for seed in range(20)}) > 5

    def test_copies_are_taken_once_each(self, folder: Path) -> None:
        path = folder / "0_0.png"
        bank = ContextBank([path] * 3, np.stack([style_of(read_context(path))] * 3))
        assert len(bank.diverse(3, seed=0)) == 3

    def test_draw(self, bank: ContextBank) -> None:
        assert bank.draw(5) == bank.draw(5)
        assert {bank.draw(seed).path for seed in range(200)} == set(bank.paths)


class TestIndex:
    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows by one with each image whose style is computed."""
        calls: list[int] = []

        def counting(image: Image) -> contexts.Style:
            calls.append(1)
            return style_of(image)

        monkeypatch.setattr(contexts, "style_of", counting)
        return calls

    @pytest.fixture
    def images(self, tmp_path: Path, folder: Path) -> Path:
        path = tmp_path / "images"
        path.mkdir()
        for name in ("0_0.png", "1_0.png", "2_0.png"):
            (path / name).write_bytes((folder / name).read_bytes())
        return path

    @pytest.mark.parametrize("named", [False, True], ids=["user's cache", "file"])
    def test_only_what_is_new_is_measured(
        self, images: Path, folder: Path, tmp_path: Path, measured: list[int], named: bool
    ) -> None:
        cache = tmp_path / "bank.npz" if named else True
        before = sorted(images.iterdir())
        first = ContextBank.index(images, cache=cache)
        assert len(measured) == 3
        again = ContextBank.index(images, cache=cache)
        assert len(measured) == 3
        np.testing.assert_array_equal(first.points, again.points)
        assert sorted(images.iterdir()) == before  # nothing is written beside the images
        (images / "2_0.png").rename(images / "other.png")
        ContextBank.index(images, cache=cache)
        assert len(measured) == 3
        (images / "0_0.png").write_bytes((folder / "3_1.png").read_bytes())  # same name, other content
        changed = ContextBank.index(images, cache=cache)
        assert len(measured) == 4
        np.testing.assert_array_equal(changed.points, ContextBank.index(images, cache=False).points)
        assert not list(tmp_path.glob(".*"))

    def test_a_file_that_is_no_index_is_left_alone(self, images: Path, tmp_path: Path) -> None:
        mine = tmp_path / "mine.npz"
        mine.write_bytes(b"not an archive")
        with pytest.raises(InputError, match=r"mine\.npz: not an index of contexts; remove it or name another file"):
            ContextBank.index(images, cache=mine)
        assert mine.read_bytes() == b"not an archive"

    def test_an_index_of_another_version_is_made_anew(
        self, images: Path, tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ContextBank.index(images, cache=tmp_path / "bank.npz")
        monkeypatch.setattr(contexts, "VERSION", contexts.VERSION + 1)
        ContextBank.index(images, cache=tmp_path / "bank.npz")
        assert len(measured) == 6

    def test_a_damaged_image_is_named(self, images: Path, tmp_path: Path) -> None:
        (images / "1_0.png").write_bytes(b"no image")
        with pytest.raises(InputError, match=r"1_0\.png: not a readable image"):
            ContextBank.index(images, cache=tmp_path / "bank.npz")
        assert not (tmp_path / "bank.npz").exists()

    def test_nothing_to_index(self) -> None:
        with pytest.raises(InputError, match="give one style for each path"):
            ContextBank.index([])

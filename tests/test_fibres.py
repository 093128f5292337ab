"""The fibre field as a condition: measured in images, asked for by class, in files, drawn over an image."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from csg_edge.conditions import fibres
from csg_edge.conditions.fibre_files import FORMATS, draw_field, field_names, read_field, write_field
from csg_edge.conditions.fibres import (
    GIVEN,
    SHAPE,
    SIDE,
    Wish,
    check_field,
    class_directions,
    directions,
    field_of_image,
    field_of_mask,
    laid_over,
    nothing_given,
    parse_wishes,
)
from csg_edge.conditions.files import read_context
from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA

MUSCLE = MSK_SCHEMA.index("muscle")


def stripes(degrees: float, *, size: int = 256, amplitude: float = 80.0, mean: float = 120.0) -> NDArray[np.uint8]:
    """Straight fibres that rise to the right by so many degrees."""
    rows, columns = np.indices((size, size), dtype=np.float64)
    angle = np.radians(degrees)
    across = columns * np.sin(angle) + rows * np.cos(angle)
    return np.asarray(mean + amplitude * np.sin(across * 100 / size), np.uint8)


def half_muscle() -> NDArray[np.uint8]:
    """Muscle in the lower half, background above."""
    mask = np.zeros((256, 256), np.uint8)
    mask[128:] = MUSCLE
    return mask


class TestFieldOfImage:
    @pytest.mark.parametrize("degrees", [-75, -30, -5, 0, 12, 45, 80])
    def test_finds_the_direction_of_straight_fibres(self, degrees: float) -> None:
        field = check_field(field_of_image(stripes(degrees)), name="field")
        angle, coherence = directions(field)
        error = np.abs((angle - degrees + 90) % 180 - 90)
        assert error[1:-1, 1:-1].max() < 0.5
        assert error.max() < 3.5  # at the borders, where the image is continued by its mirror image
        assert coherence.min() > 0.7 and (field[GIVEN] == 1).all()

    def test_a_mirrored_image_has_the_mirrored_field(self) -> None:
        image = make_phantom(3).image
        expected = field_of_image(image)[:, :, ::-1] * np.array([1, -1, 1], np.float32)[:, None, None]
        np.testing.assert_allclose(field_of_image(np.ascontiguousarray(image[:, ::-1])), expected, atol=1e-5)

    def test_gain_and_offset_do_not_count(self) -> None:
        plain, changed = (field_of_image(stripes(20, amplitude=a, mean=m)) for a, m in ((40, 60), (90, 120)))
        assert np.abs(plain - changed)[:GIVEN].max() < 0.05

    def test_where_nothing_is_imaged_there_is_no_direction(self) -> None:
        image = stripes(20)
        image[:, 160:] = 0
        _, coherence = directions(field_of_image(image))
        assert coherence[:, 12:].max() < 0.05 and coherence[:, 1:8].min() > 0.7

    def test_another_size_gives_the_same_direction(self) -> None:
        angle, _ = directions(field_of_image(stripes(25, size=512)))
        assert np.abs(angle - 25).max() < 1.5

    def test_too_small_an_image_is_refused(self) -> None:
        with pytest.raises(InputError, match="64 x 64"):
            field_of_image(np.zeros((32, 256), np.uint8))

    def test_agrees_with_the_fascicles_that_experts_drew(self, real_data: Path) -> None:
        """DL_Track: against each drawn fascicle, the median over images is to be within 6 degrees."""
        folder = real_data / "dltrack_aponeurosis"
        errors = []
        for path in sorted((folder / "masks_fascicle").glob("*.png")):
            field = field_of_image(
                cv2.resize(read_context(folder / "images" / path.name), (256, 256), interpolation=cv2.INTER_AREA)
            )
            found = _against_fascicles(field, read_context(path))
            if found is not None:
                errors.append(found)
        assert len(errors) > 70
        assert np.median(errors) <= 6.0


def _against_fascicles(field: NDArray[np.float32], drawn: NDArray[np.uint8]) -> float | None:
    """Median absolute difference, in degrees, along the fascicles of one image, in the square that images become."""
    side = 512
    square = cv2.resize((drawn > 0).astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) > 0.4
    angle, _ = directions(field)
    _, parts = cv2.connectedComponents(square.astype(np.uint8))
    differences: list[float] = []
    for part in range(1, parts.max() + 1):
        rows, columns = np.nonzero(parts == part)
        if len(rows) < 40:
            continue
        spread, axes = np.linalg.eigh(np.cov(np.stack([columns, rows])))
        if spread[1] < 9 * spread[0]:
            continue
        degrees = np.degrees(np.arctan(-axes[1, 1] / axes[0, 1]))
        here = angle[rows * SIDE // side, columns * SIDE // side]
        differences += np.abs((here - degrees + 90) % 180 - 90).tolist()
    return float(np.median(differences)) if differences else None


class TestWishes:
    def test_reads_directions_ranges_and_coherence(self) -> None:
        wishes = parse_wishes("muscle=18deg, tendon=-5..5deg:0.8,ditf=0deg:0?", MSK_SCHEMA)
        assert wishes == [
            Wish("muscle", 18, 18), Wish("tendon", -5, 5, 0.8), Wish("ditf", 0, 0, 0.0, optional=True)
        ]  # fmt: skip
        assert [parse_wishes(str(wish), MSK_SCHEMA)[0] for wish in wishes] == wishes

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("muscle", "muscle=18deg"),
            ("muscle=18", "muscle=18deg"),
            ("muscle=18deg,", "muscle=18deg"),
            ("brain=3deg", "brain"),
            ("muscle=120deg", "-90 to 90"),
            ("muscle=20..10deg", "smaller first"),
            ("muscle=3deg:1.5", "coherence"),
            ("muscle=3deg,muscle=4deg", "twice"),
            ("muscle=nandeg", "muscle=18deg"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, text: str, says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            parse_wishes(text, MSK_SCHEMA)
        assert "\n" not in str(error.value)

    def test_a_class_is_given_its_direction_and_nothing_else_is_given(self) -> None:
        field = check_field(field_of_mask(half_muscle(), MSK_SCHEMA, [Wish("muscle", 18, 18)], seed=0), name="field")
        angle, coherence = directions(field)
        assert (field[:, :8] == 0).all() and (field[GIVEN, 8:] == 1).all()
        np.testing.assert_allclose(angle[8:], 18, atol=1e-3)
        np.testing.assert_allclose(coherence[8:], fibres.COHERENCE, atol=1e-6)

    def test_a_range_is_drawn_from_by_the_seed(self) -> None:
        found = [
            directions(field_of_mask(half_muscle(), MSK_SCHEMA, [Wish("muscle", -10, 25)], seed=seed))[0][12, 3]
            for seed in range(40)
        ]
        assert min(found) >= -10 and max(found) <= 25 and np.ptp(found) > 20
        again = directions(field_of_mask(half_muscle(), MSK_SCHEMA, [Wish("muscle", -10, 25)], seed=7))[0][12, 3]
        assert again == found[7]

    def test_a_class_that_the_mask_lacks(self) -> None:
        with pytest.raises(InputError, match="the mask has no tendon"):
            field_of_mask(half_muscle(), MSK_SCHEMA, [Wish("tendon", 0, 0)], seed=0)
        assert not field_of_mask(half_muscle(), MSK_SCHEMA, [Wish("tendon", 0, 0, optional=True)], seed=0).any()

    def test_one_field_over_another(self) -> None:
        below = field_of_image(stripes(10))
        above = field_of_mask(half_muscle(), MSK_SCHEMA, [Wish("muscle", 40, 40, 0.5)], seed=0)
        both = check_field(laid_over(below, above), name="both")
        np.testing.assert_allclose(both[:, :8], below[:, :8], atol=1e-6)
        np.testing.assert_allclose(both[:, 8:], above[:, 8:], atol=1e-6)

    def test_directions_by_class(self) -> None:
        found = class_directions(field_of_image(stripes(20)), half_muscle(), MSK_SCHEMA)
        assert set(found) == {"background", "muscle"}
        assert found["muscle"]["direction_deg"] == pytest.approx(20, abs=0.5)
        assert 0.7 < found["muscle"]["coherence"] <= 1


class TestChecks:
    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda field: field.astype(np.float64), "float32"),
            (lambda field: field[:2], "float32"),
            (lambda field: field[:, :8], "float32"),
            (lambda field: field.tolist(), "list"),
            (lambda field: np.where(field > 0.3, np.float32("nan"), field), "NaN"),
            (lambda field: field * np.float32(1.5), "coherence"),
            (lambda field: np.concatenate([field[:2], field[2:] + np.float32(0.2)]), "third channel"),
        ],
    )
    def test_a_bad_field_is_one_line(self, damage: object, says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            check_field(damage(field_of_image(stripes(20))), name="field")  # type: ignore[operator]
        assert "\n" not in str(error.value)


class TestFiles:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_comes_back_as_it_went(self, kind: str, tmp_path: Path) -> None:
        field = field_of_mask(half_muscle(), MSK_SCHEMA, [Wish("muscle", -33, -33, 0.7)], seed=0)
        paths = write_field(tmp_path, "one", field, kind=kind)
        assert field_names(tmp_path) == [("one", paths[0])]
        again = read_field(paths[0])
        exact = {"npz": 0.0, "csv": 1e-4, "png": 0.02}[kind]
        np.testing.assert_allclose(again, field, atol=exact)

    def test_a_pair_may_be_named_by_either_file(self, tmp_path: Path) -> None:
        first, second = write_field(tmp_path, "one", field_of_image(stripes(20)), kind="png")
        np.testing.assert_array_equal(read_field(first), read_field(second))

    def test_two_channels_are_all_given(self, tmp_path: Path) -> None:
        field = field_of_image(stripes(20))
        np.savez(tmp_path / "two.npz", fibre=field[:2])
        np.testing.assert_array_equal(read_field(tmp_path / "two.npz"), field)

    def test_cells_that_a_csv_leaves_out_are_not_given(self, tmp_path: Path) -> None:
        path = tmp_path / "some.csv"
        path.write_text("row,column,direction_deg,coherence\n3,4,18,0.5\n")
        field = read_field(path)
        assert field[GIVEN].sum() == 1
        assert directions(field)[0][3, 4] == pytest.approx(18)

    @pytest.mark.parametrize(
        ("name", "data", "says"),
        [
            ("a.npz", b"PK\x03\x04 not really", "no array named fibre"),
            ("a.npz", b"", "no array named fibre"),
            ("a.csv", b"row,column\n1,2\n", "not a fibre field"),
            ("a.csv", b"\xff\xfe\x00", "not a fibre field"),
            ("a.csv", b"row,column,direction_deg,coherence\n3,99,18,0.5\n", "cell"),
            ("a.csv", b"row,column,direction_deg,coherence\n3,4,18,nan\n", "NaN"),
            ("a.csv", b"row,column,direction_deg,coherence\n3,4,18,1.7\n", "coherence 1.7"),
            ("a.txt", b"hello", "no fibre field"),
            ("a.direction.png", b"hello", "a.direction.png"),
            ("a.csv", b"x" * (2 << 20), "small file"),
        ],
    )
    def test_what_is_no_field_is_one_line(self, name: str, data: bytes, says: str, tmp_path: Path) -> None:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError, match=says) as error:
            read_field(path)
        assert "\n" not in str(error.value)

    def test_arrays_of_objects_are_not_opened(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "bad.npz", fibre=np.array([{"a": 1}], dtype=object))
        with pytest.raises(InputError, match="no array named fibre"):
            read_field(tmp_path / "bad.npz")

    def test_a_folder_without_fields(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no fibre fields"):
            field_names(tmp_path)

    def test_a_name_in_two_formats(self, tmp_path: Path) -> None:
        for kind in ("npz", "csv"):
            write_field(tmp_path, "one", nothing_given(), kind=kind)
        with pytest.raises(InputError, match="two formats"):
            field_names(tmp_path)

    def test_the_columns_of_a_csv(self, tmp_path: Path) -> None:
        (path,) = write_field(tmp_path, "one", field_of_image(stripes(20)), kind="csv")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == SIDE * SIDE
        assert float(rows[20]["direction_deg"]) == pytest.approx(20, abs=1.5)

    def test_drawn_over_an_image(self) -> None:
        image = stripes(20)
        drawn = draw_field(image, field_of_image(image))
        assert drawn.shape == (256, 256, 3)
        changed = (drawn != image[..., None]).any(axis=2)
        assert 0.02 < changed.mean() < 0.3
        assert np.array_equal(draw_field(image, np.zeros(SHAPE, np.float32))[5, 5], image[5, 5].repeat(3))

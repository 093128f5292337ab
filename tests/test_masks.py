"""Mask variations: always a valid label map, the same for the same seed, and doing what their name says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from csg_edge.conditions import mask_moves
from csg_edge.conditions.arrays import resize_mask
from csg_edge.conditions.mask_parts import components
from csg_edge.conditions.masks import VARIATIONS, flaws, parse_spec, vary, vary_by
from csg_edge.datasets.labelled_set import find_sets, read_set
from csg_edge.datasets.phantom import SCENES, render_mask, sample_geometry
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA, NO_MASK, LabelSchema

Image = NDArray[np.uint8]
BACKGROUND, APONEUROSIS, MUSCLE, NERVE, VESSEL, TENDON, BONE, DITF = 0, 1, 3, 5, 6, 7, 8, 9


def phantom(scene: str, seed: int, *, size: int = 128) -> Image:
    return render_mask(sample_geometry(seed, scene=scene), size=size)


def sizes(mask: Image, index: int) -> list[int]:
    """Areas of the parts of a class, the largest first."""
    return [box[4] for _, box in components(mask == index)][::-1]


def thickness(mask: Image, index: int) -> float:
    """Mean thickness over the columns that a class reaches, in pixels."""
    counts = (mask == index).sum(axis=0)
    return float(counts[counts > 0].mean())


def tilt(mask: Image, index: int) -> float:
    """Slope of the middle of a class, degrees, right side deeper."""
    inside = mask == index
    columns = np.flatnonzero(inside.any(axis=0))
    middle = [np.flatnonzero(inside[:, x]).mean() for x in columns]
    return float(np.degrees(np.arctan(np.polyfit(columns, middle, 1)[0])))


EVERYWHERE = ("deform:1", "tilt:8deg", "shift:15%", "thickness:40%?", "scale:nerve=40%?", "scale:ditf=40%?")
ONE_SCENE = (
    ("tendon", "insert:ditf"),
    ("tendon_ditf", "remove:ditf"),
    ("muscle", "insert:vessel"),
    ("bone", "insert:nerve"),
    ("nerve_vessel", "insert:vessel"),
    ("nerve_vessel", "remove:nerve?"),
)


@pytest.mark.parametrize(
    ("scene", "spec"), [*((scene, spec) for scene in SCENES for spec in EVERYWHERE), *ONE_SCENE], ids=str
)
def test_a_variation_is_a_valid_label_map(scene: str, spec: str) -> None:
    (variation,) = parse_spec(spec, MSK_SCHEMA)
    for seed in range(5):
        mask = phantom(scene, seed)
        varied = vary_by(mask, MSK_SCHEMA, spec, seed=seed)
        assert varied.dtype == np.uint8
        assert flaws(mask, varied, MSK_SCHEMA, variation=variation) == []
        kept = set(np.unique(mask)) - ({MSK_SCHEMA.index(variation.target)} if variation.name == "remove" else set())
        assert kept <= set(np.unique(varied))


def test_every_variation_of_real_masks_is_valid(real_data: Path) -> None:
    for directory in find_sets(real_data):
        data = read_set(directory, MSK_SCHEMA, split="val", size=128)
        for index in np.linspace(0, len(data) - 1, 4).astype(int):
            for spec in ("deform:1", "tilt:+5deg", "shift:15%", "thickness:30%?", "scale:nerve=+30%?", "insert:vessel"):
                if spec.startswith("insert") and (data.masks[index] == NO_MASK).any():
                    continue  # nobody knows whether there is room
                (variation,) = parse_spec(spec, MSK_SCHEMA)
                varied = vary_by(data.masks[index], MSK_SCHEMA, spec, seed=int(index))
                assert flaws(data.masks[index], varied, MSK_SCHEMA, variation=variation) == []


class TestFlaws:
    """The judge of all the others sees what is wrong."""

    mask = phantom("muscle", 1)

    def test_nothing_wrong(self) -> None:
        assert flaws(self.mask, self.mask.copy(), MSK_SCHEMA) == []

    def test_torn_band(self) -> None:
        torn = self.mask.copy()
        torn[:, 60:64][torn[:, 60:64] == APONEUROSIS] = MUSCLE
        assert "aponeurosis falls apart" in flaws(self.mask, torn, MSK_SCHEMA)

    def test_upside_down(self) -> None:
        found = flaws(self.mask, np.ascontiguousarray(self.mask[::-1]), MSK_SCHEMA)
        assert "superficial_tissue lies directly under aponeurosis" in found

    def test_class_lost_and_gained(self) -> None:
        assert flaws(self.mask, np.where(self.mask == APONEUROSIS, MUSCLE, self.mask).astype(np.uint8), MSK_SCHEMA) == [
            "aponeurosis leaves the picture"
        ]
        gained = self.mask.copy()
        gained[100, 64] = VESSEL
        assert flaws(self.mask, gained, MSK_SCHEMA) == ["vessel comes from nowhere"]

    def test_tear_outside_its_tendon(self) -> None:
        mask = phantom("tendon", 2)
        torn = mask.copy()
        torn[-60:-50, 50:70] = DITF
        (insertion,) = parse_spec("insert:ditf", MSK_SCHEMA)
        assert "ditf outside the tendon" in flaws(mask, torn, MSK_SCHEMA, variation=insertion)


def test_the_seed_decides() -> None:
    mask = phantom("tendon_ditf", 3)
    spec = "deform:0.5,tilt:3deg,insert:ditf=30%"
    first = vary_by(mask, MSK_SCHEMA, spec, seed=1)
    np.testing.assert_array_equal(first, vary_by(mask, MSK_SCHEMA, spec, seed=1))
    others = [vary_by(mask, MSK_SCHEMA, spec, seed=seed) for seed in range(2, 8)]
    assert all((first != other).mean() > 0.01 for other in others)


def test_the_mask_given_is_left_alone() -> None:
    mask = phantom("muscle", 0)
    before = mask.copy()
    vary_by(mask, MSK_SCHEMA, "deform:1,shift:x=+10%", seed=0)
    np.testing.assert_array_equal(mask, before)


def test_pixels_without_a_mask_stay() -> None:
    mask = phantom("muscle", 2)
    mask[:, :20] = NO_MASK
    varied = vary_by(mask, MSK_SCHEMA, "thickness:30%,insert:vessel", seed=0)
    np.testing.assert_array_equal(varied == NO_MASK, mask == NO_MASK)
    assert (varied != mask).any()
    nothing = np.full((64, 64), NO_MASK, np.uint8)
    np.testing.assert_array_equal(vary_by(nothing, MSK_SCHEMA, "deform", seed=0), nothing)


def test_the_one_shape_that_is_labelled_moves() -> None:
    """In sets where all else is 255, as where only the artery is drawn, masks would not vary otherwise."""
    mask = np.full((128, 128), NO_MASK, np.uint8)
    rows, columns = np.indices(mask.shape)
    mask[np.hypot(rows - 60, columns - 50) < 12] = VESSEL
    varied = vary_by(mask, MSK_SCHEMA, "shift:x=+12.5%,shift:depth=-6.25%", seed=0)
    np.testing.assert_array_equal(varied[:-8, 16:], mask[8:, :-16])
    bent = [vary_by(mask, MSK_SCHEMA, "deform:0.5,tilt:3deg", seed=seed) for seed in range(4)]
    for one in bent:
        assert set(np.unique(one)) == {VESSEL, NO_MASK}
        assert sizes(one, VESSEL)[0] == pytest.approx(sizes(mask, VESSEL)[0], rel=0.5)
        assert (one != mask).mean() > 0.002
    (bend,) = parse_spec("deform:1", MSK_SCHEMA)
    assert flaws(mask, vary_by(mask, MSK_SCHEMA, "deform:1", seed=3), MSK_SCHEMA, variation=bend) == []


def test_moves_of_everything_are_made_in_one_go() -> None:
    """A move and its opposite leave no trace of resampling."""
    mask = phantom("muscle", 3)
    varied = vary_by(mask, MSK_SCHEMA, "shift:x=+6.25%,tilt:+8deg,tilt:-8deg,shift:x=-6.25%", seed=0)
    np.testing.assert_array_equal(varied, mask)


class TestMoves:
    @pytest.mark.parametrize("seed", range(20))
    def test_a_bend_folds_nothing(self, seed: int) -> None:
        source = mask_moves.deformed(0.06, np.random.default_rng(seed)).source((128, 160))
        assert mask_moves.smallest_jacobian(source) > 0.2
        columns, _ = mask_moves.grid((128, 160))
        moved = np.sqrt(np.mean(((source[0] - columns) / 160) ** 2))
        assert 0.03 < moved < 0.09

    def test_a_fold_is_seen(self) -> None:
        columns, rows = mask_moves.grid((32, 32))
        assert mask_moves.smallest_jacobian((columns, rows)) == 1
        assert mask_moves.smallest_jacobian((columns[:, ::-1].copy(), rows)) == -1

    def test_a_bend_is_the_same_at_another_resolution(self) -> None:
        small, large = (vary(phantom("muscle", 1, size=s), MSK_SCHEMA, name="deform", seed=4) for s in (128, 256))
        assert (resize_mask(large, 128, 128) == small).mean() > 0.98

    @pytest.mark.parametrize("degrees", [-8.0, 6.0])
    def test_tilt_in_degrees(self, degrees: float) -> None:
        mask = phantom("bone", 1, size=256)
        varied = vary(mask, MSK_SCHEMA, name="tilt", strength=degrees, exact=True, seed=0)
        assert tilt(varied, APONEUROSIS) - tilt(mask, APONEUROSIS) == pytest.approx(degrees, abs=1.0)

    def test_shift_by_parts_of_the_side(self) -> None:
        mask = phantom("nerve_vessel", 1)
        varied = vary_by(mask, MSK_SCHEMA, "shift:x=+12.5%,shift:depth=-6.25%", seed=0)
        np.testing.assert_array_equal(varied[:-8, 16:], mask[8:, :-16])

    def test_layers_go_on_along_their_slope(self) -> None:
        """A straight slanted band stays straight where it comes into view."""
        rows, columns = np.indices((128, 128))
        depth = 40 + 0.25 * columns
        mask = np.where(rows < depth, 2, np.where(rows < depth + 6, APONEUROSIS, MUSCLE)).astype(np.uint8)
        varied = vary_by(mask, MSK_SCHEMA, "shift:x=+30%", seed=0)
        expected = depth - 0.25 * 0.3 * 128
        wanted = np.where(rows < expected, 2, np.where(rows < expected + 6, APONEUROSIS, MUSCLE))
        assert (varied != wanted).mean() < 0.01

    @pytest.mark.parametrize(("name", "index"), [("aponeurosis", APONEUROSIS), ("muscle", MUSCLE)])
    @pytest.mark.parametrize("fraction", [0.4, -0.4])
    def test_thickness_of_a_layer(self, name: str, index: int, fraction: float) -> None:
        mask = phantom("muscle", 4, size=256)
        varied = vary(mask, MSK_SCHEMA, name="thickness", strength=fraction, target=name, exact=True, seed=0)
        assert thickness(varied, index) / thickness(mask, index) == pytest.approx(1 + fraction, abs=0.08)

    def test_scale_grows_each_blob_about_its_centre(self) -> None:
        mask = np.zeros((128, 128), np.uint8)
        rows, columns = np.indices(mask.shape)
        mask[np.hypot(rows - 64, columns - 40) < 12] = VESSEL
        varied = vary_by(mask, MSK_SCHEMA, "scale:vessel=+50%", seed=0)
        assert sizes(varied, VESSEL)[0] / sizes(mask, VESSEL)[0] == pytest.approx(2.25, rel=0.05)
        assert np.argwhere(varied == VESSEL).mean(axis=0) == pytest.approx([64, 40], abs=0.6)

    def test_a_growing_blob_leaves_the_others(self) -> None:
        for seed in range(8):
            mask = phantom("nerve_vessel", seed)
            if not ((mask == NERVE).any() and (mask == VESSEL).any()):
                continue
            varied = vary_by(mask, MSK_SCHEMA, "scale:vessel=+80%", seed=0)
            np.testing.assert_array_equal(varied == NERVE, mask == NERVE)


class TestFindings:
    @pytest.mark.parametrize("seed", range(15))
    def test_a_tear_lies_in_the_tendon_along_its_fibres(self, seed: int) -> None:
        mask = phantom("tendon", seed)
        varied = vary(mask, MSK_SCHEMA, name="insert", target="ditf", seed=seed)
        tear = varied == DITF
        assert len(sizes(varied, DITF)) == 1
        assert set(mask[tear]) == {TENDON}
        np.testing.assert_array_equal(varied[~tear], mask[~tear])
        height, width = (np.ptp(axis) + 1 for axis in np.nonzero(tear))
        assert width > height

    def test_size_of_a_tear(self) -> None:
        mask = phantom("tendon", 0, size=256)
        small, large = (
            vary(mask, MSK_SCHEMA, name="insert", target="ditf", strength=size, exact=True, seed=1)
            for size in (0.2, 0.7)
        )
        assert sizes(large, DITF)[0] > 3 * sizes(small, DITF)[0]

    @pytest.mark.parametrize("seed", range(15))
    def test_a_vessel_keeps_clear_of_the_others_and_of_bone_shadow(self, seed: int) -> None:
        for scene in ("nerve_vessel", "bone"):
            mask = phantom(scene, seed)
            varied = vary(mask, MSK_SCHEMA, name="insert", target="vessel", seed=seed)
            new = (varied == VESSEL) & (mask != VESSEL)
            assert set(mask[new]) <= ({MUSCLE} if scene == "bone" else {BACKGROUND})
            assert len(sizes(varied, VESSEL)) == len(sizes(mask, VESSEL)) + 1

    def test_removing_is_the_inverse_of_inserting(self) -> None:
        for scene, name in (("tendon", "ditf"), ("bone", "vessel"), ("nerve_vessel", "vessel")):
            mask = vary_by(phantom(scene, 1), MSK_SCHEMA, "remove:vessel?", seed=0)
            there = vary(mask, MSK_SCHEMA, name="insert", target=name, seed=1)
            back = vary(there, MSK_SCHEMA, name="remove", target=name, seed=2)
            np.testing.assert_array_equal(back, mask)


CANNOT = {
    "no tendon": ("muscle", "insert:ditf", "no tendon to tear; choose masks with tendon"),
    "no vessel": ("tendon", "scale:vessel=20%", "vessel is not in this mask; it has no closed shapes"),
    "a layer": ("tendon", "remove:tendon", "tendon is a layer, not a closed shape"),
    "no band": ("nerve_vessel", "thickness", "no layer of aponeurosis or tendon; name a layer it has"),
    "out of the picture": ("muscle", "shift:depth=-40%", "leaves the picture"),
}


@pytest.mark.parametrize(("scene", "spec", "reason"), CANNOT.values(), ids=list(CANNOT))
def test_what_cannot_be_applied_is_refused_or_left_out(scene: str, spec: str, reason: str) -> None:
    mask = phantom(scene, 1)
    with pytest.raises(InputError, match=f"vary '{spec.split(':')[0]}.*{reason}") as refused:
        vary_by(mask, MSK_SCHEMA, spec, seed=0)
    assert "\n" not in str(refused.value)
    np.testing.assert_array_equal(vary_by(mask, MSK_SCHEMA, spec + "?", seed=0), mask)


BAD_SPECS = {
    "wobble": "no variation 'wobble'; choose from deform, tilt",
    "deform,,tilt": "an empty part",
    "tilt:3": "amount '3'; write tilt:5deg",
    "tilt:3%": "amount '3%'; write tilt:5deg",
    "deform:50%": "amount '50%'; write deform:0.5",
    "thickness:0.2": "amount '0.2'; write thickness:25%",
    "tilt:90deg": "out of range; give 0 to 20deg",
    "deform:3": "out of range; give 0 to 1",
    "thickness:-95%": "out of range; give -90 to 100%",
    "shift:y=5%": "direction 'y'; choose x or depth",
    "thickness:bones=20%": "no class 'bones'",
    "scale:20%": "which class",
    "insert": "which class",
    "insert:muscle": "'muscle' cannot be inserted; choose from ditf, nerve, vessel",
    "remove:ditf=20%": "amount '20%'; write remove:CLASS",
    "tilt:muscle=3deg": "it takes no class",
}


@pytest.mark.parametrize(("spec", "reason"), BAD_SPECS.items(), ids=list(BAD_SPECS))
def test_a_bad_specification_is_refused(spec: str, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_spec(spec, MSK_SCHEMA)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_specification_reads_as_it_is_written() -> None:
    spec = "deform:0.5,tilt:+3deg,shift:x=-10%,thickness:tendon=20%?,insert:ditf,scale:vessel=+150%,remove:nerve"
    assert ",".join(str(variation) for variation in parse_spec(spec, MSK_SCHEMA)) == spec
    assert set(VARIATIONS) == {variation.name for variation in parse_spec(spec, MSK_SCHEMA)}


def test_a_schema_of_ones_own() -> None:
    """Classes of other names are told apart by their shape."""
    schema = LabelSchema(("background", "skin", "lesion"))
    mask = np.zeros((96, 96), np.uint8)
    mask[:20] = 1
    mask[40:60, 30:50] = 2
    for spec in ("deform:1", "thickness:skin=+50%", "scale:lesion=+50%", "remove:lesion"):
        varied = vary_by(mask, schema, spec, seed=0)
        assert (varied != mask).any()
        assert flaws(mask, varied, schema, variation=parse_spec(spec, schema)[0]) == []

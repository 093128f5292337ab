"""Which mask meets which context and seed: choosing by style, varied masks, conditions left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from csg_edge.cli.main import main
from csg_edge.conditions.contexts import ContextBank
from csg_edge.conditions.files import read_context, read_mask
from csg_edge.conditions.masks import vary_by
from csg_edge.errors import InputError
from csg_edge.generation.jobs import plan
from csg_edge.generation.sheets import contact_sheet
from csg_edge.labels import MSK_SCHEMA


class TestSelect:
    def test_nearest_to_one_image(self, phantom_set: Path) -> None:
        query = phantom_set / "images" / "000004.png"
        jobs = plan(phantom_set / "masks", phantom_set / "contexts", count=2, seed=0, like=query)
        (nearest,) = ContextBank.index(phantom_set / "contexts").nearest(read_context(query))
        assert {(job.context, job.distance) for job in jobs} == {(nearest.path, nearest.distance)}
        assert jobs[0].row()["distance"] == nearest.distance
        assert jobs == plan(phantom_set / "masks", phantom_set / "contexts", count=2, seed=0, like=query,
                            select="nearest")  # fmt: skip

    def test_nearest_to_each_masks_own_image_is_another(self, phantom_set: Path) -> None:
        jobs = plan(phantom_set / "masks", phantom_set / "images", count=1, seed=0, like=phantom_set / "images")
        assert all(job.mask and job.context and job.context.name != job.mask.name for job in jobs)
        assert len({job.context for job in jobs}) > 1

    def test_random_draws_where_names_would_pair(self, phantom_set: Path) -> None:
        jobs = plan(phantom_set / "masks", phantom_set / "contexts", count=4, seed=0, select="random")
        paired = [job.mask and job.context and job.mask.name == job.context.name for job in jobs]
        assert sum(map(bool, paired)) < 24

    def test_diverse_takes_every_context_in_turn(self, phantom_set: Path) -> None:
        jobs = plan(phantom_set / "masks", phantom_set / "contexts", count=2, seed=1, select="diverse")
        contexts = [job.context for job in jobs]
        assert set(contexts[:12]) == set((phantom_set / "contexts").iterdir())
        assert contexts[:12] == contexts[12:]


class TestVary:
    def test_names_and_seeds(self, phantom_set: Path) -> None:
        jobs = plan(
            phantom_set / "masks", phantom_set / "contexts", count=2, seed=5, vary="deform,tilt:3deg", vary_count=3
        )
        assert [job.name for job in jobs[:7]] == [
            "000000_v000_000", "000000_v000_001", "000000_v001_000", "000000_v001_001", "000000_v002_000",
            "000000_v002_001", "000001_v000_000",
        ]  # fmt: skip
        assert [job.vary_seed for job in jobs[:7]] == [5, 5, 6, 6, 7, 7, 8]
        assert [job.seed for job in jobs] == list(range(5, 5 + 72))
        single = plan(phantom_set / "masks", phantom_set / "contexts", count=1, seed=5, vary="deform")
        assert [job.name for job in single[:2]] == ["000000", "000001"]

    def test_labels_are_the_varied_masks(self, phantom_set: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = generate(phantom_set / "masks" / "000002.png", phantom_set / "contexts", out, "--seed", 3,
                          "--vary", "deform:0.8,tilt:+4deg", "--vary-count", 2)  # fmt: skip
        assert result == (0, "")
        assert {path.name for path in (out / "masks").iterdir()} == {"000002_v000.png", "000002_v001.png"}
        rows = json.loads((out / "generated.json").read_text())["images"]
        assert [(row["vary"], row["vary_seed"]) for row in rows] == [("deform:0.8,tilt:+4deg", s) for s in (3, 4)]
        original = read_mask(phantom_set / "masks" / "000002.png", MSK_SCHEMA)
        for row in rows:
            labels = read_mask(out / "masks" / f"{row['name']}.png", MSK_SCHEMA)
            wanted = vary_by(read_mask(Path(row["mask"]), MSK_SCHEMA), MSK_SCHEMA, row["vary"], seed=row["vary_seed"])
            np.testing.assert_array_equal(labels, wanted)
            assert (labels != original).mean() > 0.01

    def test_a_mask_that_cannot_be_varied_is_named(self, phantom_set: Path, tmp_path: Path) -> None:
        code, error = generate(
            phantom_set / "masks", phantom_set / "contexts", tmp_path / "out", "--vary", "scale:ditf"
        )
        assert code == 2
        assert "masks/0000" in error
        assert "ditf is not in this mask" in error
        assert error.count("\n") == 1
        assert not list(tmp_path.iterdir())


class TestWithout:
    def test_without_a_mask(self, phantom_set: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        context = phantom_set / "contexts" / "000001.png"
        assert generate("none", context, out, "--count", 2, "--sheet") == (0, "")
        assert {path.name for path in out.iterdir()} == {
            "000001_000.png", "000001_001.png", "contact_sheet.png", "generated.json"
        }  # fmt: skip
        rows = json.loads((out / "generated.json").read_text())["images"]
        assert [(row["mask"], row["context"]) for row in rows] == [(None, str(context))] * 2

    def test_without_a_context(self, phantom_set: Path, tmp_path: Path) -> None:
        mask = phantom_set / "masks" / "000000.png"
        with_context, alone = tmp_path / "with", tmp_path / "alone"
        assert generate(mask, phantom_set / "contexts", with_context) == (0, "")
        assert generate(mask, "none", alone) == (0, "")
        assert json.loads((alone / "generated.json").read_text())["images"][0]["context"] is None
        assert (alone / "masks" / "000000.png").exists()
        assert (alone / "000000.png").read_bytes() != (with_context / "000000.png").read_bytes()

    def test_without_either(self) -> None:
        jobs = plan(None, None, count=3, seed=2)
        assert [(job.name, job.seed) for job in jobs] == [("image_000", 2), ("image_001", 3), ("image_002", 4)]


NOT_TOGETHER = {
    "nearest to what": ({"select": "nearest"}, "nearest to what? Give --like IMAGE"),
    "like without nearest": ({"select": "random", "like": "images"}, "it goes with --select nearest"),
    "vary nothing": ({"masks": None, "vary": "deform"}, "need masks"),
    "select for no mask": ({"masks": None, "select": "diverse"}, "need masks"),
    "select from nothing": ({"contexts": None, "select": "diverse"}, "need contexts"),
    "count of varied masks alone": ({"vary_count": 2}, "--vary-count 2: give at least 1, and --vary"),
    "no varied masks": ({"vary": "deform", "vary_count": 0}, "--vary-count 0"),
    "no image like that": ({"like": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize(("options", "reason"), NOT_TOGETHER.values(), ids=list(NOT_TOGETHER))
def test_options_that_do_not_go_together(phantom_set: Path, options: dict[str, object], reason: str) -> None:
    given = {"masks": phantom_set / "masks", "contexts": phantom_set / "contexts", "count": 1, "seed": 0, **options}
    if "like" in given:
        given["like"] = phantom_set / str(given["like"])
    with pytest.raises(InputError) as refused:
        plan(given.pop("masks"), given.pop("contexts"), **given)  # type: ignore[arg-type]
    assert reason in str(refused.value)


def test_like_lacks_an_image(phantom_set: Path, tmp_path: Path) -> None:
    like = tmp_path / "like"
    like.mkdir()
    (like / "000000.png").write_bytes((phantom_set / "images" / "000000.png").read_bytes())
    with pytest.raises(InputError, match="no image named 000001; put one there for each mask, or give one image"):
        plan(phantom_set / "masks", phantom_set / "contexts", count=1, seed=0, like=like)


def generate(mask: object, context: object, out: Path, *options: object) -> tuple[int, str]:
    """Exit code, and stderr without progress."""
    arguments = ["generate", "--mask", mask, "--context", context, "--out", out, "--runtime", "onnxruntime", *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="csg-edge")
    return result.exit_code, "".join(line for line in result.stderr.splitlines(True) if "generate:" not in line)


def test_a_contact_sheet_of_masks_that_say_nothing_in_parts() -> None:
    """Sets that label one structure only have masks of 255 elsewhere; such a sheet once stopped a training run."""
    mask = np.full((64, 64), 255, np.uint8)
    mask[20:40] = MSK_SCHEMA.index("vessel")
    image = np.full((64, 64), 90, np.uint8)
    sheet = contact_sheet([(mask, image, image)], MSK_SCHEMA)
    above, inside, below = (sheet[24 + 2 + row, 10] for row in (5, 30, 55))  # under header and frame
    assert (above == below).all() and not (above == inside).all()

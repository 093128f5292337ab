"""The whole path by commands alone, as a recipe runs it: phantom, train, distill, export, verify, generate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from csg_edge.bundle.manifest import read_bundle
from csg_edge.training import trajectories
from csg_edge.training.model import CsgModel

BUILD = Path(__file__).parents[1] / "export" / "build.py"


def csg_edge(*arguments: object) -> str:
    command = [sys.executable, "-m", "csg_edge", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


RECIPE = f"""
name = "tiny"
[phantom]
count = 12
[train]
prior_iterations = 2
iterations = 2
batch = 2
[trajectories]
trajectories = {trajectories.SHARD}
[students.tiny]
card = "card.md"
steps = "2"
iterations = 2
batch = 2
[students.tiny.finish]
iterations = 1
texture = 0.1
[students.tiny-nano]
card = "card.md"
network = "nano"
steps = "1"
iterations = 2
batch = 2
"""


@pytest.mark.slow
def test_a_recipe_leads_from_phantom_to_images(phantom_set: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "card.md").write_text("# tiny\n")
    build = [sys.executable, BUILD, tmp_path / "recipe.toml", "--data", phantom_set]
    subprocess.run([*build, "--runs", tmp_path / "runs", "--bundles", tmp_path], check=True)

    phantom, bundle, out = tmp_path / "runs/tiny/phantom", tmp_path / "tiny", tmp_path / "images"
    runs = tmp_path / "runs/tiny"
    start, end = (CsgModel.load(runs / name / "student").fingerprint() for name in ("tiny", "tiny-finished"))
    begun = json.loads((runs / "tiny-finished" / "student.json").read_text())
    assert begun["start"] == start != end
    assert (begun["texture"], begun["steps"]) == (0.1, [2])
    assert json.loads(csg_edge("verify", bundle, "--json"))["passed"] is True
    assert read_bundle(tmp_path / "tiny-nano").manifest.steps == (1,)
    assert {path.name for path in bundle.glob("*.md")} == {"MODEL_CARD.md"}
    options = ("--mask", phantom / "masks", "--context", phantom / "contexts", "--bundle", bundle, "--steps", 2)
    record = json.loads(csg_edge("generate", *options, "--out", out, "--json"))
    assert len(record["images"]) == len(list(out.glob("0*.png"))) == 12


def test_a_folder_that_cannot_be_made_is_one_line(phantom_set: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    command = [sys.executable, "-m", "csg_edge", "train", "--data", phantom_set, "--out", tmp_path / "file" / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "file") in line
    assert "check the path" in line

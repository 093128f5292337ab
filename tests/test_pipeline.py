"""The whole path by commands alone: phantom, train, distill, export, verify, generate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from csg_edge.training import distil


def csg_edge(*arguments: object) -> str:
    command = [sys.executable, "-m", "csg_edge", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_from_phantom_to_image(tmp_path: Path) -> None:
    phantom, teacher, student, bundle = (tmp_path / name for name in ("phantom", "teacher", "student", "bundle"))
    short = ("--data", phantom, "--iterations", 2, "--batch", 2)
    csg_edge("phantom", "--out", phantom, "--count", 12)
    csg_edge("train", *short, "--out", teacher)
    made = distil.SHARD
    csg_edge("distill", teacher / "teacher", *short, "--trajectories", made, "--out", student)
    csg_edge("export", student / "student", "--out", bundle, "--steps", 2)
    assert json.loads(csg_edge("verify", bundle, "--json"))["passed"] is True
    options = ("--mask", phantom / "masks", "--context", phantom / "contexts", "--bundle", bundle, "--steps", 2)
    record = json.loads(csg_edge("generate", *options, "--out", tmp_path / "images", "--json"))
    assert len(record["images"]) == 12
    assert len(list((tmp_path / "images").glob("0*.png"))) == 12


def test_a_folder_that_cannot_be_made_is_one_line(phantom_set: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    command = [sys.executable, "-m", "csg_edge", "train", "--data", phantom_set, "--out", tmp_path / "file" / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "file") in line
    assert "check the path" in line

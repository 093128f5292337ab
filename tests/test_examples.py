"""The examples run as their first lines say, in small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from csg_edge.bundle.manifest import read_bundle
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.training import trajectories

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_loop_learns_from_images_made_on_the_fly(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "set", count=60, seed=3)
    said = run("pytorch_training.py", "--data", tmp_path / "set", "--steps", 61, "--workers", 1)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", said)]
    assert losses[-1] < 0.8 * losses[0]
    assert re.search(r"Dice of \d+ held-out images: 0\.\d+", said)


def test_the_benchmark_times_every_engine_that_runs_here(shipped: Path) -> None:
    said = run("benchmark_my_machine.py", "--images", 3)
    for engine in read_bundle(shipped).manifest.engines:
        assert engine.steps != 1 or engine.target in said
    rows = re.findall(r"^\| (\S+:\S+:\S+) \| ([\d.]+) \| ([\d.]+) \| \d+ \|$", said, flags=re.MULTILINE)
    assert "openvino:CPU:fp32" in {target for target, *_ in rows}
    assert all(0 < float(median) <= float(high) for _, median, high in rows)


def test_ones_own_set_becomes_a_bundle(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "set", count=12, seed=1, size=64)
    small = ["--size", 64, "--iterations", 2, "--batch", 2, "--trajectories", trajectories.SHARD]
    run("own_set_to_bundle.py", "--data", tmp_path / "set", "--out", tmp_path / "run", *small)
    assert read_bundle(tmp_path / "run" / "bundle").manifest.image_size == (64, 64)
    assert len(list((tmp_path / "run" / "images").glob("0*.png"))) == 12
    again = run("own_set_to_bundle.py", "--data", tmp_path / "set", "--out", tmp_path / "run", *small)
    assert "csg-edge export" not in again

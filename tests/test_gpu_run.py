"""The prepared run for a lent GPU, from the packed sets to the weights that come back, tried on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import tiny_model

from csg_edge.datasets.packing import pack_sets
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.training.model import CsgModel

FOLDER = Path(__file__).parents[1] / "export" / "gpu"


def command(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_a_job_without_its_files_is_named(tmp_path: Path) -> None:
    done = command("run.py", tmp_path, "--out", tmp_path / "out", "--minutes", 1)
    assert done.returncode == 2
    assert "sets.safetensors: not there; see --help" in done.stderr
    assert not (tmp_path / "out").exists()


def test_parts_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "weights.01").write_bytes(b"x")
    done = command("join.py", tmp_path, "--to", tmp_path / "to")
    assert done.returncode == 2
    assert "parts [1] of the weights; bring back all" in done.stderr


@pytest.mark.slow
def test_from_packed_sets_to_weights(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    job, out, work = tmp_path / "job", tmp_path / "out", tmp_path / "work"
    write_phantoms(tmp_path / "bones", count=24, seed=5)
    job.mkdir()
    pack_sets([tmp_path / "bones"], job / "sets.safetensors", size=256, splits=("train",), limit=60_000_000)
    tiny_model("teacher", deviation=0.05).save(job / "teacher")
    run = ("run.py", job, "--out", out, "--work", work, "--minutes", 1.2, "--device", "cpu", "--tiny")
    done = command(*run)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(path.name for path in out.iterdir())
    assert files == ["log.txt", "losses.csv", "sheet.jpg", "weights.00"]
    assert sum(path.stat().st_size > 16 << 20 for path in out.iterdir()) == 0
    again = command(*run)  # everything is there: nothing is trained again
    assert again.returncode == 0, again.stdout + again.stderr
    assert "train --data" not in again.stdout
    assert command("join.py", out, "--to", tmp_path / "back").returncode == 0
    for name in ("teacher", "student"):
        assert CsgModel.load(tmp_path / "back" / name).role == name

"""The prepared run for a lent GPU, from the packed sets to the weights that come back, tried on the CPU."""

from __future__ import annotations

import subprocess
import sys
import zipfile
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
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w") as wheel:  # what was brought along is found before what is there
        wheel.writestr("onnxruntime_gpu_was_here.py", "")
    whole = (tmp_path / "wheel.zip").read_bytes()
    for number, part in enumerate((whole[:50], whole[50:])):
        (job / f"onnxruntime-gpu.{number:02d}").write_bytes(part)
    run = ("run.py", job, "--out", out, "--work", work, "--minutes", 1.2, "--device", "cpu", "--tiny")
    done = command(*run)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(path.name for path in out.iterdir())
    assert files == ["log.txt", "losses.csv", "sheet.jpg", "weights.00"]
    assert sum(path.stat().st_size > 16 << 20 for path in out.iterdir()) == 0
    log = (out / "log.txt").read_text()
    assert '"target": "onnxruntime:CPU:fp32", "median_ms"' in log  # checks of the bundle go as they would on a GPU
    assert " exit 1" not in log and " exit 2" not in log
    assert (work / "onnxruntime-gpu" / "onnxruntime_gpu_was_here.py").exists()
    again = command(*run)  # everything is there: nothing is trained again
    assert again.returncode == 0, again.stdout + again.stderr
    assert "train --data" not in again.stdout
    assert command("join.py", out, "--to", tmp_path / "back").returncode == 0
    for name in ("teacher", "student"):
        assert CsgModel.load(tmp_path / "back" / name).role == name

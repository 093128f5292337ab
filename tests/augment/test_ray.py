"""Ray: the same bytes by one worker, two, or none, and no end to a job for a worker that is killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.command import run

pytest.importorskip("ray", reason="Ray is not installed (pip install 'csg-edge[ray]')")
pytestmark = pytest.mark.slow
MADE = ("images", "masks", "manifest.csv", "provenance.jsonl")


def made(folder: Path) -> dict[str, str]:
    """What was made, by hash."""
    files = [
        path for name in MADE for path in ((folder / name).rglob("*") if (folder / name).is_dir() else [folder / name])
    ]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def augment(source: Path, out: Path, *arguments: object) -> dict[str, str]:
    done = run("augment", source, "--out", out, "--multiply", 4, "--size", "model", *arguments)
    assert done.returncode == 0, done.stderr
    return made(out)


def test_the_same_bytes_by_any_number_of_workers(phantom_set: Path, tmp_path: Path) -> None:
    here = augment(phantom_set, tmp_path / "here")
    for workers in (1, 2):
        assert augment(phantom_set, tmp_path / f"{workers}", "--engine", "ray", "--workers", workers) == here


def test_a_killed_worker_costs_a_retry(phantom_set: Path, tmp_path: Path) -> None:
    here = augment(phantom_set, tmp_path / "here", "--no-checks")
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            begun = any((tmp_path / "there" / "images").glob("synthetic_*"))
            for child in psutil.Process().children(recursive=True) if begun else []:
                with suppress(psutil.Error):  # it has ended
                    if "MapWorker" in " ".join(child.cmdline()):
                        os.kill(child.pid, signal.SIGKILL)
                        killed.append(child.pid)
                        return
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    there = augment(phantom_set, tmp_path / "there", "--no-checks", "--engine", "ray", "--workers", 2)
    assert killed
    assert there == here
    rows = [json.loads(line)["id"] for line in (tmp_path / "there" / "provenance.jsonl").read_text().splitlines()]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--engine", "ray", "--workers", "0"), "--workers 0: give at least 1"),
        (("--ray-address", "127.0.0.1:1"), "it goes with --engine ray"),
    ],
)
def test_wrong_use(phantom_set: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run("augment", phantom_set, "--out", tmp_path / "out", "--multiply", 2, *arguments)
    assert done.returncode == 2
    assert said in done.stderr

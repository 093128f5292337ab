"""`csg-edge validate` from end to end on the phantom, as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import run

from csg_edge.conditions.files import write_png
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.quality.evaluators import SHIPPED
from csg_edge.quality.record import Record


def run_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "csg_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty groups of phantoms, six of them held out."""
    folder = tmp_path_factory.mktemp("validate") / "phantoms"
    write_phantoms(folder, count=150, seed=11)
    return folder


@pytest.fixture(scope="module")
def report(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    done = run_process("validate", "--data", phantoms, "--out", out, "--gates-only", "--images", 24)
    assert done.returncode in (0, 1), done.stderr
    assert "c2st" in done.stdout
    return out


def test_the_report_holds_every_figure_of_the_engine_and_of_the_control(report: Path) -> None:
    record = Record.read(report / "report.json")
    control, engine = record.subjects
    assert control.kind == "control" and engine.kind == "engine"
    assert {"dice", "kid", "kid_joint", "mmd", "frechet", "spectrum_gap", "speckle_gap", "histogram_gap"} <= (
        control.figures.keys() & engine.figures.keys()
    )
    assert {"context_hit_rate", "style_error", "diversity", "memorisation_rate", "context_copy_ratio"} <= (
        engine.figures.keys()
    )
    assert control.figures["dice"].value > 0.5  # the segmenter knows phantoms
    assert 0.3 < control.figures["c2st"].value < 0.7
    assert "data:image/png" in (report / "report.html").read_text()


def test_gates_that_need_a_teacher_are_not_judged_so_the_validation_did_not_pass(report: Path) -> None:
    record = Record.read(report / "report.json")
    assert not record.passed
    assert {gate.name for gate in record.gates if gate.passed is None} >= {"diversity", "style_error"}


def test_a_second_run_gives_the_same_figures_from_the_images_kept(report: Path, phantoms: Path) -> None:
    before = json.loads((report / "report.json").read_text())
    kept = sorted((report / "images").iterdir())
    times = [path.stat().st_mtime_ns for path in kept]
    run("validate", "--data", phantoms, "--out", report, "--gates-only", "--images", 24)
    after = json.loads((report / "report.json").read_text())
    assert after["subjects"] == before["subjects"]
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_a_reference_on_other_cases_is_refused(report: Path, phantoms: Path, tmp_path: Path) -> None:
    done = run(
        "validate", "--data", phantoms, "--out", tmp_path / "out", "--images", 30, "--reference", report / "report.json"
    )
    assert done.returncode == 2
    assert "no teacher in that report" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_study_is_written_and_scored(phantoms: Path, tmp_path: Path) -> None:
    done = run("validate", "--data", phantoms, "--out", tmp_path / "study", "--turing", 8)
    assert done.returncode == 0, done.stderr
    key = json.loads((tmp_path / "study" / "key.json").read_text())
    assert (tmp_path / "study" / "index.html").is_file()
    done = run("validate", "--score", tmp_path / "study" / "key.json")
    assert done.returncode == 2 and "answers" not in key and "CSV" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "3"], "--steps 3"),
        (["--images", "1"], "--images 1"),
        (["--target", "openvino:CPU"], "runtime:device:precision"),
        (["--teacher", "nowhere"], "nowhere"),
        (["--split", "exam"], "exam"),
        (["--reference", "nowhere.json"], "nowhere.json"),
        (["--evaluators", "nowhere"], "fit-evaluators"),
    ],
)
def test_bad_options_end_in_one_line_before_anything_is_made(
    phantoms: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    out = tmp_path / "out"
    done = run("validate", "--data", phantoms, "--out", out, "--gates-only", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.strip().count("\n") == 0, done.stderr
    assert not out.exists()


def test_images_of_a_mask_with_foreign_classes_are_refused(phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(phantoms, tmp_path / "phantoms"))
    (copy / "labels.json").write_text(json.dumps({"names": ["background", "liver"]}))
    done = run("validate", "--data", copy, "--out", tmp_path / "out")
    assert done.returncode == 2 and "liver" in done.stderr


def test_an_image_and_a_mask_of_different_sizes_are_refused(phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(phantoms, tmp_path / "phantoms"))
    write_png(next((copy / "masks").iterdir()), np.zeros((64, 64), np.uint8))
    done = run("validate", "--data", copy, "--out", tmp_path / "out")
    assert done.returncode == 2 and "export both at one size" in done.stderr


def test_few_groups_give_figures_without_intervals_and_no_judgement(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "few", count=100, seed=5)
    done = run("validate", "--data", tmp_path / "few", "--out", tmp_path / "out", "--gates-only", "--images", 20)
    assert done.returncode == 1, done.stderr
    record = Record.read(tmp_path / "out" / "report.json")
    assert [gate.passed for gate in record.gates] == [None]
    assert "held-out groups" in record.gates[0].reason
    figures = record.subjects[1].figures
    assert figures["dice"].low is None and "no interval" in figures["dice"].note


def test_altered_evaluators_are_refused(phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SHIPPED, tmp_path / "evaluators"))
    weights = copy / "encoder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = run("validate", "--data", phantoms, "--out", tmp_path / "out", "--evaluators", copy)
    assert done.returncode == 2 and "does not match its hash" in done.stderr


def test_shipped_evaluators_are_small_and_say_what_they_saw() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 10e6
    record = json.loads((SHIPPED / "evaluators.json").read_text())["record"]
    public = {
        "ccaus_carotid", "dltrack_aponeurosis", "timtrack_muscle", "ultrabones_lower_leg", "usgra_nerve_vessel",
    }  # fmt: skip
    assert record["trained_on"].keys() == {*public, "phantom"}
    dice = record["dice_on_held_out_groups"]
    assert dice["dltrack_aponeurosis"]["aponeurosis"] > 0.75 and dice["ultrabones_lower_leg"]["bone"] > 0.6

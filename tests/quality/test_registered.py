"""Pre-registered cases: drawn once, the same for every site, and refused where anything differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import run

from csg_edge.conditions.files import read_context, write_png
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.errors import InputError
from csg_edge.quality.registered import SHIPPED, read_registration


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered") / "phantoms"
    write_phantoms(folder, count=60, seed=13)
    return folder


@pytest.fixture(scope="module")
def cases(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    done = run("validate", "--data", phantoms, "--register", path, "--turing", 8, "--seed", 4)
    assert done.returncode == 0, done.stderr
    assert read_registration(path).sha256 in done.stdout
    return path


def test_two_sites_show_the_same_cases(cases: Path, phantoms: Path, tmp_path: Path) -> None:
    keys = []
    for site in ("a", "b"):
        done = run("validate", "--data", phantoms, "--registered", cases, "--out", tmp_path / site)
        assert done.returncode == 0, done.stderr
        keys.append(json.loads((tmp_path / site / "key.json").read_text()))
    assert keys[0] == keys[1]
    registration = read_registration(cases)
    assert keys[0]["registration"] == registration.sha256 and keys[0]["bundle"] == "msk-256"
    shown = {(about["truth"], about["source"]) for about in keys[0]["images"].values()}
    wanted = {("real", picture.name) for picture in registration.real}
    assert shown == wanted | {("synthetic", picture.name) for picture in registration.masks}


def test_other_images_or_an_altered_file_are_refused(cases: Path, phantoms: Path, tmp_path: Path) -> None:
    other = tmp_path / "phantoms"
    write_phantoms(other, count=60, seed=14)
    done = run("validate", "--data", other, "--registered", cases, "--out", tmp_path / "study")
    assert done.returncode == 2 and "which the registered study shows" in done.stderr
    touched = Path(shutil.copytree(phantoms, tmp_path / "touched" / "phantoms"))
    path = touched / "images" / f"{read_registration(cases).real[0].name}.png"
    write_png(path, read_context(path) // 2)
    done = run("validate", "--data", touched, "--registered", cases, "--out", tmp_path / "study")
    assert done.returncode == 2 and "is not the registered image" in done.stderr
    values = json.loads(cases.read_text())
    values["seeds"][0] += 1
    altered = tmp_path / "altered.json"
    altered.write_text(json.dumps(values))
    done = run("validate", "--data", phantoms, "--registered", altered, "--out", tmp_path / "study")
    assert done.returncode == 2 and "altered since it was registered" in done.stderr
    assert not (tmp_path / "study").exists()


def test_cases_are_drawn_once(cases: Path, phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(cases, tmp_path / "cases.json"))
    done = run("validate", "--data", phantoms, "--register", copy, "--turing", 8, "--seed", 5)
    assert done.returncode == 2 and "drawn once" in done.stderr
    assert copy.read_bytes() == cases.read_bytes()


@pytest.mark.parametrize(
    "arguments", [["--register", "x.json"], ["--register", "x.json", "--turing", "8", "--registered"]]
)
def test_options_that_do_not_go_together_are_refused(phantoms: Path, arguments: list[str]) -> None:
    done = run("validate", "--data", phantoms, *arguments)
    assert done.returncode == 2 and "--register: give --turing N" in done.stderr


def test_a_file_that_is_no_registration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="no registered reader study"):
        read_registration(tmp_path / "x.json")


def test_the_shipped_registration_is_the_published_one() -> None:
    found = read_registration(SHIPPED)
    assert found.sha256 == "139fdb758d5d1778882da9a4708db257d0d406a720eed2f5cfd8d537e94a0420"
    assert len(found.real) == len(found.masks) == len(found.contexts) == len(found.seeds) == 30
    sets = {picture.group.split("/")[0] for picture in found.real}
    assert sets >= {"dltrack_aponeurosis", "usgra_nerve_vessel", "timtrack_muscle", "ultrabones_lower_leg"}
    assert len(set(found.seeds)) == 30 and max(found.seeds) < np.iinfo(np.int64).max


def test_the_shipped_study_can_be_made_of_the_public_sets(real_data: Path, tmp_path: Path) -> None:
    done = run("validate", "--data", real_data, "--registered", "--out", tmp_path / "study")
    assert done.returncode == 0, done.stderr
    assert "study of 60 images" in done.stdout
    key = json.loads((tmp_path / "study" / "key.json").read_text())
    assert [note for note in key["notes"] if "share a group" in note]

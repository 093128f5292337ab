"""`csg-edge calibrate` from end to end: what it refuses, what it leaves, and that it changes a bundle whole or not."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_bundle import tiny_bundle, tiny_data

import csg_edge
from csg_edge.bundle.manifest import read_bundle, write_manifest
from csg_edge.calibration.artefacts import Workshop
from csg_edge.calibration.calibrate import parse_targets
from csg_edge.calibration.recipes import RECIPES
from csg_edge.calibration.samples import COLUMNS, draw_samples, read_samples, write_list
from csg_edge.cli.main import main
from csg_edge.errors import BundleError, InputError
from csg_edge.export.build import build_bundle

ORT = "onnxruntime:CPU:int8"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("calibrate") / "scans", train=4, val=6)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(bundle: Path | str, data: Path, report: Path, *options: str) -> Result:
    arguments = ["calibrate", str(bundle), "--data", str(data), "--report", str(report), *options]
    return CliRunner().invoke(main, arguments, standalone_mode=False)


def held_out_list(data: Path, folder: Path) -> str:
    samples = draw_samples([data], count=3, seed=0)
    write_list(folder / "list.csv", [*samples, replace(samples[0], image="000004", group="g4")])
    return str(folder / "list.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda d, f: ["--target", "openvino:CPU:bf16"], "calibration is for int8"),
        (lambda d, f: ["--target", "onnxruntime:OpenVINO:int8"], "int8 is not offered"),
        (lambda d, f: ["--target", ORT, "--samples", "5"], "the data has 4 images of train groups"),
        (
            lambda d, f: ["--target", ORT, "--samples", "4", "--list", held_out_list(d, f)],
            "scans/000004: group g4 is held",
        ),
        (lambda d, f: ["--target", ORT, "--samples", "4", "--recipe", "best"], "choose among default"),
        (lambda d, f: ["--target", ORT, "--samples", "4", "--steps", "2"], "--steps 2: the bundle has 1"),
        (lambda d, f: ["--target", "tensorrt-rtx:sm10:int8", "--samples", "4"], "sm10"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    bundle: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    options: Callable[[Path, Path], list[str]], message: str,
) -> None:  # fmt: skip
    before = contents(bundle)
    result = run(bundle, data, tmp_path / "report", *options(data, tmp_path))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert contents(bundle) == before
    assert not (tmp_path / "report").exists()


def test_a_bundle_without_its_fp32_graph(bundle: Path, data: Path, tmp_path: Path) -> None:
    manifest = read_bundle(bundle).manifest
    write_manifest(bundle, replace(manifest, graphs=manifest.graphs[:1]))
    result = run(bundle, data, tmp_path / "report", "--target", ORT, "--samples", "4")
    assert result.exit_code == 2
    assert "no fp32 graph of 1 steps for batch 1" in result.stderr


def test_the_bundle_inside_the_package_is_left_alone(data: Path, tmp_path: Path) -> None:
    result = run("msk-256", data, tmp_path / "report", "--target", ORT)
    assert result.exit_code == 2
    assert "give --out FOLDER" in result.stderr


def test_no_openvino_engine_is_built_from_a_quantised_graph(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no int8 model of 1 steps for OpenVINO; make one with `csg-edge calibrate`"):
        build_bundle(read_bundle(bundle), ["openvino:CPU:int8"], out=bundle)
    with pytest.raises(InputError, match="not offered"):
        parse_targets(["onnxruntime:OpenVINO:int8"])


def test_the_same_list_gives_the_same_file_and_is_made_once(bundle: Path, data: Path, tmp_path: Path) -> None:
    opened = read_bundle(bundle)
    samples = read_samples([data], draw_samples([data], count=4, seed=0), opened.manifest)
    files = []
    for name in ("first", "second"):
        shop = Workshop(opened, samples, RECIPES["default"], tmp_path / name)
        shop.folder.mkdir()
        artefact = shop.make("onnxruntime", 1, ["context/tiny/Conv"])
        files.append(artefact.file)
    assert files[0].read_bytes() == files[1].read_bytes()
    files[1].write_bytes(b"kept")
    assert shop.make("onnxruntime", 1, ["context/tiny/Conv"]).file.read_bytes() == b"kept"
    assert shop.make("onnxruntime", 1, []).file != files[1]


@pytest.mark.slow
def test_calibration_from_end_to_end(bundle: Path, data: Path, tmp_path: Path) -> None:
    """Engines in the bundle are those that passed; the others changed nothing; the second run repeats no work."""
    pytest.importorskip("nncf", reason="nncf is not installed; pip install 'csg-edge[calibrate]'")
    before, report, out = contents(bundle), tmp_path / "report", tmp_path / "out"
    options = ["--target", "openvino:CPU:int8", "--target", ORT, "--samples", "4", "--images", "6", "--json"]
    result = run(bundle, data, report, *options, "--out", str(out))
    assert result.exit_code in (0, 1), result.stderr
    found = json.loads(result.stdout)
    assert contents(bundle) == before
    chosen = {attempt["target"]: attempt["passed"] for attempt in found["attempts"]}
    assert found["passed"] == all(chosen.values()) == (result.exit_code == 0)
    assert out.exists() == any(chosen.values())
    for attempt in found["attempts"]:
        gates = {gate["name"]: gate for gate in attempt["gates"]}
        assert gates.keys() == {"speed", "kid", "dice", "spectrum_gap", "golden_psnr"}
        assert gates["speed"]["passed"] == (attempt["speed_up"] >= 1.15)
        assert all(gate["passed"] or gate["reason"] for gate in gates.values())
    rows = {row["target"]: row for row in found["engines"]}
    assert rows.keys() == {"openvino:CPU:bf16", "openvino:CPU:fp32", "openvino:CPU:int8", "onnxruntime:CPU:fp32", ORT}
    assert rows[ORT]["bytes"] < rows["onnxruntime:CPU:fp32"]["bytes"]
    with (report / "sensitivity-steps-1.csv").open(newline="") as file:
        ranking = list(csv.DictReader(file))
    errors = [float(row["mean_square_error"]) for row in ranking if row["rank"]]
    assert errors == sorted(errors, reverse=True) != []
    assert [row[ORT] for row in ranking if not row["rank"]] == ["16 or 32 bit"]
    assert (report / "sensitivity-steps-1.png").stat().st_size > 1000
    assert (report / "samples.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    if out.exists():
        added = [engine for engine in read_bundle(out).manifest.engines if engine.target.endswith("int8")]
        assert {engine.target for engine in added} == {target for target, passed in chosen.items() if passed}
        for engine in added:
            assert engine.state == "verified"
            assert engine.report["calibration"]["speed_up"] >= 1.15
            runtime = engine.target.split(":")[0]
            with csg_edge.load(out, runtime=runtime) as generator:  # auto: int8 stands first, and is raced
                assert generator.engine.target == engine.target or "no faster here" in str(generator.choice)
    (pair,) = found["agreement"]
    assert {pair["first"], pair["second"]} == {"openvino:CPU:int8", ORT}
    assert 0.0 < pair["apart"] <= pair["first_to_fp32"] + pair["second_to_fp32"]
    work = {path: path.stat().st_mtime_ns for path in (report / "work").rglob("*") if path.is_file()}
    again = run(bundle, data, report, *options, "--out", str(tmp_path / "again"))
    assert again.exit_code in (0, 1), again.stderr
    assert {path: path.stat().st_mtime_ns for path in (report / "work").rglob("*") if path.is_file()} == work

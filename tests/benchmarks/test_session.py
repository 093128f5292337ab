"""The stopwatch is right, and whatever happens to one system, the others and what was measured stay."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from csg_edge.benchmarks import selftest
from csg_edge.benchmarks.files import SAMPLES, file_name, read_record
from csg_edge.benchmarks.scenarios import Plan, Scenario
from csg_edge.benchmarks.session import choose_engines, measure_stand_ins
from csg_edge.bundle.manifest import find_bundle, read_bundle, write_manifest
from csg_edge.cli.main import main
from csg_edge.errors import InputError

TINY = """
warm_up = 1
cold_starts = 1
profiled_images = 2
library = 2
[single-stream]
min_seconds = 0.1
max_seconds = 20.0
min_queries = 3
[multi-stream]
min_seconds = 0.1
max_seconds = 0.2
samples_per_query = 2
[offline]
min_seconds = 0.1
max_seconds = 0.2
"""


def test_known_latencies_are_recovered_and_a_crash_stays_alone(tmp_path: Path) -> None:
    """A no-op, a 20 ms sleep, a slow tail of 5 % and a system that aborts its process, through the whole path."""
    scenarios = (
        Scenario("single-stream", min_seconds=0.1, max_seconds=20.0, min_queries=100),
        Scenario("multi-stream", min_seconds=0.1, max_seconds=5.0, min_queries=2, samples_per_query=8),
        Scenario("offline", min_seconds=0.5, max_seconds=5.0),
    )
    _, checks = selftest.self_test(tmp_path / "out", replace(selftest.PLAN, scenarios=scenarios))
    assert len(checks) == 10
    assert [check.name for check in checks if not check.passed] == []


def test_wrong_times_would_be_noticed(tmp_path: Path, quick: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "STAND_INS", {**selftest.STAND_INS, selftest.SLEEP: {"ms": 2.0}})
    record, checks = selftest.self_test(tmp_path / "out", quick)
    assert f"{selftest.SLEEP}: p50, ms" in [check.name for check in checks if not check.passed]
    # A stopwatch that adds a tenth to everything.
    for row in record["engines"]:
        for scenario in row["scenarios"].values():
            scenario["latency_ms"] = {
                name: value and 1.1 * value + 1.0 for name, value in scenario["latency_ms"].items()
            }
    late = [check.name for check in selftest.check(record, tmp_path / "out") if not check.passed]
    assert f"{selftest.TAIL}: p99, ms" in late


def test_our_figures_are_those_of_loadgen(tmp_path: Path, quick: Plan) -> None:
    record = measure_stand_ins({"nap": {"ms": 3.0}}, quick, tmp_path)
    found = record["engines"][0]["scenarios"]["single-stream"]
    (theirs,) = found["loadgen"]
    assert theirs["queries"] == found["latency_ms"]["count"] >= 70
    # The same order statistic of the same queries, by two clocks a call apart.
    assert found["latency_ms"]["p90_bound"] == pytest.approx(1e-6 * theirs["early_stopping_latency_ns"], rel=0.05)
    with (tmp_path / SAMPLES / "nap.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["latency_ms"]["count"]
    assert sorted(float(row["latency_ms"]) for row in rows)[0] == pytest.approx(found["latency_ms"]["min"], abs=1e-3)


def test_a_system_that_fails_is_a_row_with_its_reason(tmp_path: Path, quick: Plan) -> None:
    record = measure_stand_ins({"faulty": {"ms": 1.0, "fail_at": 9}, "fine": {"ms": 1.0}}, quick, tmp_path)
    faulty, fine = record["engines"]
    assert faulty["status"] == "failed"
    assert "failed as asked" in faulty["reason"]
    assert fine["status"] == "ok"
    assert record["state"] == "complete"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    code = (
        # A shell that put the tests in the background had SIGINT ignored, and that is handed down.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import sys; from pathlib import Path; from csg_edge.benchmarks.session import measure_stand_ins;"
        "from csg_edge.benchmarks.scenarios import Plan, Scenario;"
        "plan = Plan('long', (Scenario('single-stream', 60.0, 60.0),));"
        "measure_stand_ins({'first': {'ms': 5.0}, 'second': {'ms': 5.0}}, plan, Path(sys.argv[1]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE)
    log = tmp_path / "loadgen" / "first" / "round-1" / "single-stream"
    deadline = time.monotonic() + 60
    while not log.is_dir() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    record = read_record(tmp_path / "bench.json")
    assert record["state"] == "partial"
    first, second = record["engines"]
    assert first["status"] == "partial"
    assert first["scenarios"]["single-stream"]["latency_ms"]["count"] > 5
    assert second["status"] == "not reached"
    assert (tmp_path / SAMPLES / "first.csv").is_file()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["bench", "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_earlier_results_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("mine")
    result = CliRunner().invoke(main, ["bench", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "earlier benchmark" in result.stderr
    assert (tmp_path / "bench.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "openvino:CPU:int4"], "--target openvino:CPU:int4"),
        (["--steps", "3"], "--steps 3"),
        (["--steps", "x"], "--steps x"),
        (["--scenario", "server"], "--scenario server"),
        (["--mode", "none.toml"], "--mode none.toml"),
        (["--threads", "0"], "--threads 0"),
        (["--fail-above", "1.1"], "--compare"),
        (["--quality", "none.json"], "none.json"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["bench", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_every_engine_is_chosen_unless_named(shipped: Path) -> None:
    bundle = read_bundle(shipped)
    every = choose_engines(bundle, (), (1, 4))
    assert {(engine.target, engine.steps) for engine in every} == {
        (engine.target, engine.steps) for engine in bundle.manifest.engines if engine.steps in (1, 4)
    }
    with pytest.raises(InputError, match="steps 9"):
        choose_engines(bundle, (), (9,))


def test_names_of_files_hold_on_every_system() -> None:
    assert file_name("openvino:CPU:bf16, 1 step") == "openvino_CPU_bf16-1_step"


@pytest.mark.slow
def test_an_engine_end_to_end_beside_one_that_cannot_run(tmp_path: Path) -> None:
    import shutil

    bundle_path = tmp_path / "bundle"
    shutil.copytree(find_bundle("msk-256"), bundle_path)
    manifest = read_bundle(bundle_path).manifest
    fp32 = next(e for e in manifest.engines if e.target == "openvino:CPU:fp32" and e.steps == 1)
    absent = replace(fp32, target="tensorrt:sm999:fp16", built_with="tensorrt 0.0")
    write_manifest(bundle_path, replace(manifest, engines=(fp32, absent)))
    (tmp_path / "tiny.toml").write_text(TINY)
    out = tmp_path / "out"
    result = CliRunner().invoke(
        main, ["bench", str(bundle_path), "--mode", str(tmp_path / "tiny.toml"), "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record == read_record(out / "bench.json")
    measured, missing = record["engines"]
    assert missing["status"] == "not run"
    assert "tensorrt" in missing["reason"]
    assert measured["status"] == "ok"
    assert measured["effective_precision"] == "fp32"
    assert measured["sha256"] == manifest.files[fp32.file].sha256
    assert set(measured["scenarios"]) == {"single-stream", "multi-stream", "offline"}
    assert {"context", "step_1", "decode", "host: noise"} <= set(measured["stages"])
    # What the stages say adds up to what the clock said, the host's part included.
    assert sum(measured["stages"].values()) == pytest.approx(
        measured["scenarios"]["single-stream"]["latency_ms"]["p50"], rel=0.1
    )
    assert set(measured["cold"]["no_cache"]["phases_ms"]) >= {"import_csg_edge", "load_engine", "first_image"}
    assert 0.0 < measured["roofline"]["fraction"] < 1.5
    assert measured["memory_mb"]["peak"] > 50
    page = (out / "bench.html").read_text()
    assert "openvino:CPU:fp32" in page
    assert "<script" not in page
    assert "http:" not in page
    assert "https:" not in page  # nothing is fetched

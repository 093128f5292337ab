"""Comparing two records: what is a regression, and what only looks like one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_records import record_of, row_of
from click.testing import CliRunner

from csg_edge.benchmarks.compare import compare, failed, notes
from csg_edge.cli.main import main
from csg_edge.errors import InputError


def test_verdicts() -> None:
    first = record_of(row_of("a", 10.0), row_of("b", 10.0), row_of("c", 10.0), row_of("noisy", 10.0, spread=0.9))
    second = record_of(row_of("a", 12.0), row_of("b", 10.2), row_of("c", 9.0), row_of("noisy", 11.0, spread=0.9))
    found = {ratio.label: ratio for ratio in compare(first, second, fail_above=1.05)}
    assert found["a"].verdict == "REGRESSION"
    assert found["a"].ratio == pytest.approx(1.2)
    assert found["b"].verdict in ("slower", "same")
    assert found["c"].verdict == "faster"
    assert found["noisy"].verdict == "same"  # 10 % more, but it scatters by 90 %
    assert failed(list(found.values()))
    unlimited = compare(first, second, fail_above=None)
    assert not failed(unlimited)


def test_an_engine_that_failed_since_is_lost() -> None:
    (found,) = compare(record_of(row_of("a", 10.0)), record_of(row_of("a", 10.0, status="failed")), fail_above=1.05)
    assert found.verdict == "LOST"


def test_records_without_a_common_engine_and_odd_limits_are_refused() -> None:
    with pytest.raises(InputError, match="no engine in common"):
        compare(record_of(row_of("a", 1.0)), record_of(row_of("b", 1.0)), fail_above=None)
    with pytest.raises(InputError, match="--fail-above"):
        compare(record_of(row_of("a", 1.0)), record_of(row_of("a", 1.0)), fail_above=0.5)


def test_another_machine_or_version_is_said() -> None:
    second = record_of(row_of("a", 1.0))
    second["machine"] = {**second["machine"], "processor": "z", "versions": {"numpy": "3"}}
    found = notes(record_of(row_of("a", 1.0)), second)
    assert any(line.startswith("another processor: a and z") for line in found)
    assert "numpy: 2 and 3" in found


def test_the_command_exits_with_1_on_a_regression(tmp_path: Path) -> None:
    for name, median in (("a", 10.0), ("b", 12.0)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record_of(row_of("engine", median))))
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    worse = CliRunner().invoke(main, ["bench", "--compare", *paths, "--fail-above", "1.05"])
    assert worse.exit_code == 1
    assert "REGRESSION" in worse.stdout
    assert CliRunner().invoke(main, ["bench", "--compare", *reversed(paths), "--fail-above", "1.05"]).exit_code == 0
    plain = CliRunner().invoke(main, ["bench", "--compare", *paths, "--json"])
    assert plain.exit_code == 0
    assert json.loads(plain.stdout)["ratios"][0]["ratio"] == pytest.approx(1.2)
    (tmp_path / "b.json").write_text("{}")
    broken = CliRunner().invoke(main, ["bench", "--compare", *paths])
    assert broken.exit_code == 2
    assert "b.json" in broken.stderr

"""Scenario files: what is measured is fixed and checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from csg_edge.benchmarks.scenarios import SCENARIOS, parse_plan, read_plan
from csg_edge.errors import InputError

ROOT = Path(__file__).parents[2]
OFFLINE = {"offline": {"min_seconds": 1, "max_seconds": 2.5}}


def test_the_shipped_modes_hold_every_scenario_and_short_is_short() -> None:
    for mode in ("short", "full", str(ROOT / "benchmarks" / "scenarios" / "mlperf.toml")):
        assert [scenario.name for scenario in read_plan(mode).scenarios] == list(SCENARIOS)
    short = read_plan("short")
    assert short.rounds * sum(scenario.min_seconds for scenario in short.scenarios) <= 20


def test_a_plan_keeps_the_scenarios_asked_for() -> None:
    plan = read_plan("short").only(["offline"])
    assert [scenario.name for scenario in plan.scenarios] == ["offline"]
    with pytest.raises(InputError, match=r"server.*single-stream"):
        read_plan("short").only(["server"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "no scenario"),
        ({**OFFLINE, "round": 2}, "unknown key round"),
        ({**OFFLINE, "rounds": 0}, "rounds = 0; give 1 or more"),
        ({**OFFLINE, "rounds": 1.5}, "give an integer"),
        ({**OFFLINE, "rounds": True}, "give an integer"),
        ({"offline": 3}, "is no table"),
        ({"offline": {"min_seconds": 1}}, "max_seconds is missing"),
        ({"offline": {"min_seconds": 3, "max_seconds": 2}}, "offline.max_seconds"),
        ({"offline": {"min_seconds": 1, "max_seconds": 2, "percentile": 90.0}}, "a share between 0 and 1"),
    ],
)
def test_a_wrong_key_is_named(values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_plan(values, mode="mine", where="mine.toml")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give full, short or a TOML file"):
        read_plan(str(tmp_path / "none.toml"))
    (tmp_path / "broken.toml").write_text("rounds = ")
    with pytest.raises(InputError, match="not TOML"):
        read_plan(str(tmp_path / "broken.toml"))

"""Gates fail what should fail, and never pass what could not be judged."""

from __future__ import annotations

import pytest

from csg_edge.quality.gates import judge
from csg_edge.quality.record import Figure, Gate, Subject

TEACHER = {
    "c2st_structure": 0.58, "coherence_shift": -0.2, "direction_spread": 0.9,
    "kid": 0.02, "kid_joint": 0.03, "spectrum_gap": 0.15, "style_error": 0.5, "c2st": 0.7,
    "dice": 0.85, "diversity": 4.0, "context_hit_rate": 0.95, "memorisation_rate": 0.04,
}  # fmt: skip
REAL = {"kid": 0.001, "kid_joint": 0.001, "spectrum_gap": 0.05, "c2st": 0.5, "dice": 0.86}


def subject(values: dict[str, float], kind: str = "engine", groups: int = 24) -> Subject:
    return Subject(kind, kind, 100, {name: Figure(value, groups=groups) for name, value in values.items()})


def by_set(values: dict[str, float], sets: dict[str, int], kind: str = "engine") -> Subject:
    """The same figures pooled and for each set, with its number of groups."""
    figures = dict(subject(values, kind).figures)
    for name, groups in sets.items():
        figures |= {f"{key}/{name}": Figure(value, groups=groups) for key, value in values.items()}
    return Subject(kind, kind, 100, figures)


def gates(changed: dict[str, float]) -> dict[str, Gate]:
    found = judge(subject({**TEACHER, **changed}), subject(TEACHER, "teacher"), subject(REAL, "control"))
    return {gate.name: gate for gate in found}


def test_an_engine_as_good_as_its_teacher_passes_every_gate() -> None:
    assert all(gate.passed for gate in gates({}).values())
    assert len(gates({})) >= 12


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("c2st_structure", 0.61), ("coherence_shift", -0.31), ("coherence_shift", 0.31), ("direction_spread", 0.84),
        ("direction_spread", 1.16), ("kid", 0.0221), ("kid_joint", 0.034), ("spectrum_gap", 0.19),
        ("style_error", 0.53), ("c2st", 0.76), ("dice", 0.83), ("dice", 0.89), ("diversity", 3.5), ("diversity", 4.5),
        ("context_hit_rate", 0.89), ("memorisation_rate", 0.11),
    ],
)  # fmt: skip
def test_one_figure_beyond_its_limit_fails_its_gate_alone(name: str, value: float) -> None:
    found = gates({name: value})
    assert [gate.name for gate in found.values() if not gate.passed] == [name]


def test_nothing_need_be_closer_to_real_images_than_real_images_are() -> None:
    better = subject({**TEACHER, "kid": 0.0009}, "teacher")
    found = judge(subject({**TEACHER, "kid": 0.001}), better, subject(REAL, "control"))
    assert next(gate for gate in found if gate.name == "kid").passed


def test_a_distance_below_0_is_no_nearer_than_0() -> None:
    teacher = subject({**TEACHER, "kid": -0.5, "kid_joint": -0.2}, "teacher")
    control = subject({**REAL, "kid": -0.1, "kid_joint": -0.1}, "control")
    found = judge(subject({**TEACHER, "kid": -0.01, "kid_joint": 0.01}), teacher, control)
    assert [gate.name for gate in found if not gate.passed] == ["kid_joint"]


def test_without_a_teacher_relative_gates_are_not_judged_and_say_why() -> None:
    found = judge(subject(TEACHER), None, subject(REAL, "control"))
    open_gates = {gate.name for gate in found if gate.passed is None}
    assert open_gates == {"kid", "kid_joint", "spectrum_gap", "style_error", "c2st", "diversity"}
    assert all("no teacher" in gate.reason for gate in found if gate.passed is None)


def test_structure_is_judged_against_real_images_whatever_the_teacher_does() -> None:
    worse = subject({**TEACHER, "c2st_structure": 0.95}, "teacher")
    found = judge(subject({**TEACHER, "c2st_structure": 0.9}), worse, subject(REAL, "control"))
    assert [gate.name for gate in found if not gate.passed] == ["c2st_structure"]


def test_every_set_has_gates_of_its_own_and_the_worst_comes_first() -> None:
    sets = {"a": 9, "b": 15, "c": 7}
    engine = by_set(TEACHER, sets)
    figures = {**engine.figures, "c2st_structure/b": Figure(0.9, groups=15), "dice/b": Figure(0.5, groups=15)}
    figures["coherence_shift/a"] = Figure(1.0, groups=9)
    figures["c2st_structure/b/muscle"] = Figure(1.0, groups=15)  # a class has no gate
    found = judge(Subject("e", "engine", 9, figures), by_set(TEACHER, sets, "teacher"), by_set(REAL, sets, "control"))
    assert list(dict.fromkeys(gate.name.partition("/")[2] for gate in found)) == ["b", "a", "c", ""]
    failed = {gate.name for gate in found if gate.passed is False}
    assert failed == {"c2st_structure/b", "dice/b", "coherence_shift/a"}
    assert [gate.name for gate in found if gate.name.endswith("/c")] == ["all gates/c"]
    few = next(gate for gate in found if gate.name == "all gates/c")
    assert few.passed is None and not few.counts and "7 held-out groups, at least 8" in few.reason
    pooled = [gate.name for gate in found if "/" not in gate.name]
    assert {gate.name for gate in found} >= {f"{name}/a" for name in pooled}


def test_a_set_that_is_too_small_to_judge_stops_no_pass() -> None:
    sets = {"a": 9, "c": 1}
    found = judge(by_set(TEACHER, sets), by_set(TEACHER, sets, "teacher"), by_set(REAL, sets, "control"))
    assert any(gate.passed is None for gate in found)
    assert all(gate.passed for gate in found if gate.counts)


def test_too_few_groups_judge_nothing() -> None:
    control = subject(REAL, "control", groups=3)
    found = judge(subject(TEACHER, groups=3), subject(TEACHER, "teacher", groups=3), control)
    assert [gate.passed for gate in found] == [None]
    assert "3 held-out groups" in found[0].reason


def test_a_figure_that_was_not_measured_is_no_pass() -> None:
    values = {name: value for name, value in TEACHER.items() if name != "dice"}
    found = judge(subject(values), subject(TEACHER, "teacher"), subject(REAL, "control"))
    dice = next(gate for gate in found if gate.name == "dice")
    assert dice.passed is None and dice.reason == "not measured"


def test_a_teacher_that_is_always_told_apart_is_no_yardstick() -> None:
    teacher = subject({**TEACHER, "c2st": 0.97}, "teacher")
    found = judge(subject({**TEACHER, "c2st": 0.99}), teacher, subject(REAL, "control"))
    gate = next(gate for gate in found if gate.name == "c2st")
    assert gate.passed is None and "the teacher's own images" in gate.reason

"""The plan: what a file may say, how many images each mask gets, and what decides a draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from csg_edge.augment.plan import Appearance, Finding, Look, Plan, counts, draw, read_plan
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA

WHOLE = """
multiply = 3
seed = 7
[geometry]
vary = "tilt:3deg"
[fibre]
direction = "muscle=18deg?"
share = 0.5
[[finding]]
vary = "insert:vessel?"
share = 0.25
[contexts]
select = "diverse"
folder = "more"
[appearance]
gain = 0
[balance]
vessel = 0.3
[checks]
dice = 0.6
attempts = 2
"""
NAMES = ("background", "nerve", "vessel")


def test_a_file_says_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(WHOLE)
    plan = read_plan(path, seed=8)
    assert plan == Plan(
        3.0, 8, "tilt:3deg", "muscle=18deg?", 0.5, (Finding("insert:vessel?", 0.25),), "diverse", tmp_path / "more",
        Appearance(gain=0.0), (("vessel", 0.3),), 0.6, 2,
    )  # fmt: skip
    plan.check(MSK_SCHEMA)
    assert read_plan(None, multiply=2.0) == replace(Plan(), multiply=2.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("multiply = 'two'", "multiply: 'two' is not of type float"),
        ("multiplied = 2", "unknown key multiplied; there are multiply, seed, geometry"),
        ("[geometry]\nvaried = 1", r"\[geometry\] unknown key varied; there are vary"),
        ("[finding]\nvary = 'tilt:3deg'", r"write \[\[finding\]\]"),
        ("[[finding]]\nvary = 'tilt:3deg'", "needs vary and share"),
        ("[balance]\nvessel = 'half'", "takes CLASS = SHARE"),
        ("[checks]\ndice = 'high'", "give a number from 0 to 1, or 'auto'"),
        ("multiply = = 2", "not TOML"),
        ("geometry = 3", r"\[geometry\] *: write it as a section"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_plan(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"multiply": 1.0}, "multiply 1: give a number above 1"),
        ({"multiply": float("nan")}, "multiply nan"),
        ({"vary": "bend:3deg"}, "no variation 'bend'"),
        ({"direction": "liver=3deg"}, "liver"),
        ({"select": "nearest"}, "choose random, own, diverse"),
        ({"findings": (Finding("insert:vessel", 1.5),)}, "share = 1.5"),
        ({"balance": (("liver", 0.5),)}, "no class 'liver'"),
        ({"appearance": Appearance(gain=3.0)}, "appearance.gain = 3"),
        ({"dice": 1.2}, "checks.dice = 1.2"),
        ({"attempts": 0}, "checks.attempts = 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_numbers_out_of_range_and_unknown_words(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(Plan(), **change).check(MSK_SCHEMA)  # type: ignore[arg-type]


def test_every_mask_counts_the_same_without_a_balance() -> None:
    present = np.ones((10, 3), np.bool_)
    assert counts(Plan(multiply=5), present, NAMES, real=True).tolist() == [4] * 10
    assert counts(Plan(multiply=5), present, NAMES, real=False).tolist() == [5] * 10
    half = counts(Plan(multiply=1.5), present, NAMES, real=True)
    assert half.sum() == 5
    assert set(half.tolist()) == {0, 1}


@pytest.mark.parametrize(("share", "others"), [(0.05, {"nerve": 0.85}), (0.3, {"nerve": 0.9}), (0.8, {})])
def test_a_balance_is_met_by_the_whole_output(share: float, others: dict[str, float]) -> None:
    random = np.random.default_rng(0)
    present = np.stack([np.ones(200), random.random(200) < 0.9, random.random(200) < 0.04], 1).astype(np.bool_)
    plan = Plan(multiply=6, balance=(("vessel", share), *others.items()))
    numbers = counts(plan, present, NAMES, real=True)
    assert numbers.sum() == 1000
    for name, wanted in plan.balance:
        has = present[:, NAMES.index(name)]
        assert abs((numbers[has].sum() + has.sum()) / 1200 - wanted) < 0.01


def test_a_balance_that_cannot_be_met_says_what_can() -> None:
    present = np.zeros((100, 3), np.bool_)
    present[:30, 2] = True
    with pytest.raises(InputError, match=r"balance.vessel = 0.05: these masks allow 0.150 to 0.650"):
        counts(Plan(multiply=2, balance=(("vessel", 0.05),)), present, NAMES, real=True)
    with pytest.raises(InputError, match=r"balance.nerve = 0.5: these masks allow 0.000 to 0.000"):
        counts(Plan(multiply=2, balance=(("nerve", 0.5),)), present, NAMES, real=True)
    # Nerve is where vessel is, so one cannot grow while the other shrinks.
    present[:, 1] = present[:, 2]
    with pytest.raises(InputError, match="not together"):
        counts(Plan(multiply=4, balance=(("vessel", 0.2), ("nerve", 0.6))), present, NAMES, real=True)


def test_a_draw_follows_from_seed_name_number_and_attempt_alone() -> None:
    plan = Plan(findings=(Finding("insert:vessel?", 0.5),), direction="muscle=18deg?", direction_share=0.5)
    assert draw(plan, "a", 0, 0) == draw(plan, "a", 0, 0)
    others = [
        draw(plan, "b", 0, 0), draw(plan, "a", 1, 0), draw(plan, "a", 0, 1), draw(replace(plan, seed=1), "a", 0, 0)
    ]  # fmt: skip
    assert len({draw(plan, "a", 0, 0).noise_seed, *(item.noise_seed for item in others)}) == 5
    # Neither how much is made nor of what else changes it.
    assert draw(replace(plan, multiply=9.0, balance=(("vessel", 0.3),)), "a", 0, 0) == draw(plan, "a", 0, 0)


def test_shares_and_deviations_are_those_of_the_plan() -> None:
    plan = Plan(
        findings=(Finding("insert:vessel?", 0.2),), direction="muscle=18deg?", direction_share=0.6,
        appearance=Appearance(share=0.5, gain=0.2, gamma=0.0, tgc=0.3, speckle=0.1),
    )  # fmt: skip
    found = [draw(plan, f"{number}", 0, 0) for number in range(2000)]
    assert abs(np.mean(["vessel" in (item.vary or "") for item in found]) - 0.2) < 0.03
    assert abs(np.mean([item.direction is not None for item in found]) - 0.6) < 0.04
    looks = [item.look for item in found if item.look != Look()]
    assert abs(len(looks) / 2000 - 0.5) < 0.04
    assert abs(np.std([np.log(look.gain) for look in looks]) - 0.2) < 0.02
    assert {look.gamma for look in looks} == {1.0}
    assert abs(np.std([look.tgc for look in looks]) - 0.3) < 0.03
    assert 0.0 <= min(item.context for item in found) < 0.01
    assert 0.99 < max(item.context for item in found) < 1.0

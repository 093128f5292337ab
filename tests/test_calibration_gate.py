"""The gate: an int8 engine earns its place by speed and by quality, and what failed is said with numbers."""

from __future__ import annotations

import pytest

from csg_edge.bundle.manifest import Engine
from csg_edge.calibration.gate import judge_quality, judge_speed
from csg_edge.calibration.quality import Quality
from csg_edge.calibration.speed import Timing
from csg_edge.export.targets import EIGHT_BIT, preference
from csg_edge.quality.record import Figure, Gate

TARGET = "openvino:CPU:int8"


def timing(milliseconds: float) -> Timing:
    return Timing((milliseconds,) * 9)


def judged(
    *, student_kid: Figure, difference: Figure, dice: float = 0.0, gap: float = 0.2, psnr: float = 40.0
) -> dict[str, Gate]:
    student = Quality(student_kid, 0.8, 0.2)
    found = Quality(Figure(student_kid.value + difference.value), 0.8 + dice, gap, difference, Figure(dice), 40.0, 0.99)
    return {gate.name: gate for gate in judge_quality(TARGET, found, student, psnr)}


KID = Figure(0.6, -0.4, 1.6, 24)  # half-width 1, so 0.05 is the limit
SAME = Figure(0.001, -0.01, 0.012, 24)


def test_speed_is_over_the_best_other_engine() -> None:
    assert judge_speed(TARGET, timing(10), "openvino:CPU:bf16", timing(11.6)).passed
    slow = judge_speed(TARGET, timing(10), "openvino:CPU:bf16", timing(11.4))
    assert not slow.passed
    assert slow.value == pytest.approx(1.14)
    assert "10.0 ms, openvino:CPU:bf16 takes 11.4 ms" in slow.reason


def test_stalls_of_a_busy_machine_are_no_speed_up() -> None:
    stalled = Timing((10.0,) * 4 + (60.0,) * 5)  # more than half of the images
    assert judge_speed(TARGET, timing(10), "openvino:CPU:bf16", stalled).value == pytest.approx(1.0)


def test_the_same_images_pass() -> None:
    assert all(gate.passed for gate in judged(student_kid=KID, difference=SAME).values())


def test_kid_is_judged_at_the_upper_end_of_the_paired_interval() -> None:
    assert judged(student_kid=KID, difference=Figure(0.01, -0.03, 0.05, 24))["kid"].passed
    noisy = judged(student_kid=KID, difference=Figure(0.01, -0.08, 0.10, 24))["kid"]
    assert not noisy.passed  # noise does not help to pass
    assert "0.0500 too much" in noisy.reason


def test_a_student_whose_kid_is_near_zero_or_negative_has_a_limit_all_the_same() -> None:
    for value in (0.0, -0.6):
        kid = Figure(value, value - 1, value + 1, 24)
        assert judged(student_kid=kid, difference=Figure(0.01, 0.0, 0.04, 24))["kid"].passed
        assert not judged(student_kid=kid, difference=Figure(0.2, 0.1, 0.3, 24))["kid"].passed


def test_better_than_the_student_is_no_fault_but_in_dice() -> None:
    assert judged(student_kid=KID, difference=Figure(-0.5, -0.6, -0.4, 24))["kid"].passed
    assert judged(student_kid=KID, difference=SAME, gap=0.1)["spectrum_gap"].passed
    blur = judged(student_kid=KID, difference=SAME, dice=0.02)["dice"]  # a blur is easier to segment
    assert not blur.passed
    assert "0.0100 too much" in blur.reason


def test_each_condition_alone_can_fail() -> None:
    assert not judged(student_kid=KID, difference=SAME, dice=-0.011)["dice"].passed
    assert not judged(student_kid=KID, difference=SAME, gap=0.221)["spectrum_gap"].passed
    low = judged(student_kid=KID, difference=SAME, psnr=29.5)["golden_psnr"]
    assert not low.passed
    assert "0.5 dB too little" in low.reason


def test_int8_that_was_never_timed_comes_after_what_it_should_beat() -> None:
    def engine(target: str, **calibration: object) -> Engine:
        return Engine(target, 1, "f", EIGHT_BIT, report={"calibration": calibration} if calibration else {})

    untimed, half = engine("tensorrt-rtx:sm86:int8", samples=300), engine("tensorrt-rtx:sm86:fp16")
    timed, bf16 = engine("openvino:CPU:int8", speed_up=1.4), engine("openvino:CPU:bf16")
    assert sorted([untimed, half, bf16, timed], key=preference) == [half, untimed, timed, bf16]

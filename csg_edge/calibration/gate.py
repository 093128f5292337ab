"""What an int8 engine must reach to be put into a bundle. Each condition says by how much it was met or missed."""

from __future__ import annotations

from csg_edge.calibration.quality import Quality
from csg_edge.calibration.speed import Timing, speed_up
from csg_edge.export.targets import EIGHT_BIT
from csg_edge.quality.record import Gate

SPEED_UP = 1.15
KID_SHARE = 0.05
DICE_MARGIN = 0.01
SPECTRUM_RATIO = 1.1


def judge_speed(target: str, timing: Timing, best: str, baseline: Timing) -> Gate:
    """At least SPEED_UP times as fast as `best`, the runtime's fastest engine in 16 or 32 bits: `speed_up`."""
    ratio = speed_up(timing, baseline)
    reason = "" if ratio >= SPEED_UP else f"{timing.median:.1f} ms, {best} takes {baseline.median:.1f} ms"
    return Gate(target, "speed", ratio, f">= {SPEED_UP:g} x {best}", ratio >= SPEED_UP, reason)


def judge_quality(target: str, quality: Quality, student: Quality, golden_psnr: float) -> list[Gate]:
    """KID, Dice and spectrum gap against the fp32 student's; PSNR on the golden cases against the bundle's tolerance.

    KID is an unbiased estimate that may be near 0 or below, of which 5 % mean nothing. So the limit is 5 % of the
    student's KID or, if larger, of the half-width of its 95 % interval: of what these data can tell from nothing. What
    is judged is the upper end of the 95 % interval of the paired difference, so noise never helps an engine to pass.
    """
    difference, dice = quality.kid_difference, quality.dice_difference
    if difference is None or dice is None:
        raise ValueError("quality without the student's figures beside it")
    kid = student.kid
    spread = 0.0 if kid.low is None or kid.high is None else (kid.high - kid.low) / 2
    limit = KID_SHARE * max(abs(kid.value), spread)
    worst = difference.value if difference.high is None else difference.high
    ratio = quality.spectrum_gap / max(student.spectrum_gap, 1e-9)
    return [
        Gate(
            target, "kid", worst, f"<= {limit:.4f} above the fp32 student's {kid.value:.3f}", worst <= limit,
            "" if worst <= limit else f"{difference.value:+.4f}, its upper end is {worst - limit:.4f} too much",
        ),
        Gate(
            target, "dice", dice.value, f"within {DICE_MARGIN:g} of the fp32 student's {student.dice:.3f}",
            abs(dice.value) <= DICE_MARGIN,
            "" if abs(dice.value) <= DICE_MARGIN else f"{abs(dice.value) - DICE_MARGIN:.4f} too much",
        ),
        Gate(
            target, "spectrum_gap", ratio, f"<= {SPECTRUM_RATIO:g} x the fp32 student's {student.spectrum_gap:.3f}",
            ratio <= SPECTRUM_RATIO, "" if ratio <= SPECTRUM_RATIO else f"{quality.spectrum_gap:.3f} nats",
        ),
        Gate(
            target, "golden_psnr", golden_psnr, f">= {EIGHT_BIT.psnr:g} dB", golden_psnr >= EIGHT_BIT.psnr,
            "" if golden_psnr >= EIGHT_BIT.psnr else f"{EIGHT_BIT.psnr - golden_psnr:.1f} dB too little",
        ),
    ]  # fmt: skip

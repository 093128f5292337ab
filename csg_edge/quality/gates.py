"""Which figures an engine must reach, measured against the teacher and against real images, pooled and in each set.

The limits are those of the design (METHOD, "suggested gates"). Those of long-range structure are against real images
alone: a student is not excused by a teacher that has the same fault. A figure at the real-against-real control's own
level passes whatever the teacher's is: nothing is asked to be closer to real images than real images are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from csg_edge.quality.comparison import FULL_GROUPS, join_name, of_set, pooled, sets_of
from csg_edge.quality.record import Figure, Gate, Subject

MIN_GROUPS = 5  # fewer held-out groups cannot carry a judgement

STRUCTURE_C2ST = 0.60  # of long-range structure alone, whatever the teacher's is
COHERENCE_RANGE = (-0.3, 0.3)
SPREAD_RANGE = (0.85, 1.15)
KID_RATIO = 1.10
C2ST_MARGIN = 0.05
DICE_MARGIN = 0.02
STYLE_RATIO = 1.05
SPECTRUM_RATIO = 1.2
DIVERSITY_RANGE = (0.9, 1.1)
CONTEXT_HITS = 0.9
MEMORISED = 0.10  # share nearer to a training image than 95 % of held-out real ones are: twice what is expected


def judge(subject: Subject, teacher: Subject | None, control: Subject) -> list[Gate]:
    """Every gate for one engine: of each set, worst set first, then of all sets together.

    A gate of a set is named `kid/SET`. With no teacher, gates that need one are listed as not judged; a set with too
    few held-out groups has one line that says so.
    """
    # Of Dice, which the control has for the held-out images alone; its other figures are over all groups.
    groups = control.figures["dice"].groups if "dice" in control.figures else 0
    if groups < MIN_GROUPS:
        reason = f"only {groups} held-out groups, at least {MIN_GROUPS} are needed; add labelled subjects"
        return [Gate(subject.name, "all gates", None, "", None, reason)]
    others = teacher.figures if teacher else {}
    together = _judge(
        subject.name, pooled(subject.figures), pooled(others) if teacher else None, pooled(control.figures)
    )
    sets: dict[str, list[Gate]] = {}
    names = sets_of(subject.figures)
    for name in names if len(names) > 1 else ():  # one set by itself is all sets together
        found, real = of_set(subject.figures, name), of_set(control.figures, name)
        few = found["dice"].groups if "dice" in found else 0
        if few < FULL_GROUPS:
            reason = (
                f"{few} held-out group{'s' * (few != 1)}, at least {FULL_GROUPS} are needed to judge a set by itself"
            )
            sets[name] = [Gate(subject.name, join_name("all gates", name), None, "", None, reason, counts=False)]
            continue
        judged = _judge(subject.name, found, of_set(others, name) if teacher else None, real)
        sets[name] = [replace(gate, name=join_name(gate.name, name)) for gate in judged]
    return [gate for name in rank_sets(sets) for gate in sets[name]] + together


def rank_sets(gates: Mapping[str, Sequence[Gate]]) -> list[str]:
    """Sets by the share of their gates that failed, the worst first; those that were not judged come last."""

    def key(name: str) -> tuple[float, str]:
        judged = [gate for gate in gates[name] if gate.counts]
        return (-sum(gate.passed is False for gate in judged) / len(judged) if judged else 1.0, name)

    return sorted(gates, key=key)


def _judge(
    name: str, found: Mapping[str, Figure], teacher: Mapping[str, Figure] | None, real: Mapping[str, Figure]
) -> list[Gate]:
    reference: Mapping[str, Figure] = teacher or {}
    gates = [
        _structure_test(name, found.get("c2st_structure")),
        _range(name, "coherence_shift", found.get("coherence_shift"), COHERENCE_RANGE, "deviations of real"),
        _range(name, "direction_spread", found.get("direction_spread"), SPREAD_RANGE, "x real"),
        _at_most_ratio(name, "kid", found, reference, real, KID_RATIO),
        _at_most_ratio(name, "kid_joint", found, reference, real, KID_RATIO),
        _at_most_ratio(name, "spectrum_gap", found, reference, {}, SPECTRUM_RATIO),
        _at_most_ratio(name, "style_error", found, reference, {}, STYLE_RATIO),
    ]
    for test in ("c2st", "c2st_pixels"):
        if test in found:
            gates.append(_c2st(name, test, found[test], reference.get(test)))
    gates += [
        _near_real(name, found.get("dice"), real.get("dice")),
        _diversity(name, found.get("diversity"), reference.get("diversity")),
        _context(name, found.get("context_hit_rate")),
        _memorised(name, found.get("memorisation_rate"), reference.get("memorisation_rate")),
    ]
    return gates


def _structure_test(subject: str, figure: Figure | None) -> Gate:
    if figure is None:
        return Gate(subject, "c2st_structure", None, "", None, "not measured")
    limit = STRUCTURE_C2ST
    return Gate(subject, "c2st_structure", figure.value, f"<= {limit:.2f}", figure.value <= limit)


def _range(subject: str, name: str, figure: Figure | None, limits: tuple[float, float], unit: str) -> Gate:
    if figure is None:
        return Gate(subject, name, None, "", None, "not measured")
    low, high = limits
    return Gate(subject, name, figure.value, f"{low:g} to {high:g} {unit}", low <= figure.value <= high)


def _at_most_ratio(
    subject: str, name: str, found: Mapping[str, Figure], teacher: Mapping[str, Figure], real: Mapping[str, Figure],
    ratio: float,
) -> Gate:  # fmt: skip
    if name not in found:
        return Gate(subject, name, None, "", None, "not measured")
    value = found[name].value
    # Estimates of a distance between equal sets scatter around 0: what is below it is no further from real than that.
    floor = max(real[name].value if name in real else 0.0, 0.0)
    if name not in teacher:
        passed = True if value <= floor else None
        return Gate(
            subject, name, value, f"<= {ratio:g} x teacher", passed, "" if passed else "no teacher to compare with"
        )
    scaled = ratio * teacher[name].value
    if scaled < floor:
        return Gate(subject, name, value, f"<= {floor:.4g} (real against real, at least 0)", value <= floor)
    return Gate(subject, name, value, f"<= {scaled:.4g} ({ratio:g} x teacher)", value <= scaled)


def _c2st(subject: str, name: str, figure: Figure, teacher: Figure | None) -> Gate:
    if teacher is None:
        passed = True if figure.value <= 0.5 + C2ST_MARGIN else None
        reason = "" if passed else "no teacher to compare with"
        return Gate(subject, name, figure.value, f"<= teacher + {C2ST_MARGIN:g}", passed, reason)
    limit = max(teacher.value, 0.5) + C2ST_MARGIN
    if limit >= 1.0:
        reason = "a classifier knows the teacher's own images every time; train it longer before judging by it"
        return Gate(subject, name, figure.value, f"<= teacher + {C2ST_MARGIN:g}", None, reason)
    return Gate(subject, name, figure.value, f"<= {limit:.3f} (teacher + {C2ST_MARGIN:g})", figure.value <= limit)


def _near_real(subject: str, figure: Figure | None, real: Figure | None) -> Gate:
    if figure is None or real is None:
        return Gate(subject, "dice", None, "", None, "not measured")
    limit = f"{real.value - DICE_MARGIN:.3f} to {real.value + DICE_MARGIN:.3f} (real images)"
    return Gate(subject, "dice", figure.value, limit, abs(figure.value - real.value) <= DICE_MARGIN)


def _diversity(subject: str, figure: Figure | None, teacher: Figure | None) -> Gate:
    if figure is None:
        return Gate(subject, "diversity", None, "", None, "not measured")
    low, high = DIVERSITY_RANGE
    if teacher is None:
        return Gate(
            subject, "diversity", figure.value, f"{low:g} to {high:g} x teacher", None, "no teacher to compare with"
        )
    limit = f"{low * teacher.value:.4g} to {high * teacher.value:.4g} ({low:g} to {high:g} x teacher)"
    return Gate(subject, "diversity", figure.value, limit, low * teacher.value <= figure.value <= high * teacher.value)


def _context(subject: str, figure: Figure | None) -> Gate:
    if figure is None:
        return Gate(subject, "context_hit_rate", None, "", None, "not measured")
    return Gate(subject, "context_hit_rate", figure.value, f">= {CONTEXT_HITS:g}", figure.value >= CONTEXT_HITS)


def _memorised(subject: str, figure: Figure | None, teacher: Figure | None) -> Gate:
    if figure is None:
        return Gate(subject, "memorisation_rate", None, "", None, "not measured")
    # No nearer than the teacher's, but what honest images reach by chance is no fault.
    limit = max(MEMORISED, teacher.value if teacher else 0.0)
    return Gate(subject, "memorisation_rate", figure.value, f"<= {limit:.3g}", figure.value <= limit)

"""Which figures an engine must reach, measured against the teacher and against real images.

The limits are those of the design (METHOD, "suggested gates"). A figure at the real-against-real control's own level
passes whatever the teacher's is: nothing is asked to be closer to real images than real images are.
"""

from __future__ import annotations

from collections.abc import Mapping

from csg_edge.quality.record import Figure, Gate, Subject

MIN_GROUPS = 5  # fewer held-out groups cannot carry a judgement

KID_RATIO = 1.10
C2ST_MARGIN = 0.05
DICE_MARGIN = 0.02
STYLE_RATIO = 1.05
SPECTRUM_RATIO = 1.2
DIVERSITY_RANGE = (0.9, 1.1)
CONTEXT_HITS = 0.9
MEMORISED = 0.10  # share nearer to a training image than 95 % of held-out real ones are: twice what is expected


def judge(subject: Subject, teacher: Subject | None, control: Subject) -> list[Gate]:
    """Every gate for one engine; with no teacher, those that need one are listed as not judged."""
    found, real = subject.figures, control.figures
    groups = max((figure.groups for figure in real.values()), default=0)
    if groups < MIN_GROUPS:
        reason = f"only {groups} held-out groups, at least {MIN_GROUPS} are needed; add labelled subjects"
        return [Gate(subject.name, "all gates", None, "", None, reason)]
    reference: Mapping[str, Figure] = teacher.figures if teacher else {}
    gates = [
        _at_most_ratio(subject.name, "kid", found, reference, real, KID_RATIO),
        _at_most_ratio(subject.name, "kid_joint", found, reference, real, KID_RATIO),
        _at_most_ratio(subject.name, "spectrum_gap", found, reference, {}, SPECTRUM_RATIO),
        _at_most_ratio(subject.name, "style_error", found, reference, {}, STYLE_RATIO),
    ]
    for name in ("c2st", "c2st_pixels"):
        if name in found:
            gates.append(_c2st(subject.name, name, found[name], reference.get(name)))
    gates += [
        _near_real(subject.name, found.get("dice"), real.get("dice")),
        _diversity(subject.name, found.get("diversity"), reference.get("diversity")),
        _context(subject.name, found.get("context_hit_rate")),
        _memorised(subject.name, found.get("memorisation_rate"), reference.get("memorisation_rate")),
    ]
    return gates


def _at_most_ratio(
    subject: str, name: str, found: Mapping[str, Figure], teacher: Mapping[str, Figure], real: Mapping[str, Figure],
    ratio: float,
) -> Gate:  # fmt: skip
    if name not in found:
        return Gate(subject, name, None, "", None, "not measured")
    value = found[name].value
    floor = real[name].value if name in real else 0.0
    if name not in teacher:
        passed = True if value <= floor else None
        return Gate(
            subject, name, value, f"<= {ratio:g} x teacher", passed, "" if passed else "no teacher to compare with"
        )
    limit = max(ratio * teacher[name].value, floor)
    return Gate(subject, name, value, f"<= {limit:.4g} ({ratio:g} x teacher)", value <= limit)


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

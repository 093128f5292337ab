"""What is to be made of a labelled set: the plan, as a TOML file says it, and what it draws for each image.

multiply = 5                          # the output has five images for each real training image, that one among them
seed = 0
[geometry]
vary = "deform:0.5?,tilt:3deg?"       # as `csg-edge generate --vary`
[fibre]
direction = "muscle=-5..25deg?"       # as `csg-edge generate --fibre`
share = 0.5                           # of the images; the model draws the others' fibres itself
[[finding]]
vary = "insert:vessel?"
share = 0.2
[contexts]
select = "random"                     # or own (the mask's own image), diverse (unlike each other in turn)
folder = "more"                       # further images for contexts, without labels; relative to this file
[appearance]                          # of the contexts, and so of the images
share = 0.7
gain = 0.2                            # deviations of the logarithms of gain and gamma, of the slope over the depth
gamma = 0.2                           # (TGC), and of the logarithm of the size of speckle
tgc = 0.2
speckle = 0.1
[balance]                             # share of all images that have a class
vessel = 0.3
[checks]
dice = 0.6                            # or "auto": what the segmenter reaches on nine in ten of the set's own images
attempts = 3                          # draws of an image before it is left out

Every draw follows from the plan's seed, the name of the mask, the number of the image and the number of the attempt:
neither the order of work nor other images play a part.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.fibres import parse_wishes
from csg_edge.conditions.masks import parse_spec
from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema
from csg_edge.noise import check_seed
from csg_edge.storage import read_text

SELECTIONS = ("random", "own", "diverse")
AUTO = "auto"
MOST = 1000  # times that a set is multiplied
_STREAM = 0x617567  # keeps these draws apart from others made with the same seed
_CLOSE = 5e-3  # of a share: two classes balanced together meet their shares this closely


@dataclass(frozen=True)
class Finding:
    """A variation of the mask that a share of the images gets after the geometry."""

    vary: str
    share: float


@dataclass(frozen=True)
class Appearance:
    """How contexts differ from what they are. share: of the images whose context is changed at all."""

    share: float = 0.7
    gain: float = 0.2
    gamma: float = 0.2
    tgc: float = 0.2
    speckle: float = 0.1


@dataclass(frozen=True)
class Plan:
    """A plan; the sections of the file in one."""

    multiply: float = 5.0
    seed: int = 0
    vary: str | None = "deform:0.5?,tilt:3deg?"
    direction: str | None = None
    direction_share: float = 1.0
    findings: tuple[Finding, ...] = ()
    select: str = "random"
    contexts: Path | None = None
    appearance: Appearance = field(default_factory=Appearance)
    balance: tuple[tuple[str, float], ...] = ()
    dice: float | None = None  # None: AUTO
    attempts: int = 3

    def check(self, schema: LabelSchema) -> None:
        """Raise InputError for a variation, direction or class that the schema lacks, or a number out of range."""
        if not (math.isfinite(self.multiply) and 1 < self.multiply <= MOST):
            raise InputError(f"multiply {self.multiply:g}: give a number above 1, at most {MOST}")
        check_seed(self.seed)
        for text in (self.vary, *(finding.vary for finding in self.findings)):
            if text is not None:
                parse_spec(text, schema)
        if self.direction is not None:
            parse_wishes(self.direction, schema)
        if self.select not in SELECTIONS:
            raise InputError(f"contexts.select {self.select!r}: choose {', '.join(SELECTIONS)}")
        shares = {"fibre.share": self.direction_share, "appearance.share": self.appearance.share}
        shares |= {f"finding {finding.vary}: share": finding.share for finding in self.findings}
        shares |= {f"balance.{name}": share for name, share in self.balance}
        shares |= {} if self.dice is None else {"checks.dice": self.dice}
        for name, share in shares.items():
            if not 0.0 <= share <= 1.0:
                raise InputError(f"{name} = {share:g}: give a number from 0 to 1")
        for name in ("gain", "gamma", "tgc", "speckle"):
            if not 0.0 <= (amount := getattr(self.appearance, name)) <= 1.0:
                raise InputError(f"appearance.{name} = {amount:g}: give a deviation from 0 to 1")
        for name, _ in self.balance:
            schema.index(name)
        if not 1 <= self.attempts <= 100:
            raise InputError(f"checks.attempts = {self.attempts}: give 1 to 100")

    def to_json(self) -> dict[str, Any]:
        """As records have it."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["findings"] = [vars(finding) for finding in self.findings]
        values["appearance"] = vars(self.appearance)
        values["balance"] = dict(self.balance)
        values["contexts"] = None if self.contexts is None else str(self.contexts)
        return values


@dataclass(frozen=True)
class Look:
    """A change of appearance; all of it nothing by default. speckle: factor of the size of speckle."""

    gain: float = 1.0
    gamma: float = 1.0
    tgc: float = 0.0
    speckle: float = 1.0


@dataclass(frozen=True)
class Draw:
    """What was drawn for one attempt at one image. context: 0 to 1, a place among the contexts that are allowed."""

    noise_seed: int
    vary: str | None
    vary_seed: int
    direction: str | None
    context: float
    look: Look


def draw(plan: Plan, name: str, repetition: int, attempt: int) -> Draw:
    """The draw of one attempt at one image of the mask `name`."""
    digest = hashlib.sha256(name.encode()).digest()
    key = np.random.SeedSequence([plan.seed, int.from_bytes(digest[:16]), repetition, attempt], spawn_key=(_STREAM,))
    random = np.random.Generator(np.random.PCG64(key))
    noise_seed, vary_seed = (int(value) for value in random.integers(0, 2**63, size=2))
    variations = [plan.vary] if plan.vary is not None else []
    variations += [finding.vary for finding in plan.findings if random.random() < finding.share]
    directed = plan.direction is not None and random.random() < plan.direction_share
    context = float(random.random())
    return Draw(
        noise_seed, ",".join(variations) or None, vary_seed, plan.direction if directed else None, context,
        draw_look(plan.appearance, random),
    )  # fmt: skip


def draw_look(wide: Appearance, random: np.random.Generator) -> Look:
    """A change of appearance, or none."""
    changed = random.random() < wide.share
    gain, gamma, tgc, speckle = (float(value) for value in random.standard_normal(4))
    if not changed:
        return Look()
    return Look(
        math.exp(wide.gain * gain), math.exp(wide.gamma * gamma), wide.tgc * tgc, math.exp(wide.speckle * speckle)
    )


def counts(plan: Plan, present: NDArray[np.bool_], names: Sequence[str], *, real: bool) -> NDArray[np.int64]:
    """(N,) how many images to make of each of N masks.

    present: (N, K), whether a mask shows a class; names: of the K classes. real: whether the output also holds the N
    images that are there. Without a balance every mask counts the same; with one, masks are weighed by iterative
    proportional fitting (Deming & Stephan, Ann. Math. Stat. 11:427, 1940) until the output has the shares that were
    asked for. Raises InputError for shares that these masks cannot give, with what they can.
    """
    masks = len(present)
    total = round(plan.multiply * masks)
    wanted = total - masks if real else total
    weights = np.full(masks, 1.0 / masks)
    goals = []
    for name, share in plan.balance:
        has = present[:, names.index(name)]
        goal = (share * total - (has.sum() if real else 0)) / wanted
        least, most = (has.sum() if real else 0) / total, ((has.sum() if real else 0) + wanted) / total
        lowest, highest = (least if not has.all() else most), (most if has.any() else least)
        if not -1e-9 <= goal <= 1 + 1e-9 or (goal > 1e-9 and not has.any()) or (goal < 1 - 1e-9 and has.all()):
            raise InputError(
                f"balance.{name} = {share:g}: these masks allow {lowest:.3f} to {highest:.3f}; ask for that, multiply "
                "more, or put the class into masks by a [[finding]]"
            )
        goals.append((has, float(np.clip(goal, 0.0, 1.0))))
    for _ in range(500 if goals else 0):
        for has, goal in goals:
            now = weights[has].sum()
            weights = weights * np.where(has, _ratio(goal, now), _ratio(1 - goal, 1 - now))
            weights /= max(weights.sum(), 1e-300)
    reached = [float(weights[has].sum()) for has, _ in goals]
    for (name, share), (_, goal), now in zip(plan.balance, goals, reached, strict=True):
        if abs(goal - now) > _CLOSE:
            raise InputError(f"balance.{name} = {share:g}: not together with the other shares; leave one of them out")
    # Systematic sampling: whole numbers whose sums differ from the weights' by less than one, however masks are cut.
    edges = np.floor(np.concatenate([[0.0], np.cumsum(weights)]) * wanted + 0.5 - 1e-9)
    edges[-1] = wanted
    return np.diff(edges).astype(np.int64)


def _ratio(goal: float, now: float) -> float:
    return goal / now if now > 1e-12 else 1.0


def read_plan(path: Path | None, *, multiply: float | None = None, seed: int | None = None) -> Plan:
    """The plan of a file, or the default; numbers that are given win over the file's.

    Raises InputError for an unreadable file, an unknown key, or a value of another type.
    """
    plan = Plan() if path is None else _plan_of(path)
    plan = plan if multiply is None else replace(plan, multiply=multiply)
    return plan if seed is None else replace(plan, seed=seed)


def _plan_of(path: Path) -> Plan:
    try:
        values = tomllib.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not TOML ({error}); see docs/augment.md") from None
    top = _section(path, "", values, {"multiply": float, "seed": int}, nested=_SECTIONS)
    sections = {
        name: _section(path, name, values.get(name, {}), keys)
        for name, keys in _SECTIONS.items()
        if name not in ("finding", "balance")
    }
    found = values.get("finding", [])
    if not isinstance(found, list):
        raise InputError(f"{path}: finding: write [[finding]], once for each")
    findings = [_section(path, "finding", item, _SECTIONS["finding"]) for item in found]
    for item in findings:
        if item.keys() != {"vary", "share"}:
            raise InputError(f"{path}: [[finding]] needs vary and share")
    balance = values.get("balance", {})
    if not isinstance(balance, dict) or not all(_is_number(share) for share in balance.values()):
        raise InputError(f"{path}: [balance] takes CLASS = SHARE, for example vessel = 0.3")
    geometry, fibre, contexts, checks = (sections[name] for name in ("geometry", "fibre", "contexts", "checks"))
    plan = Plan(**top, balance=tuple((name, float(share)) for name, share in balance.items()))
    return replace(
        plan,
        vary=geometry.get("vary", plan.vary) or None,
        direction=fibre.get("direction") or None,
        direction_share=fibre.get("share", plan.direction_share),
        findings=tuple(Finding(**item) for item in findings),
        select=contexts.get("select", plan.select),
        contexts=path.parent / contexts["folder"] if "folder" in contexts else None,
        appearance=Appearance(**sections["appearance"]),
        dice=_dice(path, checks.get("dice", AUTO)),
        attempts=checks.get("attempts", plan.attempts),
    )


_SECTIONS: dict[str, dict[str, type]] = {
    "geometry": {"vary": str},
    "fibre": {"direction": str, "share": float},
    "finding": {"vary": str, "share": float},
    "contexts": {"select": str, "folder": str},
    "appearance": {item.name: float for item in fields(Appearance)},
    "balance": {},
    "checks": {"dice": object, "attempts": int},
}


def _section(
    path: Path, name: str, values: Any, keys: Mapping[str, type], *, nested: Mapping[str, Any] = {}
) -> dict[str, Any]:  # fmt: skip
    where = f"{path}: [{name}] " if name else f"{path}: "
    if not isinstance(values, dict):
        raise InputError(f"{where.rstrip()}: write it as a section")
    checked = {}
    for key, value in values.items():
        if key in nested:
            continue
        if key not in keys:
            raise InputError(f"{where}unknown key {key}; there are {', '.join([*keys, *nested])}")
        if keys[key] is float and _is_number(value):
            value = float(value)
        if keys[key] is not object and type(value) is not keys[key]:
            raise InputError(f"{where}{key}: {value!r} is not of type {keys[key].__name__}")
        checked[key] = value
    return checked


def _dice(path: Path, value: Any) -> float | None:
    if value == AUTO:
        return None
    if not _is_number(value):
        raise InputError(f"{path}: [checks] dice: {value!r}; give a number from 0 to 1, or {AUTO!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

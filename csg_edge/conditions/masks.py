"""New masks from a mask: named, seeded variations that always give a valid label map. NumPy and OpenCV only.

A variation is written NAME[:[CLASS=]AMOUNT], several are joined by commas and applied in order:

    deform:0.5,tilt:3deg        thickness:tendon=20%        scale:vessel=+30%        insert:ditf        remove:nerve

Bends, tilts and shifts that follow each other are made in one go, so borders are resampled once.
An amount without a sign is a range: the seed draws from -amount..amount. An amount with a sign is taken as it is.
A variation that ends in ? is left out where the mask has nothing to apply it to; without it that is an InputError.
What every variation keeps (`flaws` lists breaches): uint8 classes of the schema; no class lost or gained but the one
removed or inserted; no band and no closed shape falls apart, and no new specks; layers keep their order from the probe
down; a tear (ditf) stays in its tendon. Pixels of 255 ("no mask") move with everything, else they stay where they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from csg_edge.conditions import mask_blobs as blobs
from csg_edge.conditions import mask_moves as moves
from csg_edge.conditions.arrays import check_mask, classes_in
from csg_edge.conditions.mask_flaws import NONE, Anatomy, flaws_between, without_specks
from csg_edge.conditions.mask_moves import Move
from csg_edge.conditions.mask_parts import CONFINED, NO_BLOB, Image, Parts, fill
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.noise import check_seed

ATTEMPTS = 10
BANDS = ("aponeurosis", "tendon")  # what `thickness` means when it names no class
BEND = 0.04  # root mean square displacement of deform:1, of the sides
_STREAM = 0x6D61736B  # keeps these draws apart from others made with the same seed


@dataclass(frozen=True)
class Variation:
    """One variation: its name, amount in the unit of VARIATIONS (None: drawn or not needed) and class.

    exact: the amount is taken as it is, else the seed draws from -amount..amount (`insert`, `deform`: from half of it
    up to it). optional: left out of masks it cannot be applied to.
    """

    name: str
    amount: float | None
    target: str | None = None
    exact: bool = False
    optional: bool = False

    def __str__(self) -> str:
        kind = VARIATIONS[self.name]
        given = ""
        if self.amount is not None:
            number = f"{self.amount * kind.scale:+.10g}" if self.exact else f"{self.amount * kind.scale:.10g}"
            given = number + kind.unit
        argument = "=".join(part for part in (self.target, given) if part)
        return (f"{self.name}:{argument}" if argument else self.name) + "?" * self.optional


Work = Callable[[Parts, float | None, Variation, np.random.Generator], Parts]


@dataclass(frozen=True)
class Warp:
    """What moves everything, whatever is in the mask. move: of the mask's shape, amount, variation and draws."""

    move: Callable[[tuple[int, ...], float, Variation, np.random.Generator], Move]


@dataclass(frozen=True)
class Kind:
    """What VARIATIONS knows of a variation: how its amount is written and bounded, what its class may be, how it works.

    work: what it does to a mask that was taken apart, or a move of everything.
    unit: "", "%" or "deg"; scale: written number per amount; default: amount when none is written (None: drawn);
    highest: largest amount; target: "none", "optional" or "needed".
    """

    work: Work | Warp
    about: str
    unit: str = "%"
    scale: float = 100.0
    default: float | None = None
    highest: float = 1.0
    target: str = "none"
    signed: bool = True
    takes_amount: bool = True


def vary(
    mask: Image, schema: LabelSchema, *, name: str, strength: float | None = None, seed: int,
    target: str | None = None, exact: bool = False,
) -> Image:  # fmt: skip
    """A mask varied in one way.

    mask: (H, W) uint8 class indices; name: one of VARIATIONS; strength: in the variation's unit as a number (fractions
    for %, degrees), its default if None; target: the class, or for `shift` the direction `x` or `depth`; exact: see
    Variation. Returns a new (H, W) uint8 mask; the same arguments give the same mask. Raises InputError if the
    variation is unknown or cannot be applied to this mask.
    """
    return vary_by(mask, schema, [_checked(Variation(name, strength, target, exact), schema)], seed=seed)


def vary_by(mask: Image, schema: LabelSchema, spec: str | Sequence[Variation], *, seed: int) -> Image:
    """A mask varied by a specification such as `deform:0.5,tilt:3deg`; otherwise as `vary`."""
    variations = _parsed(spec, schema) if isinstance(spec, str) else list(spec)
    varied = check_mask(mask, schema, name="mask").copy()
    if int(mask.min()) == NO_MASK:
        return varied
    for position, group in _groups(variations):
        varied = _vary_group(varied, schema, group, position, check_seed(seed))
    return varied


def _groups(variations: Sequence[Variation]) -> Iterator[tuple[int, list[Variation]]]:
    """Moves of everything that follow each other, to be made in one go, and the others alone; the first's position."""

    def place(item: tuple[int, Variation]) -> int | None:
        return None if _moves_everything(item[1]) else item[0]

    for _, items in groupby(enumerate(variations), place):
        group = list(items)
        yield group[0][0], [variation for _, variation in group]


def _moves_everything(variation: Variation) -> bool:
    return isinstance(VARIATIONS[variation.name].work, Warp)


def _vary_group(mask: Image, schema: LabelSchema, group: Sequence[Variation], position: int, seed: int) -> Image:
    if len(group) > 1:
        with suppress(InputError):  # not together: one at a time
            return _vary_once(mask, schema, group, position, seed)
    for place, variation in enumerate(group, position):
        try:
            mask = _vary_once(mask, schema, [variation], place, seed)
        except InputError:
            if not variation.optional:
                raise
    return mask


def _vary_once(mask: Image, schema: LabelSchema, variations: Sequence[Variation], position: int, seed: int) -> Image:
    """One variation, or moves of everything in one go. position: of the first, which its draws follow from."""
    hidden = None if _moves_everything(variations[0]) else mask == NO_MASK
    mask = mask if hidden is None else fill(mask, hidden)
    before = _anatomy(mask.tobytes(), mask.shape, schema)
    inserted, removed = _comes_and_goes(variations[0], schema)
    written = ",".join(str(variation) for variation in variations)
    found: list[str] = []
    for attempt in range(ATTEMPTS):
        drawn = [_draw(item, position + place, attempt, seed) for place, item in enumerate(variations)]
        try:
            varied = _apply(before.parts, variations, drawn).joined()
        except InputError as error:
            raise InputError(f"vary {written!r}: {error}") from None
        after = without_specks(before, Anatomy(varied, schema), inserted=inserted)
        found = flaws_between(before, after, inserted=inserted, removed=removed)
        if not found:
            return after.mask if hidden is None else np.where(hidden, np.uint8(NO_MASK), after.mask)
    raise InputError(f"vary {written!r}: cannot be applied to this mask ({found[0]}); give a smaller amount")


def _draw(variation: Variation, position: int, attempt: int, seed: int) -> tuple[float | None, np.random.Generator]:
    """The amount, and what else is drawn from."""
    kind = VARIATIONS[variation.name]
    key = np.random.SeedSequence(seed, spawn_key=(_STREAM, position, attempt))
    random = np.random.Generator(np.random.PCG64(key))
    amount = kind.default if variation.amount is None else variation.amount
    if amount is not None and not variation.exact:
        # Each new attempt draws from a smaller range.
        low, high = (-amount, amount) if kind.signed else (amount / 2, amount)
        amount = 0.85**attempt * random.uniform(low, high)
    return amount, random


def _apply(
    parts: Parts, variations: Sequence[Variation], drawn: Sequence[tuple[float | None, np.random.Generator]]
) -> Parts:  # fmt: skip
    shape, whole = parts.ground.shape, Move()
    for variation, (amount, random) in zip(variations, drawn, strict=True):
        work = VARIATIONS[variation.name].work
        if not isinstance(work, Warp):
            return work(parts, amount, variation, random)  # always alone
        whole = work.move(shape, amount or 0.0, variation, random).after(whole)
    return moves.resample(parts, whole.source(shape))


@lru_cache(maxsize=4)  # several images are made of one mask
def _anatomy(pixels: bytes, shape: tuple[int, ...], schema: LabelSchema) -> Anatomy:
    return Anatomy(np.frombuffer(pixels, np.uint8).reshape(shape), schema)


def flaws(before: Image, after: Image, schema: LabelSchema, *, variation: Variation | None = None) -> list[str]:
    """What makes `after` no valid variation of `before`: one line each, an empty list if nothing does.

    variation: what was done, which says the class that may come or go. Pixels of 255 are not looked at, but for whether
    they stayed, which they need not where everything moves.
    """
    if after.shape != before.shape or after.dtype != np.uint8:
        return [f"shape {after.shape}, {after.dtype} instead of {before.shape}, uint8"]
    if variation is not None and _moves_everything(variation):
        return flaws_between(Anatomy(before, schema), Anatomy(after, schema))
    if not np.array_equal(before == NO_MASK, after == NO_MASK):
        return ["pixels of 255 moved"]
    was, now = (Anatomy(fill(mask, mask == NO_MASK), schema) for mask in (before, after))
    inserted, removed = _comes_and_goes(variation, schema)
    return flaws_between(was, now, inserted=inserted, removed=removed)


def _comes_and_goes(variation: Variation | None, schema: LabelSchema) -> tuple[int, int]:
    """The class that a variation inserts, and the one that it removes."""
    index = NONE if variation is None or variation.target not in schema.names else schema.index(variation.target)
    name = "" if variation is None else variation.name
    return index if name == "insert" else NONE, index if name == "remove" else NONE


@lru_cache(maxsize=16)  # many masks are varied by one
def _parsed(spec: str, schema: LabelSchema) -> Sequence[Variation]:
    return tuple(parse_spec(spec, schema))


def parse_spec(spec: str, schema: LabelSchema) -> list[Variation]:
    """The variations of a specification such as `deform:0.5,thickness:tendon=20%`.

    Raises InputError for an unknown name or class, a wrong unit, or an amount out of range.
    """
    items = [item.strip() for item in spec.split(",")]
    if not all(items):
        raise InputError(f"vary {spec!r}: an empty part; write for example deform:0.5,tilt:3deg")
    return [_parse_item(item, schema) for item in items]


def _parse_item(item: str, schema: LabelSchema) -> Variation:
    name, _, argument = (part.strip() for part in item.removesuffix("?").partition(":"))
    kind = _kind(name)
    target, equals, written = (part.strip() for part in argument.rpartition("="))
    if not equals and written and re.match(r"[+-]?[\d.]", written) is None:
        target, written = written, ""
    amount, exact = None, False
    if written:
        match = re.fullmatch(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(%|deg)?", written)
        if match is None or (match[3] or "") != kind.unit or not kind.takes_amount:
            raise InputError(f"vary {item!r}: amount {written!r}; write {_example(name)}")
        amount, exact = float(match[1] + match[2]) / kind.scale, bool(match[1])
    return _checked(Variation(name, amount, target or None, exact, item.endswith("?")), schema)


def _kind(name: str) -> Kind:
    if name not in VARIATIONS:
        raise InputError(f"vary: no variation {name!r}; choose from {', '.join(VARIATIONS)}")
    return VARIATIONS[name]


def _checked(variation: Variation, schema: LabelSchema) -> Variation:
    kind = _kind(variation.name)
    amount, target = variation.amount, variation.target
    if target is None and kind.target == "needed":
        raise InputError(f"vary {variation.name}: which class? Write {_example(variation.name)}")
    if target is not None and kind.target == "none":
        raise InputError(f"vary {variation.name}: it takes no class ({target!r}); write {_example(variation.name)}")
    if target is not None and not (variation.name == "shift" and target in ("x", "depth")):
        if variation.name == "shift":
            raise InputError(f"vary shift: direction {target!r}; choose x or depth")
        schema.index(target)
        if variation.name == "insert" and target not in blobs.HOSTS:
            raise InputError(f"vary insert: {target!r} cannot be inserted; choose from {', '.join(blobs.HOSTS)}")
    if amount is not None:
        lowest = 0.0
        if variation.exact and kind.signed:
            # Nothing gets thinner or smaller by more than nine tenths.
            lowest = -kind.highest if variation.name in ("tilt", "shift") else -0.9
        if not math.isfinite(amount) or not lowest <= amount <= kind.highest:
            raise InputError(
                f"vary {variation.name}: amount {amount * kind.scale:g}{kind.unit} is out of range; "
                f"give {lowest * kind.scale:g} to {kind.highest * kind.scale:g}{kind.unit}"
            )
    return variation


def _example(name: str) -> str:
    kind = VARIATIONS[name]
    target = {"none": "", "optional": "", "needed": "CLASS"}[kind.target]
    if not kind.takes_amount:
        return f"{name}:{target}"
    default = kind.highest / 2 if kind.default is None else kind.default
    return f"{name}:{target}{'=' if target else ''}{default * kind.scale:g}{kind.unit}"


def _deform(_: tuple[int, ...], amount: float, __: Variation, random: np.random.Generator) -> Move:
    return moves.deformed(BEND * abs(amount), random)


def _tilt(shape: tuple[int, ...], amount: float, _: Variation, random: np.random.Generator) -> Move:
    return moves.tilted(shape, amount)


def _shift(_: tuple[int, ...], amount: float, variation: Variation, random: np.random.Generator) -> Move:
    lateral = depth = amount
    if variation.target is None and not variation.exact:
        depth *= random.uniform(-1, 1)
    if variation.target is not None:
        lateral, depth = (lateral, 0.0) if variation.target == "x" else (0.0, depth)
    return moves.shifted(lateral, depth)


def _thickness(parts: Parts, amount: float | None, variation: Variation, _: np.random.Generator) -> Parts:
    names = parts.schema.names
    wanted = [variation.target] if variation.target else [name for name in BANDS if name in names]
    classes = [names.index(name) for name in wanted if (parts.ground == names.index(name)).any()]
    if not classes:
        what = variation.target or " or ".join(BANDS)
        raise InputError(f"this mask has no layer of {what}; name a layer it has, as in thickness:muscle=20%")
    return moves.resample(parts, moves.thickened(parts.ground, classes, amount or 0.0))


def _scale(parts: Parts, amount: float | None, variation: Variation, _: np.random.Generator) -> Parts:
    return blobs.scale_blobs(parts, _blob_class(parts, variation), 1 + (amount or 0.0))


def _remove(parts: Parts, amount: float | None, variation: Variation, _: np.random.Generator) -> Parts:
    return blobs.remove_blobs(parts, _blob_class(parts, variation))


def _blob_class(parts: Parts, variation: Variation) -> int:
    index = parts.schema.index(str(variation.target))
    if not (parts.blobs == index).any():
        layer = (parts.ground == index).any()
        reason = "is a layer, not a closed shape" if layer else "is not in this mask"
        has = [parts.schema.names[k] for k in classes_in(parts.blobs) if k != NO_BLOB]
        remedy = f"name one of {', '.join(has)}" if has else "it has no closed shapes, choose other masks"
        raise InputError(f"{variation.target} {reason}; {remedy}, or end the variation in ?")
    return index


def _insert(parts: Parts, amount: float | None, variation: Variation, random: np.random.Generator) -> Parts:
    index = parts.schema.index(str(variation.target))
    insert = blobs.insert_tear if variation.target in CONFINED else blobs.insert_round
    return insert(parts, index, amount, random)


VARIATIONS = {
    "deform": Kind(
        Warp(_deform), "smooth bend without folds; 1 moves things by 4 % of the side, root mean square",
        unit="", scale=1.0, default=0.5, signed=False,
    ),
    "tilt": Kind(Warp(_tilt), "everything tilted, right side deeper", unit="deg", scale=1.0, default=5.0, highest=20.0),
    "shift": Kind(Warp(_shift), "moved sideways and in depth, or x= or depth= alone; part of the side", default=0.08,
                  highest=0.4, target="optional"),
    "thickness": Kind(_thickness, "bands thicker or thinner, neighbours give way; part of the thickness", default=0.25,
                      target="optional"),
    "scale": Kind(_scale, "closed shapes of a class grown or shrunk about their centres", default=0.25, highest=2.0,
                  target="needed"),
    "insert": Kind(_insert, "a tear into a tendon (part of its thickness), a vessel or nerve (part of the width)",
                   highest=0.8, target="needed", signed=False),
    "remove": Kind(_remove, "every shape of a class taken away", target="needed", takes_amount=False),
}  # fmt: skip
"""Variations by name: what they do, the unit of their amount, its default and its bound."""

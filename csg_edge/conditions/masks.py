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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import mask_moves as moves
from csg_edge.conditions.arrays import check_mask, classes_in
from csg_edge.conditions.mask_moves import Move, Parts
from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.noise import check_seed

Image = NDArray[np.uint8]

ATTEMPTS = 10
BANDS = ("aponeurosis", "tendon")  # what `thickness` means when it names no class
SPACES = ("background", "superficial_tissue", "muscle", "deep_tissue")  # what bands lie in
SPECK = 0.0003  # of the picture: a part smaller than this that was not there is filled by what surrounds it
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
    position = 0
    while position < len(variations):
        together = _moves_of_everything(variations[position:])
        try:
            varied = _vary_once(varied, schema, variations[position : position + together], position, check_seed(seed))
        except InputError:
            if together > 1:  # not together: one at a time
                for place in range(position, position + together):
                    varied = _vary_alone(varied, schema, variations[place], place, seed)
            elif not variations[position].optional:
                raise
        position += together
    return varied


def _moves_of_everything(variations: Sequence[Variation]) -> int:
    """How many of the variations, from the first on, are made in one go."""
    number = 0
    for variation in variations:
        if not _moves_everything(variation):
            break
        number += 1
    return max(number, 1)


def _moves_everything(variation: Variation) -> bool:
    return isinstance(VARIATIONS[variation.name].work, Warp)


def _vary_alone(mask: Image, schema: LabelSchema, variation: Variation, position: int, seed: int) -> Image:
    try:
        return _vary_once(mask, schema, [variation], position, seed)
    except InputError:
        if not variation.optional:
            raise
        return mask


def _vary_once(mask: Image, schema: LabelSchema, variations: Sequence[Variation], position: int, seed: int) -> Image:
    """One variation, or moves of everything in one go. position: of the first, which its draws follow from."""
    hidden = None if _moves_everything(variations[0]) else mask == NO_MASK
    mask = mask if hidden is None else moves.fill(mask, hidden)
    before = _anatomy(mask.tobytes(), mask.shape, schema)
    written = ",".join(str(variation) for variation in variations)
    found: list[str] = []
    for attempt in range(ATTEMPTS):
        drawn = [_draw(item, position + place, attempt, seed) for place, item in enumerate(variations)]
        try:
            varied = _apply(before.parts, variations, drawn).joined()
        except InputError as error:
            raise InputError(f"vary {written!r}: {error}") from None
        after = _without_specks(before, Anatomy(varied, schema), variations[0])
        found = _flaws(before, after, variations[0])
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


class Anatomy:
    """A mask and what its flaws are told by; each is found when it is first asked for. 255 counts as one more layer."""

    def __init__(self, mask: Image, schema: LabelSchema) -> None:
        self.mask, self.schema = mask, schema
        self._counts: dict[tuple[int, bool], int] = {}

    @cached_property
    def classes(self) -> list[int]:
        return classes_in(self.mask)

    @cached_property
    def parts(self) -> Parts:
        return moves.take_apart(self.mask, self.schema, self.classes)

    def count(self, index: int, *, on_ground: bool = False) -> int:
        """The number of parts of a class, in the mask or in the ground."""
        key = index, on_ground
        if key not in self._counts:
            self._counts[key] = moves.count_components((self.parts.ground if on_ground else self.mask) == index)
        return self._counts[key]

    def count_whole(self, index: int) -> int:
        """The same; layers without the blobs on them: a vessel may touch the border of its muscle."""
        layered = self.parts.has_blobs and not moves.is_blob(self.mask, index, self.schema)
        return self.count(index, on_ground=layered)

    @cached_property
    def stacked(self) -> set[tuple[int, int]]:
        """Pairs (a, b) of layers such that b lies directly under a somewhere."""
        ground = self.parts.ground
        if int(ground.min()) == int(ground.max()):
            return set()
        above, below = ground[:-1], ground[1:]
        border = (above != below) & (above != NO_MASK) & (below != NO_MASK)
        pairs = np.unique(above[border].astype(np.intp) * 256 + below[border])
        return {(int(pair) // 256, int(pair) % 256) for pair in pairs}


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
        return _flaws(Anatomy(before, schema), Anatomy(after, schema), variation)
    if not np.array_equal(before == NO_MASK, after == NO_MASK):
        return ["pixels of 255 moved"]
    was, now = (Anatomy(moves.fill(mask, mask == NO_MASK), schema) for mask in (before, after))
    return _flaws(was, now, variation)


def _flaws(before: Anatomy, after: Anatomy, variation: Variation | None) -> list[str]:
    schema = before.schema
    inserted, removed = _comes(variation, schema), _goes(variation, schema)
    had, has = set(before.classes) - {NO_MASK}, set(after.classes) - {NO_MASK}
    found = [f"{schema.names[k]} leaves the picture" for k in sorted(had - has - {removed})]
    found += [f"{schema.names[k] if k < len(schema) else k} comes from nowhere" for k in sorted(has - had - {inserted})]
    # Background that shows where something was removed is no flaw.
    if variation is not None and variation.name == "remove":
        found = [line for line in found if not line.startswith(f"{schema.names[0]} comes")]
    if found:
        return found
    for index in sorted(has):
        if schema.names[index] in SPACES:
            continue  # a band that now reaches from edge to edge parts what it lies in
        has_parts = after.count_whole(index)
        if has_parts < 2:
            continue
        more = has_parts - before.count_whole(index) - (index == inserted)
        if more > 0:
            found.append(f"{schema.names[index]} falls apart")
    new = after.stacked - before.stacked
    found += [f"{schema.names[b]} lies directly under {schema.names[a]}" for a, b in sorted(new)]
    for name, host in moves.CONFINED.items():
        if name in schema.names and host in schema.names and variation is not None and schema.index(name) == inserted:
            added = (after.mask == schema.index(name)) & (before.mask != schema.index(name))
            if (before.mask[added] != schema.index(host)).any():
                found.append(f"{name} outside the {host}")
    return found


def _comes(variation: Variation | None, schema: LabelSchema) -> int:
    inserting = variation is not None and variation.name == "insert" and variation.target
    return schema.index(str(variation.target)) if variation is not None and inserting else -1


def _goes(variation: Variation | None, schema: LabelSchema) -> int:
    removing = variation is not None and variation.name == "remove" and variation.target
    return schema.index(str(variation.target)) if variation is not None and removing else -1


def _without_specks(before: Anatomy, after: Anatomy, variation: Variation) -> Anatomy:
    """Parts that were not there and are smaller than SPECK filled by their surroundings."""
    mask = after.mask
    speck = max(4.0, SPECK * mask.size)
    hole = np.zeros(mask.shape, np.bool_)
    inserted = _comes(variation, before.schema)
    for index in after.classes:
        if index == NO_MASK:
            continue
        number = after.count(index)
        if number == 1 and index in before.classes:
            continue
        spare = number - before.count(index) - (index == inserted)
        if spare < 1:
            continue
        for region, box in moves.components(mask == index)[:spare]:
            if box[4] < speck:
                hole |= region
    return Anatomy(moves.fill(mask, hole), before.schema) if hole.any() else after


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
        if variation.name == "insert" and target not in moves.HOSTS:
            raise InputError(f"vary insert: {target!r} cannot be inserted; choose from {', '.join(moves.HOSTS)}")
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
    return moves.scale_blobs(parts, _blob_class(parts, variation), 1 + (amount or 0.0))


def _remove(parts: Parts, amount: float | None, variation: Variation, _: np.random.Generator) -> Parts:
    return moves.remove_blobs(parts, _blob_class(parts, variation))


def _blob_class(parts: Parts, variation: Variation) -> int:
    index = parts.schema.index(str(variation.target))
    if not (parts.blobs == index).any():
        layer = (parts.ground == index).any()
        reason = "is a layer, not a closed shape" if layer else "is not in this mask"
        has = [parts.schema.names[k] for k in classes_in(parts.blobs) if k != moves.NO_BLOB]
        remedy = f"name one of {', '.join(has)}" if has else "it has no closed shapes, choose other masks"
        raise InputError(f"{variation.target} {reason}; {remedy}, or end the variation in ?")
    return index


def _insert(parts: Parts, amount: float | None, variation: Variation, random: np.random.Generator) -> Parts:
    index = parts.schema.index(str(variation.target))
    insert = moves.insert_tear if variation.target in moves.CONFINED else moves.insert_round
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

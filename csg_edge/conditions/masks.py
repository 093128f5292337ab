"""New masks from a mask: named, seeded variations that always give a valid label map. NumPy and OpenCV only.

A variation is written NAME[:[CLASS=]AMOUNT], several are joined by commas and applied in order:

    deform:0.5,tilt:3deg        thickness:tendon=20%        scale:vessel=+30%        insert:ditf        remove:nerve

An amount without a sign is a range: the seed draws from -amount..amount. An amount with a sign is taken as it is.
A variation that ends in ? is left out where the mask has nothing to apply it to; without it that is an InputError.
What every variation keeps (`flaws` lists breaches): uint8 classes of the schema; no class lost or gained but the one
removed or inserted; no band and no closed shape falls apart, and no new specks; layers keep their order from the probe
down; a tear (ditf) stays in its tendon; pixels of 255 ("no mask") stay where they are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import mask_moves as moves
from csg_edge.conditions.arrays import check_mask, classes_in
from csg_edge.conditions.mask_moves import Parts
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


@dataclass(frozen=True)
class Kind:
    """What VARIATIONS knows of a variation: how its amount is written and bounded, what its class may be, how it works.

    unit: "", "%" or "deg"; scale: written number per amount; default: amount when none is written (None: drawn);
    highest: largest amount; target: "none", "optional" or "needed".
    """

    apply: Callable[[Parts, float | None, Variation, np.random.Generator], Parts]
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
    variations = parse_spec(spec, schema) if isinstance(spec, str) else list(spec)
    hidden = mask == NO_MASK
    varied = mask.copy()
    if not hidden.all():
        varied = moves.fill(mask, hidden)
    check_mask(varied, schema, name="mask")
    if hidden.all():
        return varied
    for position, variation in enumerate(variations):
        try:
            varied = _vary_once(varied, schema, variation, position, check_seed(seed))
        except InputError:
            if not variation.optional:
                raise
    varied[hidden] = NO_MASK
    return varied


def _vary_once(mask: Image, schema: LabelSchema, variation: Variation, position: int, seed: int) -> Image:
    kind = VARIATIONS[variation.name]
    parts = moves.take_apart(mask, schema)
    found: list[str] = []
    for attempt in range(ATTEMPTS):
        key = np.random.SeedSequence(seed, spawn_key=(_STREAM, position, attempt))
        random = np.random.Generator(np.random.PCG64(key))
        amount = kind.default if variation.amount is None else variation.amount
        if amount is not None and not variation.exact:
            # Each new attempt draws from a smaller range.
            low, high = (-amount, amount) if kind.signed else (amount / 2, amount)
            amount = 0.85**attempt * random.uniform(low, high)
        try:
            varied = kind.apply(parts, amount, variation, random).joined()
        except InputError as error:
            raise InputError(f"vary {str(variation)!r}: {error}") from None
        varied = _without_specks(mask, varied, schema, variation)
        found = _flaws(mask, parts.ground, varied, schema, variation)
        if not found:
            return varied
    raise InputError(f"vary {str(variation)!r}: cannot be applied to this mask ({found[0]}); give a smaller amount")


def flaws(before: Image, after: Image, schema: LabelSchema, *, variation: Variation | None = None) -> list[str]:
    """What makes `after` no valid variation of `before`: one line each, an empty list if nothing does.

    variation: what was done, which says the class that may come or go. Pixels of 255 are not looked at.
    """
    if after.shape != before.shape or after.dtype != np.uint8:
        return [f"shape {after.shape}, {after.dtype} instead of {before.shape}, uint8"]
    if not np.array_equal(before == NO_MASK, after == NO_MASK):
        return ["pixels of 255 moved"]
    before, after = (moves.fill(mask, mask == NO_MASK) for mask in (before, after))
    return _flaws(before, moves.take_apart(before, schema).ground, after, schema, variation)


def _flaws(before: Image, ground: Image, after: Image, schema: LabelSchema, variation: Variation | None) -> list[str]:
    """`flaws` of masks that are labelled everywhere. ground: of `before`."""
    inserted, removed = _comes(variation, schema), _goes(variation, schema)
    had, has = set(classes_in(before)), set(classes_in(after))
    found = [f"{schema.names[k]} leaves the picture" for k in sorted(had - has - {removed})]
    found += [f"{schema.names[k] if k < len(schema) else k} comes from nowhere" for k in sorted(has - had - {inserted})]
    # Background that shows where something was removed is no flaw.
    if variation is not None and variation.name == "remove":
        found = [line for line in found if not line.startswith(f"{schema.names[0]} comes")]
    if found:
        return found
    new_ground = moves.take_apart(after, schema).ground
    for index in sorted(has):
        if schema.names[index] in SPACES:
            continue  # a band that now reaches from edge to edge parts what it lies in
        has_parts = _parts_of(after, new_ground, index, schema)
        if has_parts < 2:
            continue
        more = has_parts - _parts_of(before, ground, index, schema) - (index == inserted)
        if more > 0:
            found.append(f"{schema.names[index]} falls apart")
    new = _stacked(new_ground) - _stacked(ground)
    found += [f"{schema.names[b]} lies directly under {schema.names[a]}" for a, b in sorted(new)]
    for name, host in moves.CONFINED.items():
        if name in schema.names and host in schema.names and variation is not None and schema.index(name) == inserted:
            added = (after == schema.index(name)) & (before != schema.index(name))
            if (before[added] != schema.index(host)).any():
                found.append(f"{name} outside the {host}")
    return found


def _comes(variation: Variation | None, schema: LabelSchema) -> int:
    inserting = variation is not None and variation.name == "insert" and variation.target
    return schema.index(str(variation.target)) if variation is not None and inserting else -1


def _goes(variation: Variation | None, schema: LabelSchema) -> int:
    removing = variation is not None and variation.name == "remove" and variation.target
    return schema.index(str(variation.target)) if variation is not None and removing else -1


def _parts_of(mask: Image, ground: Image, index: int, schema: LabelSchema) -> int:
    # Layers are counted without the blobs on them: a vessel may touch the border of its muscle.
    source = mask if moves.is_blob(mask, index, schema) else ground
    return moves.count_components(source == index)


def _stacked(ground: Image) -> set[tuple[int, int]]:
    """Pairs (a, b) of layers such that b lies directly under a somewhere."""
    pairs = np.flatnonzero(np.bincount((ground[:-1].astype(np.intp) * 256 + ground[1:]).ravel()))
    return {(int(pair) // 256, int(pair) % 256) for pair in pairs if pair // 256 != pair % 256}


def _without_specks(before: Image, after: Image, schema: LabelSchema, variation: Variation) -> Image:
    """Parts that were not there and are smaller than SPECK filled by their surroundings."""
    speck = max(4.0, SPECK * after.size)
    hole = np.zeros(after.shape, np.bool_)
    inserted = _comes(variation, schema)
    had = classes_in(before)
    for index in classes_in(after):
        number = moves.count_components(after == index)
        if number == 1 and index in had:
            continue
        spare = number - moves.count_components(before == index) - (int(index) == inserted)
        if spare < 1:
            continue
        for region, box in moves.components(after == index)[:spare]:
            if box[4] < speck:
                hole |= region
    return moves.fill(after, hole)


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


def _deform(parts: Parts, amount: float | None, _: Variation, random: np.random.Generator) -> Parts:
    return moves.resample(parts, moves.deformed(parts.ground.shape, BEND * abs(amount or 0.0), random))


def _tilt(parts: Parts, amount: float | None, _: Variation, random: np.random.Generator) -> Parts:
    return moves.resample(parts, moves.tilted(parts.ground.shape, amount or 0.0))


def _shift(parts: Parts, amount: float | None, variation: Variation, random: np.random.Generator) -> Parts:
    lateral = depth = amount or 0.0
    if variation.target is None and not variation.exact:
        depth *= random.uniform(-1, 1)
    if variation.target is not None:
        lateral, depth = (lateral, 0.0) if variation.target == "x" else (0.0, depth)
    return moves.resample(parts, moves.shifted(parts.ground.shape, lateral, depth))


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
        _deform, "smooth bend without folds; 1 moves things by 4 % of the side, root mean square",
        unit="", scale=1.0, default=0.5, signed=False,
    ),
    "tilt": Kind(_tilt, "everything tilted, right side deeper", unit="deg", scale=1.0, default=5.0, highest=20.0),
    "shift": Kind(_shift, "moved sideways and in depth, or x= or depth= alone; part of the side", default=0.08,
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

"""The fibre field: which way the fibres of an image run, on a coarse grid. A condition, a control and a label.

A field is a float32 array (3, 16, 16). Its first two channels are coherence x (cos 2a, sin 2a) of the fibre direction
a, in degrees from the horizontal of the image, positive where fibres rise to the right; fibres have no sense, hence the
double angle (Granlund, Comput. Graph. Image Process. 8:155, 1978). Coherence is 0 where gradients point anywhere and 1
where all agree. The third channel says how much of a cell is given, 0 to 1; what is not given the graph draws.

Measured in an image it is the structure tensor (Bigün & Granlund, ICCV 1987) of gradients that were divided by their
local strength, so neither gain nor contrast nor depth counts. Asked for, it is one direction for each class of a mask:

    muscle=18deg        tendon=-5..5deg        muscle=18deg:0.8,tendon=0deg        ditf=0deg:0

A range is drawn from by the seed; the number after the colon is the coherence, COHERENCE if there is none. What ends in
? is left out where the mask lacks the class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema
from csg_edge.noise import check_seed

SIDE = 16  # cells, each way
TEAR = "ditf"  # the class in which fibres are torn
CHANNELS = 3
GIVEN = 2  # the channel that says how much is given
SHAPE = CHANNELS, SIDE, SIDE
COHERENCE = 0.5  # of fibres asked for by their direction alone: that of well-seen muscle
EXAMPLE = "muscle=18deg"

Image = NDArray[np.uint8]
Field = NDArray[np.float32]
Floats = NDArray[np.float32]

BLUR = 1.0  # pixels: gradients are those of the image blurred by so much
SPECKLE = 0.42  # orientation of speckle alone; with it fascicles that experts drew (DL_Track) are met best
SHRINK = 4  # the tensor is averaged on a grid so much coarser than the image
NEIGHBOURHOOD = 12.0  # pixels, over which gradients are divided by their strength
AVERAGE = 4.0  # pixels: how far a cell's mean reaches into its neighbours
FLOOR = 4.0  # grey levels a pixel, squared: weaker gradients are noise of rounding and dark frames
_ROUNDING = 1e-3  # by which a coherence may exceed 1
_STREAM = 0x66696265  # keeps these draws apart from others made with the same seed
WEAK = 0.1  # of the usual strength of gradients: where they are weaker than that, direction counts less


def field_of_image(image: Image) -> Field:
    """The fibre field (3, 16, 16) of an (H, W) uint8 image, all of it given.

    The widths of its windows are those of a 256 x 256 image. Speckle is wider than tall, since a beam resolves less
    across than along, and by itself looks like level fibres; so a cell's tensor is taken for a mixture of fibres and of
    such speckle, and the speckle is taken away (`speckle_share`). Raises InputError for an image smaller than
    64 x 64.
    """
    import cv2

    height, width = image.shape
    if min(height, width) < SIDE * SHRINK:
        raise InputError(f"image of {width} x {height}: a fibre field needs {SIDE * SHRINK} x {SIDE * SHRINK}")
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), BLUR)
    # Scharr's derivatives are true to direction, which central differences are not.
    across = cv2.Scharr(smooth, cv2.CV_32F, 1, 0, scale=1 / 16)
    down = cv2.Scharr(smooth, cv2.CV_32F, 0, 1, scale=1 / 16)
    squares = np.stack([across * across, down * down, across * down], axis=2)
    small = (width // SHRINK, height // SHRINK)
    mean = np.asarray(cv2.resize(squares, small, interpolation=cv2.INTER_AREA))
    strength = mean[..., 0] + mean[..., 1]
    usual = cv2.GaussianBlur(strength, (0, 0), NEIGHBOURHOOD / SHRINK) + np.float32(FLOOR)
    tensor = np.stack([strength, mean[..., 0] - mean[..., 1], 2 * mean[..., 2]], axis=2) / usual[..., None]
    tensor = cv2.GaussianBlur(tensor, (0, 0), AVERAGE / SHRINK, borderType=cv2.BORDER_REFLECT)
    cells = np.asarray(cv2.resize(tensor, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    weight = np.maximum(cells[..., 0], np.float32(1e-6))
    # Fibres run across the gradient, and rows count downwards.
    vector = np.stack([-cells[..., 1] / weight, cells[..., 2] / weight])
    vector[0] -= np.float32(SPECKLE) * speckle_share(vector)
    vector = vector * (weight / (weight + np.float32(WEAK)))
    return np.concatenate([vector, np.ones_like(vector[:1])]).astype(np.float32)


def speckle_share(vector: Any) -> Any:
    """The share of speckle in the gradients of orientation vectors (2, ...), arrays or tensors.

    A share c of the gradients is of fibres alone, all alike, the rest of speckle, whose own vector is (SPECKLE, 0):
    vector = c (cos 2a, sin 2a) + (1 - c) (SPECKLE, 0), which is a quadratic equation for 1 - c.
    """
    squared = (vector[0] * vector[0] + vector[1] * vector[1]).clip(max=1.0)
    leading, half = 1.0 - SPECKLE**2, 1.0 - SPECKLE * vector[0]
    return (half - (half * half - leading * (1.0 - squared)).clip(min=0.0) ** 0.5) / leading


def directions(field: Field) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Direction in degrees, -90 to 90, and coherence, 0 to 1, of each cell (16, 16)."""
    cosine, sine = field[0].astype(np.float64), field[1].astype(np.float64)
    return np.degrees(np.arctan2(sine, cosine)) / 2, np.hypot(cosine, sine)


def nothing_given() -> Field:
    """The field of which the graph draws everything."""
    return np.zeros(SHAPE, np.float32)


def check_field(field: Any, *, name: str) -> Field:
    """Return the field if it is float32 (3, 16, 16), finite, of coherence and share 0 to 1; raise InputError otherwise.

    The sign of zero and values out of range by rounding are let through.
    """
    if not isinstance(field, np.ndarray) or field.shape != SHAPE or field.dtype != np.float32:
        found = f"{field.dtype} {field.shape}" if isinstance(field, np.ndarray) else type(field).__name__
        raise InputError(f"{name}: got {found}; give a fibre field as a float32 array {SHAPE}")
    if not np.isfinite(field).all():
        raise InputError(f"{name}: holds NaN or infinity; give 0, with 0 in the third channel, where nothing is known")
    highest = float(np.hypot(field[0], field[1]).max())
    if highest > 1 + _ROUNDING:
        raise InputError(
            f"{name}: coherence {highest:.3g}; the first two channels are coherence x (cos 2a, sin 2a), from 0 to 1"
        )
    if field[GIVEN].min() < 0 or field[GIVEN].max() > 1:
        raise InputError(f"{name}: third channel outside 0 to 1; it says how much of a cell is given")
    return field


@dataclass(frozen=True)
class Wish:
    """The direction that the fibres of a class shall have: degrees from `low` to `high`, and their coherence."""

    target: str
    low: float
    high: float
    coherence: float = COHERENCE
    optional: bool = False  # left out where the mask lacks the class

    def __str__(self) -> str:
        span = f"{self.low:.10g}" if self.low == self.high else f"{self.low:.10g}..{self.high:.10g}"
        return f"{self.target}={span}deg:{self.coherence:.10g}" + "?" * self.optional


def parse_wishes(text: str, schema: LabelSchema) -> list[Wish]:
    """The wishes of a specification such as `muscle=18deg,tendon=-5..5deg:0.8`.

    Raises InputError for an unknown class, a class named twice, or numbers that are missing or out of range.
    """
    wishes = [_parse_wish(item.strip(), schema) for item in text.split(",")]
    named = [wish.target for wish in wishes]
    for name in named:
        if named.count(name) > 1:
            raise InputError(f"fibre {text!r}: {name} is named twice; give each class once")
    return wishes


def _parse_wish(item: str, schema: LabelSchema) -> Wish:
    number = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
    found = re.fullmatch(rf"(\w+)=({number})(?:\.\.({number}))?deg(?::({number}))?", item.removesuffix("?"))
    if found is None:
        raise InputError(f"fibre {item!r}: write CLASS=DIRECTION, for example {EXAMPLE}, muscle=-10..25deg or "
                         f"{EXAMPLE}:0.8")  # fmt: skip
    schema.index(found[1])
    low = float(found[2])
    high = low if found[3] is None else float(found[3])
    coherence = COHERENCE if found[4] is None else float(found[4])
    if not -90 <= low <= high <= 90:
        raise InputError(
            f"fibre {item!r}: give degrees from -90 to 90, the smaller first; rising to the right is positive"
        )
    if not 0 <= coherence <= 1:
        raise InputError(f"fibre {item!r}: coherence {coherence:g}; give 0, no direction, to 1, all fibres alike")
    return Wish(found[1], low, high, coherence, item.endswith("?"))


def field_of_mask(mask: Image, schema: LabelSchema, wishes: Sequence[Wish], *, seed: int) -> Field:
    """The fibre field (3, 16, 16) that gives classes of an (H, W) mask the directions wished for.

    A cell is given by the share of it that those classes cover. A range is drawn from by the seed. Raises InputError
    for a class that the mask lacks.
    """
    import cv2

    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(check_seed(seed), spawn_key=(_STREAM,))))
    total, share = np.zeros((2, SIDE, SIDE)), np.zeros((SIDE, SIDE))
    for wish in wishes:
        inside = mask == schema.index(wish.target)
        degrees = random.uniform(wish.low, wish.high)
        if not inside.any():
            if wish.optional:
                continue
            raise InputError(f"fibre {wish}: the mask has no {wish.target}; name a class that it has, or end it in ?")
        covered = np.asarray(cv2.resize(inside.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        angle = math.radians(2 * degrees)
        vector = wish.coherence * np.array([math.cos(angle), math.sin(angle)])
        total += covered * vector[:, None, None]
        share += covered
    vector = total / np.maximum(share, 1e-6)
    return np.concatenate([vector, np.minimum(share, 1)[None]]).astype(np.float32)


def given_field(
    mask: Image, schema: LabelSchema, *, direction: str | None, vary: str | None, seed: int
) -> Field | None:
    """What a direction, as `parse_wishes` takes it, and a variation of the mask give of a field; None for nothing.

    mask: (H, W), varied already. Raises InputError as `parse_wishes` and `field_of_mask` do.
    """
    field = None
    if direction is not None:
        field = field_of_mask(mask, schema, parse_wishes(direction, schema), seed=seed)
    return with_tear(field, mask, schema, vary, seed=seed)


def with_tear(field: Field | None, mask: Image, schema: LabelSchema, vary: str | None, *, seed: int) -> Field | None:
    """The field, in which fibres have no direction inside a tear that a variation put into the mask."""
    if f"insert:{TEAR}" not in (vary or "") or TEAR not in schema.names:
        return field
    torn = field_of_mask(mask, schema, [Wish(TEAR, 0.0, 0.0, coherence=0.0, optional=True)], seed=seed)
    return torn if field is None else laid_over(field, torn)


def laid_over(below: Field, above: Field) -> Field:
    """Two fields as one: where `above` is given it counts, as far as it is given."""
    share = above[GIVEN] + below[GIVEN] * (1 - above[GIVEN])
    vector = above[:GIVEN] * above[GIVEN] + below[:GIVEN] * below[GIVEN] * (1 - above[GIVEN])
    return np.concatenate([vector / np.maximum(share, 1e-6), share[None]]).astype(np.float32)


def class_directions(field: Field, mask: Image, schema: LabelSchema) -> dict[str, dict[str, float]]:
    """For each class of an (H, W) mask the mean direction in degrees, -90 to 90, and mean coherence, 0 to 1.

    Cells count by the share that the class covers; a class that fills no cell to a half is left out.
    """
    import cv2

    found = {}
    _, coherence = directions(field)
    for index, name in enumerate(schema.names):
        covered = cv2.resize((mask == index).astype(np.float64), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if covered.max() < 0.5:
            continue
        cosine, sine = ((covered * field[channel]).sum() for channel in range(GIVEN))
        found[name] = {
            "direction_deg": round(math.degrees(math.atan2(sine, cosine)) / 2, 2),
            "coherence": round(float((covered * coherence).sum() / covered.sum()), 4),
        }
    return found

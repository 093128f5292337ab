"""What a varied label map must keep, and what breaks it. NumPy and OpenCV only."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from csg_edge.conditions.arrays import classes_in
from csg_edge.conditions.mask_parts import (
    CONFINED,
    Image,
    Parts,
    components,
    count_components,
    fill,
    is_blob,
    take_apart,
)
from csg_edge.labels import NO_MASK, LabelSchema

SPACES = ("background", "superficial_tissue", "muscle", "deep_tissue")  # what bands lie in
SPECK = 0.0003  # of the picture: a part smaller than this that was not there is filled by what surrounds it
NONE = -1  # no class


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
        return take_apart(self.mask, self.schema, self.classes)

    def count(self, index: int, *, on_ground: bool = False) -> int:
        """The number of parts of a class, in the mask or in the ground."""
        key = index, on_ground
        if key not in self._counts:
            self._counts[key] = count_components((self.parts.ground if on_ground else self.mask) == index)
        return self._counts[key]

    def count_whole(self, index: int) -> int:
        """The same; layers without the blobs on them: a vessel may touch the border of its muscle."""
        layered = self.parts.has_blobs and not is_blob(self.mask, index, self.schema)
        return self.count(index, on_ground=layered)

    @cached_property
    def stacked(self) -> set[tuple[int, int]]:
        """Pairs (a, b) of layers such that b lies directly under a somewhere."""
        ground = self.parts.ground
        if int(ground.min()) == int(ground.max()):
            return set()
        above, below = ground[:-1], ground[1:]
        border = np.flatnonzero(above != below)
        pairs = np.unique(above.ravel()[border].astype(np.intp) * 256 + below.ravel()[border])
        found = {(int(pair) // 256, int(pair) % 256) for pair in pairs}
        return {pair for pair in found if NO_MASK not in pair}


def flaws_between(before: Anatomy, after: Anatomy, *, inserted: int = NONE, removed: int = NONE) -> list[str]:
    """What makes `after` no valid variation of `before`, a line each.

    inserted, removed: the class that may come or go.
    """
    schema = before.schema
    had, has = set(before.classes) - {NO_MASK}, set(after.classes) - {NO_MASK}
    found = [f"{schema.names[k]} leaves the picture" for k in sorted(had - has - {removed})]
    found += [f"{schema.names[k] if k < len(schema) else k} comes from nowhere" for k in sorted(has - had - {inserted})]
    # Background that shows where something was removed is no flaw.
    if removed != NONE:
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
    for name, host in CONFINED.items():
        if name in schema.names and host in schema.names and schema.index(name) == inserted:
            added = (after.mask == schema.index(name)) & (before.mask != schema.index(name))
            if (before.mask[added] != schema.index(host)).any():
                found.append(f"{name} outside the {host}")
    return found


def without_specks(before: Anatomy, after: Anatomy, *, inserted: int = NONE) -> Anatomy:
    """Parts that were not there and are smaller than SPECK filled by their surroundings."""
    mask = after.mask
    speck = max(4.0, SPECK * mask.size)
    hole = np.zeros(mask.shape, np.bool_)
    for index in after.classes:
        if index == NO_MASK:
            continue
        number = after.count(index)
        if number == 1 and index in before.classes:
            continue
        spare = number - before.count(index) - (index == inserted)
        if spare < 1:
            continue
        for region, box in components(mask == index)[:spare]:
            if box[4] < speck:
                hole |= region
    return Anatomy(fill(mask, hole), before.schema) if hole.any() else after

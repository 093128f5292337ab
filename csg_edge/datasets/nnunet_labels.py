"""What the numbers in the masks of an nnU-Net v2 data set mean: classes, regions of several numbers, an ignore label.

nnU-Net v2, documentation/dataset_format.md, ignore_label.md and region_based_training.md: a label is a number, or, for
training by regions, a list of numbers; the highest number may be called ignore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.labels import NO_MASK, LabelSchema

IGNORE = "ignore"


@dataclass(frozen=True)
class StoredLabels:
    """classes: of the set. numbers: a name for each number that a mask may hold. table: (256,) number -> class index,
    NO_MASK for what is ignored."""

    classes: LabelSchema
    numbers: LabelSchema
    table: NDArray[np.uint8]


def parse_labels(labels: Mapping[str, Any], path: Path) -> StoredLabels:
    """Read `labels` of dataset.json. A number belongs to the smallest region that has it.

    Raises InputError for numbers that are not 0, 1, ... without a gap, an ignore label that is not the highest of them,
    or regions that overlap without one being inside the other.
    """
    regions = {name: _numbers(value) for name, value in labels.items()}
    held = sorted({number for region in regions.values() for number in region})
    if held != list(range(len(held))) or not all(regions.values()) or regions.get("background", {0}) != {0}:
        raise InputError(f'{path}: labels must number the classes 0, 1, ..., as {{"background": 0, "muscle": 1}} does')
    if IGNORE in regions and regions[IGNORE] != {held[-1]}:
        raise InputError(f"{path}: the ignore label must be the highest number; renumber the labels, as nnU-Net asks")
    ignored = regions.pop(IGNORE, set())
    names = list(regions)
    for position, name in enumerate(names):
        for other in names[position + 1 :]:
            one, two = regions[name], regions[other]
            if one & two and not (one < two or two < one):
                raise InputError(
                    f"{path}: regions {name} and {other} overlap and neither is inside the other; write masks of plain "
                    "numbers"
                )
    owners = {
        number: min((name for name in names if number in regions[name]), key=lambda name: len(regions[name]))
        for number in held
        if number not in ignored
    }
    # A region whose numbers all belong to smaller ones has no pixels of its own, and is no class.
    classes = list(dict.fromkeys(owners.values()))
    table = np.full(256, NO_MASK, np.uint8)
    for number, owner in owners.items():
        table[number] = classes.index(owner)
    stored = [f"{owners[number]} ({number})" if number in owners else IGNORE for number in held]
    try:
        return StoredLabels(LabelSchema(tuple(classes)), LabelSchema(tuple(stored)), table)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _numbers(value: Any) -> set[int]:
    """The numbers of a label; none if it is something else."""
    values = value if isinstance(value, list) else [value]
    return set(values) if values and all(type(number) is int and 0 <= number < 255 for number in values) else set()

"""Masks in colours, as CVAT and Pascal VOC write them: a table says which colour is which class.

`labelmap.txt` of CVAT's "Segmentation mask 1.1" has a line for each class, `name:red,green,blue:parts:actions`; lines
that begin with # are comments. It is looked for beside a mask and one folder up, where CVAT puts it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.labels import LabelSchema
from csg_edge.storage import read_text

LABELMAP = "labelmap.txt"

Colours = dict[tuple[int, int, int], str]
"""Class name by (red, green, blue)."""


def find_labelmap(mask: Path) -> Path | None:
    """The table that goes with a mask, if there is one."""
    for folder in (mask.parent, mask.parent.parent):
        if (folder / LABELMAP).is_file():
            return folder / LABELMAP
    return None


def read_colours(path: Path) -> Colours:
    """Read a table of colours. Raises InputError for a line that is none, or a colour that is given twice."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read ({error}); give a text file, UTF-8") from None
    found: Colours = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        levels = rest.partition(":")[0].split(",")
        if not name.strip() or len(levels) != 3 or not all(level.strip().isdecimal() for level in levels):
            raise InputError(f"{path}: line {number}: write name:red,green,blue, for example muscle:255,0,0")
        red, green, blue = (int(level.strip()) for level in levels)
        if max(red, green, blue) > 255:
            raise InputError(f"{path}: line {number}: {rest}; give levels from 0 to 255")
        if found.setdefault((red, green, blue), name.strip()) != name.strip():
            raise InputError(f"{path}: line {number}: colour {red},{green},{blue} stands for two classes; change one")
    if not found:
        raise InputError(f"{path}: no colours; write a line name:red,green,blue for each class")
    return found


def indices_of_colours(
    picture: NDArray[np.uint8], colours: Colours, schema: LabelSchema, *, mask: Path, table: Path
) -> NDArray[np.uint8]:
    """Class indices of a (H, W, 3) picture, channels blue, green, red as OpenCV reads them.

    Raises InputError naming the pixel of a colour that the table lacks, or a class that the schema lacks.
    """
    packed = picture.astype(np.int64) @ np.array([1, 256, 65536])
    indices = np.zeros(packed.shape, np.uint8)
    known = np.zeros(packed.shape, bool)
    for (red, green, blue), name in colours.items():
        where = packed == blue + 256 * green + 65536 * red
        if where.any():
            try:
                indices[where] = schema.index(name)
            except InputError as error:
                raise InputError(f"{table}: {error}") from None
            known |= where
    if not known.all():
        row, column = (int(place[0]) for place in np.nonzero(~known))
        blue, green, red = (int(level) for level in picture[row, column])
        raise InputError(
            f"{mask}: colour {red},{green},{blue} at row {row}, column {column} is not in {table}; add a line "
            "name:red,green,blue for it, and save masks without smoothing or loss"
        )
    return indices

"""The label schema: the ordered class names behind the indices of a mask."""

from __future__ import annotations

from dataclasses import dataclass

from csg_edge.errors import InputError


@dataclass(frozen=True)
class LabelSchema:
    """Ordered class names; the position of a name is its index in a mask, index 0 is background/unlabelled.

    It travels in every checkpoint and bundle, so that a mask is never read with the wrong classes.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 255:
            raise InputError(f"label schema: {len(self.names)} classes; give 2 to 255 names, background first")
        if len(set(self.names)) != len(self.names) or not all(self.names):
            raise InputError("label schema: class names must be non-empty and different from each other")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Index of a class by name. Raises InputError for a name outside the schema."""
        try:
            return self.names.index(name)
        except ValueError:
            raise InputError(f"label schema: no class {name!r}; choose from {', '.join(self.names)}") from None


MSK_SCHEMA = LabelSchema(
    (
        "background",
        "aponeurosis",
        "superficial_tissue",
        "muscle",
        "deep_tissue",
        "nerve",
        "vessel",
        "tendon",
        "bone",
        "ditf",  # discontinuity in tendon fibres, the finding CSG was shown on
    )
)
"""Musculoskeletal schema shared by the phantom, the two public sets and the shipped bundle."""

NO_MASK = 255
"""A mask says nothing at pixels of this value (nobody labelled them); a mask of it everywhere is no mask: the model is
left to its context."""

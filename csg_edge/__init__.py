"""csg-edge: labelled musculoskeletal ultrasound images from a mask and a context, in milliseconds, without torch.

import csg_edge
generator = csg_edge.load("msk-256", steps=1)
images = generator.generate(masks, contexts, seeds)  # (N, H, W) uint8
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csg_edge.errors import CsgEdgeError

if TYPE_CHECKING:
    from csg_edge.generation.generator import Generator
    from csg_edge.generation.loading import load

__version__ = "0.1.0"

__all__ = ["CsgEdgeError", "Generator", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # On use, so that `csg-edge --help` does not wait for NumPy.
    if name == "Generator":
        from csg_edge.generation.generator import Generator

        return Generator
    if name == "load":
        from csg_edge.generation.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

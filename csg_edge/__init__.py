"""csg-edge: labelled musculoskeletal ultrasound images from a mask and a context, in milliseconds, without torch.

import csg_edge
generator = csg_edge.load("msk-256", steps=1)
images = generator.generate(masks, contexts, seeds)  # (N, H, W) uint8
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from csg_edge.errors import CsgEdgeError

if TYPE_CHECKING:
    from csg_edge.generator import Generator, load

__version__ = "0.1.0"

__all__ = ["CsgEdgeError", "Generator", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # On use, so that `csg-edge --help` does not wait for NumPy.
    if name in ("Generator", "load"):
        from csg_edge import generator

        return getattr(generator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

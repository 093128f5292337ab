"""csg-edge: labelled musculoskeletal ultrasound images from a mask and a context, in milliseconds, without torch.

import csg_edge
generator = csg_edge.load("msk-256", steps=1)
images = generator.generate(masks, contexts, seeds)  # (N, H, W) uint8
"""

from __future__ import annotations

from csg_edge.errors import CsgEdgeError
from csg_edge.generator import Generator, load

__version__ = "0.1.0"

__all__ = ["CsgEdgeError", "Generator", "__version__", "load"]

"""The gallery's strips: one mask under eight seeds and under eight contexts, by the shipped bundle on phantoms.

Run `python docs/pictures.py` from the repository's root; the environment of `make demo` is enough.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import csg_edge
from csg_edge.datasets.phantom import make_phantom

IMAGES = Path(__file__).parent / "images"
GAP = 6
SCENES = ("muscle", "nerve_vessel")
COUNT = 8


def main() -> None:
    """Write seeds.jpg and contexts.jpg."""
    looks = [make_phantom(100 + number, appearance_seed=100 + number).image for number in range(COUNT)]
    seeds, contexts = [], []
    with csg_edge.load("msk-256", steps=1) as generator:
        for scene in SCENES:
            phantom = make_phantom(3, appearance_seed=3, scene=scene)
            masks = np.stack([phantom.mask] * COUNT)
            same_look = np.stack([phantom.image] * COUNT)
            seeds.append(generator.generate(masks, same_look, list(range(COUNT))))
            made = generator.generate(masks, np.stack(looks), [0] * COUNT)
            contexts += [np.stack(looks), made]
    write(IMAGES / "seeds.jpg", seeds)
    write(IMAGES / "contexts.jpg", contexts)


def write(path: Path, rows: list[NDArray[np.uint8]]) -> None:
    """Rows of (N, H, W) images as one JPEG, at half size."""
    strips = []
    for row in rows:
        half = [cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in row]
        framed = [cv2.copyMakeBorder(image, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=255) for image in half]
        strips.append(np.concatenate(framed, axis=1))
    cv2.imwrite(str(path), np.concatenate(strips), [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()

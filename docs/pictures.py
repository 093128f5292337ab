"""The pictures of gallery, docs/fibres.md and docs/augment.md, by the shipped bundle on phantoms.

One mask under eight seeds, under eight contexts, with muscle asked for in five directions, and augmented.

Run `python docs/pictures.py` from the repository's root; the environment of `make demo` is enough.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import csg_edge
from csg_edge.augment.make import changed
from csg_edge.augment.plan import Plan, draw
from csg_edge.conditions.fibre_files import draw_field
from csg_edge.conditions.fibres import Wish, field_of_mask
from csg_edge.conditions.masks import vary_by
from csg_edge.datasets.phantom import make_phantom
from csg_edge.generation.sheets import colour_mask

IMAGES = Path(__file__).parent / "images"
GAP = 6
SCENES = ("muscle", "nerve_vessel")
COUNT = 8
DIRECTIONS = (-25, -10, 0, 10, 25)  # degrees


def main() -> None:
    """Write seeds.jpg, contexts.jpg, augmented.jpg and fibre_directions.jpg."""
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
        write(IMAGES / "augmented.jpg", augmented(generator, looks))
        if generator.bundle.manifest.fibre_shape is not None:  # a bundle of format 2 takes no field
            write(IMAGES / "fibre_directions.jpg", directions(generator), scale=1.0)
    write(IMAGES / "seeds.jpg", seeds)
    write(IMAGES / "contexts.jpg", contexts)


def directions(generator: csg_edge.Generator) -> list[NDArray[np.uint8]]:
    """Images of one mask, context and seed with muscle in five directions; below, the fields that were used."""
    schema = generator.bundle.manifest.schema
    phantom = make_phantom(3, appearance_seed=3, scene="muscle")
    given = [field_of_mask(phantom.mask, schema, [Wish("muscle", angle, angle)], seed=0) for angle in DIRECTIONS]
    count = len(given)
    images, used = generator.generate(
        [phantom.mask] * count, [phantom.image], [0] * count, fibres=given, return_fibres=True
    )
    drawn = [draw_field(image, field) for image, field in zip(images, used, strict=True)]
    return [np.stack([cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) for image in images]), np.stack(drawn)]


def augmented(generator: csg_edge.Generator, looks: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """What `csg-edge augment` makes of one phantom by its default plan: the phantom and seven images, masks below."""
    schema, phantom = generator.bundle.manifest.schema, make_phantom(3, appearance_seed=3, scene="nerve_vessel")
    draws = [draw(Plan(), "phantom", number, 0) for number in range(COUNT - 1)]
    masks = [vary_by(phantom.mask, schema, item.vary or "", seed=item.vary_seed) for item in draws]
    contexts = [changed(look, item.look) for look, item in zip(looks, draws, strict=False)]
    images = generator.generate(masks, contexts, [item.noise_seed for item in draws])
    shown = [cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) for image in (phantom.image, *images)]
    return [np.stack(shown), np.stack([colour_mask(mask) for mask in (phantom.mask, *masks)])]


def write(path: Path, rows: list[NDArray[np.uint8]], *, scale: float = 0.5) -> None:
    """Rows of (N, H, W) or (N, H, W, 3) images as one JPEG, at half size if no scale is given."""
    strips = []
    for row in rows:
        half = [cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for image in row]
        framed = [cv2.copyMakeBorder(image, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255,) * 3) for image in half]
        strips.append(np.concatenate(framed, axis=1))
    cv2.imwrite(str(path), np.concatenate(strips), [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()

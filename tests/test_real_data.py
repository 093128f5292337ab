"""The shipped bundle on real masks and contexts: does the image follow the mask?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import csg_edge
from csg_edge.datasets.labelled_set import LabelledSet, find_sets, read_set
from csg_edge.labels import MSK_SCHEMA
from csg_edge.quality.contrast import contrast_correlation

IMAGES_PER_SET = 20
SEEN = ("dltrack_aponeurosis", "usgra_nerve_vessel")  # what the shipped bundle was trained on; it never saw the others


@pytest.fixture(scope="module")
def validation(real_data: Path) -> list[LabelledSet]:
    return [
        read_set(directory, MSK_SCHEMA, split="val", size=256)
        for directory in find_sets(real_data)
        if directory.name in SEEN
    ]


def context_from_another_group(data: LabelledSet, index: int, random: np.random.Generator) -> NDArray[np.uint8]:
    others = [other for other, group in enumerate(data.groups) if group != data.groups[index]]
    return data.images[int(random.choice(others))]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_class_greys_follow_the_mask(validation: list[LabelledSet], steps: int) -> None:
    random = np.random.default_rng(0)
    followed, upside_down = [], []
    with csg_edge.load(steps=steps) as generator:
        for data in validation:
            chosen = random.choice(len(data), min(len(data), IMAGES_PER_SET), replace=False)
            for seed, index in enumerate(chosen):
                mask, real = data.masks[index], data.images[index]
                image = generator.generate_one(mask, context_from_another_group(data, int(index), random), seed)
                followed.append((image, real, mask))
                upside_down.append((image[::-1], real, mask))
    correlation = contrast_correlation(followed)
    assert correlation > 0.6
    # An image that ignored its mask would do as well upside down.
    assert correlation > contrast_correlation(upside_down) + 0.3

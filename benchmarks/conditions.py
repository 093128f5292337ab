"""The figures of docs/conditions.md: does style measure appearance, would a statistical mask generator beat bending?

    python benchmarks/conditions.py contexts --data ../shared/data      # half a minute
    python benchmarks/conditions.py masks --data ../shared/data         # some minutes

Contexts: training images, each looking for its nearest other. Masks: 150 made from the training groups by each way,
against the held-out ones, by descriptors of each class. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import mask_parts
from csg_edge.conditions.contexts import GRAM_FIGURES, ContextBank, style_of
from csg_edge.conditions.masks import vary_by
from csg_edge.datasets.labelled_set import LabelledSet, find_sets, read_set
from csg_edge.labels import MSK_SCHEMA

Image = NDArray[np.uint8]
Floats = NDArray[np.floating]
Make = Callable[[np.random.Generator], Image]

COUNT, SIDE = 150, 128
BENDS = ("deform:0.5", "deform:1", "deform:0.7,tilt:4deg,shift:6%,thickness:30%?")


def main() -> None:
    """Print the tables of one subject."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=["contexts", "masks"])
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    directories = find_sets(arguments.data)
    if arguments.subject == "contexts":
        contexts([read_set(directory, MSK_SCHEMA, split="train", size=256) for directory in directories])
        return
    for directory in directories:
        train, held_out = (read_set(directory, MSK_SCHEMA, split=split, size=SIDE) for split in ("train", "val"))
        masks(train, held_out)


# Contexts


def contexts(sets: list[LabelledSet]) -> None:
    """How often the nearest image is of the same set or group, by style and by grey histogram."""
    images = np.concatenate([item.images for item in sets])
    names = np.concatenate([[item.name] * len(item) for item in sets])
    groups = np.concatenate([item.groups for item in sets])
    styles = np.stack([style_of(image) for image in images])
    paths = [Path(str(index)) for index in range(len(images))]
    bank = ContextBank(paths, styles)
    histograms = np.stack([np.cumsum(np.histogram(image, 32, (0, 256))[0]) / image.size for image in images])
    print("| nearest other image is of | the same set | the same set, own group left out | the same group |")
    print("|---|---|---|---|")
    for label, points in (
        ("style", bank.points),
        ("Gram alone", bank.points[:, :GRAM_FIGURES]),
        ("grey histogram (cumulative)", histograms),
    ):
        distance = pairwise_distances(points, points)
        np.fill_diagonal(distance, np.inf)
        nearest = distance.argmin(axis=1)
        foreign = np.where(groups[:, None] == groups[None, :], np.inf, distance).argmin(axis=1)
        paired = np.flatnonzero([np.sum(groups == group) > 1 for group in groups])
        rates = (names[nearest] == names, names[foreign] == names, (groups[nearest] == groups)[paired])
        print(f"| {label} | " + " | ".join(f"{rate.mean():.3f}" for rate in rates) + " |")
    changes: dict[str, Callable[[Image], Image]] = {
        "its mirror image": lambda image: np.ascontiguousarray(image[:, ::-1]),
        "blurred by 1.2 pixels": lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2), np.uint8),
        "a fifth brighter": lambda image: (image * 1.2).clip(0, 255).astype(np.uint8),
        "shifted sideways by a tenth": lambda image: np.roll(image, image.shape[1] // 10, axis=1),
    }
    chosen = np.random.default_rng(0).choice(len(images), 40, replace=False)
    own = pairwise_distances(bank.points[chosen], bank.points[chosen])[np.triu_indices(40, 1)]
    print(f"\nmedian distance of two images {np.median(own):.2f}")
    for label, change in changes.items():
        moved = [bank.distances(change(images[index]))[index] for index in chosen]
        print(f"of an image and {label} {np.median(moved):.2f}")


# Masks


def masks(train: LabelledSet, held_out: LabelledSet) -> None:
    """Masks made in several ways against held-out ones."""
    classes = [int(index) for index in np.unique(train.masks)]
    seen = np.stack([describe(mask, classes) for mask in train.masks])
    centre, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-3
    real = (np.stack([describe(mask, classes) for mask in held_out.masks]) - centre) / spread
    own = pairwise_distances(real, real)
    width = float(np.median(own[np.triu_indices(len(real), 1)]))
    radius = np.sort(own, axis=1)[:, 5]  # the fifth neighbour
    print(f"\n| {train.name}, {len(real)} held-out masks | diversity | nearest | precision | coverage | MMD^2 |")
    print("|---|---|---|---|---|---|")
    for label, make in ways(train, classes).items():
        random = np.random.default_rng(1)
        made = [make(random) for _ in range(COUNT)]
        found = (np.stack([describe(mask, classes) for mask in made]) - centre) / spread
        gaps = pairwise_distances(found, real)
        inside = gaps < radius[None]
        figures = (
            diversity(made, random), gaps.min(axis=0).mean(), inside.any(axis=1).mean(), inside.any(axis=0).mean(),
            mmd(found, real, width),
        )  # fmt: skip
        print(f"| {label} | " + " | ".join(f"{figure:.3f}" for figure in figures) + " |", flush=True)


def ways(train: LabelledSet, classes: list[int]) -> dict[str, Make]:
    """Name -> a function that makes one mask, one group as likely as any other."""
    members = list(train.indices_by_group().values())

    def pick(random: np.random.Generator) -> int:
        return int(random.choice(members[random.integers(len(members))]))

    def bend(spec: str) -> Make:
        return lambda random: vary_by(train.masks[pick(random)], MSK_SCHEMA, spec, seed=int(random.integers(2**31)))

    fields = np.stack([[signed_distance(mask == index) for index in classes] for mask in train.masks])
    flat = fields.reshape(len(fields), -1)

    def decode(field: Floats) -> Image:
        return np.array(classes, np.uint8)[field.reshape(len(classes), SIDE, SIDE).argmax(axis=0)]

    def mix(random: np.random.Generator) -> Image:
        share = random.uniform()
        return decode(share * flat[pick(random)] + (1.0 - share) * flat[pick(random)])

    weights = np.zeros(len(flat))
    for group in members:
        weights[group] = 1.0 / (len(group) * len(members))
    mean = weights @ flat
    scaled = (flat - mean) * np.sqrt(weights)[:, None]
    _, deviation, modes = np.linalg.svd(scaled, full_matrices=False)
    count = int(np.searchsorted(np.cumsum(deviation**2) / np.sum(deviation**2), 0.95)) + 1
    modes, deviation = modes[:count], deviation[:count]
    scores = (flat - mean) @ modes.T

    def around(random: np.random.Generator) -> Image:
        return decode(mean + (0.92 * scores[pick(random)] + 0.35 * random.standard_normal(count) * deviation) @ modes)

    return {
        "training masks as they are": lambda random: train.masks[pick(random)],
        **{f"`{spec}`": bend(spec) for spec in BENDS},
        "mix of two masks": mix,
        f"principal components, Gaussian ({count})": lambda random: decode(
            mean + (random.standard_normal(count) * deviation) @ modes
        ),
        "principal components around a mask": around,
    }


def signed_distance(inside: NDArray[np.bool_]) -> Floats:
    """Distance to the border in pixels, positive inside; half the side where there is no border."""
    area = inside.astype(np.uint8)
    if area.all() or not area.any():
        return np.full(area.shape, SIDE / 2 if area.all() else -SIDE / 2, np.float32)
    within, without = (cv2.distanceTransform(part, cv2.DIST_L2, 5) for part in (area, 1 - area))
    return np.where(area > 0, within - 0.5, 0.5 - without).astype(np.float32)


def describe(mask: Image, classes: list[int]) -> Floats:
    """Of each class: root of its area, place, tilt, thickness, number of parts."""
    height, width = mask.shape
    rows, columns = np.indices(mask.shape)
    found: list[float] = []
    for index in classes:
        area = mask == index
        found.append(float(np.sqrt(area.mean())))
        if not area.any():
            found += [0.5, 0.5, 0.0, 0.0, 0.0]
            continue
        thickness = area.sum(axis=0)
        where = np.flatnonzero(thickness)
        middle = (rows * area).sum(axis=0)[where] / thickness[where]
        tilt = float(np.polyfit(where, middle, 1)[0]) if len(where) > 3 else 0.0
        side = float(columns[area].mean()) / width if mask_parts.is_blob(mask, index, MSK_SCHEMA) else 0.5
        parts = min(len(mask_parts.components(area)), 6) / 6
        found += [rows[area].mean() / height, side, np.clip(tilt, -1, 1), thickness[where].mean() / height, parts]
    return np.array(found)


def diversity(made: list[Image], random: np.random.Generator) -> float:
    """Mean 1 - IoU of two masks, over the classes either has."""
    gaps = []
    for _ in range(COUNT):
        one, other = made[random.integers(len(made))], made[random.integers(len(made))]
        present = [int(index) for index in np.union1d(one, other)]
        overlaps = [((one == i) & (other == i)).sum() / ((one == i) | (other == i)).sum() for i in present]
        gaps.append(1.0 - np.mean(overlaps))
    return float(np.mean(gaps))


def pairwise_distances(first: Floats, second: Floats) -> Floats:
    """Euclidean distances (N, M)."""
    return np.asarray(np.linalg.norm(first[:, None] - second[None], axis=2))


def mmd(first: Floats, second: Floats, width: float) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, unbiased."""
    own = []
    for points in (first, second):
        kernel = np.exp(-(pairwise_distances(points, points) ** 2) / (2 * width**2))
        own.append((kernel.sum() - len(points)) / (len(points) * (len(points) - 1)))
    cross = np.exp(-(pairwise_distances(first, second) ** 2) / (2 * width**2)).mean()
    return float(own[0] + own[1] - 2 * cross)


if __name__ == "__main__":
    main()

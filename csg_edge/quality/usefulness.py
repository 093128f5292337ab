"""Are the images useful: does a segmenter trained with them do better on groups that nobody has seen?

A small U-Net (MONAI) is trained on real images only, on real and synthetic together, and on synthetic only, with 10, 25
and 100 % of the real train groups, each over several seeds and always for the same number of iterations. Synthetic
images are made from masks and contexts of the chosen groups alone. The generator itself has seen all train groups, so
what 10 % shows is what a site with few labels gains from a bundle made elsewhere, not from its own few images.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from csg_edge.conditions.masks import vary_by
from csg_edge.datasets.batches import BatchSource
from csg_edge.datasets.labelled_set import Image, LabelledSet
from csg_edge.generation.generator import Generator
from csg_edge.progress import Progress
from csg_edge.quality.evaluators import grey_levels, make_segmenter, segmentation_loss
from csg_edge.quality.segmentation import mean_dice

ARMS = ("real", "real and synthetic", "synthetic")
VARIATION = "deform:0.5?,tilt:3deg?"  # of `csg_edge.conditions.masks`, as users make new masks
COLUMNS = ("arm", "fraction", "seed", "group", "name", "dice")


@dataclass(frozen=True)
class UsefulnessConfig:
    """The grid and the budget of each training."""

    fractions: tuple[float, ...] = (0.1, 0.25, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    synthetic: int = 400  # images made for each fraction and seed
    iterations: int = 200
    batch: int = 16
    size: int = 128  # pixels a side: 27 trainings must fit into an hour on two cores


@dataclass(frozen=True)
class Score:
    """Dice of one held-out image by one trained segmenter."""

    arm: str
    fraction: float
    seed: int
    group: str
    name: str
    dice: float


def measure_usefulness(
    generator: Generator, train: Sequence[LabelledSet], held_out: LabelledSet, config: UsefulnessConfig, *, table: Path
) -> list[Score]:
    """Run what `table` (CSV) does not hold yet, adding each training's scores to it; returns all scores."""
    small = held_out.resized(config.size)
    scores = read_scores(table)
    done = {(score.arm, score.fraction, score.seed) for score in scores}
    grid = list(itertools.product(config.fractions, config.seeds))
    progress = Progress("usefulness", len(grid) * len(ARMS), done=len(done), unit="trainings")
    for fraction, seed in grid:
        todo = [arm for arm in ARMS if (arm, fraction, seed) not in done]
        if not todo:
            continue
        real = [choose_groups(item, fraction, seed=seed) for item in train]
        synthetic = [make_synthetic(generator, item, config, seed=seed, sets=len(real)) for item in real]
        real, synthetic = ([item.resized(config.size) for item in sets] for sets in (real, synthetic))
        sets = {"real": real, "real and synthetic": [*real, *synthetic], "synthetic": synthetic}
        for arm in todo:
            found = train_segmenter(sets[arm], len(generator.bundle.manifest.labels), config, seed=seed)
            dice = mean_dice(found(small.images), small.masks)
            new = [
                Score(arm, fraction, seed, group, name, float(value))
                for group, name, value in zip(small.groups, small.names, dice, strict=True)
                if np.isfinite(value)
            ]
            _append(table, new)
            scores += new
            progress.advance(note=f"{arm}, {fraction:.0%}, seed {seed}: Dice {np.nanmean(dice):.3f}")
    return scores


def choose_groups(data: LabelledSet, fraction: float, *, seed: int) -> LabelledSet:
    """A share of the groups of a set, at least two, drawn by the seed; a larger share contains the smaller one."""
    groups = sorted(set(data.groups))
    order = np.random.default_rng([seed, len(groups)]).permutation(len(groups))
    kept = {groups[index] for index in order[: max(2, round(fraction * len(groups)))]}
    return data.take([index for index, group in enumerate(data.groups) if group in kept])


def make_synthetic(
    generator: Generator, data: LabelledSet, config: UsefulnessConfig, *, seed: int, sets: int
) -> LabelledSet:
    """A set's share of the synthetic images: its masks, varied, under contexts of its other groups."""
    random = np.random.default_rng([seed, len(data)])
    schema = generator.bundle.manifest.schema
    images, masks, names, groups = [], [], [], []
    for number in range(config.synthetic // sets):
        index = int(random.integers(len(data)))
        others = [other for other, group in enumerate(data.groups) if group != data.groups[index]]
        varied = vary_by(data.masks[index], schema, VARIATION, seed=int(random.integers(2**63)))
        context = data.images[int(random.choice(others))]
        images.append(generator.generate_one(varied, context, int(random.integers(2**63))))
        masks.append(generator.prepare_mask(varied, name="mask"))
        names.append(f"{number:04d}")
        groups.append(data.groups[index])
    return LabelledSet(np.stack(images), np.stack(masks), tuple(names), tuple(groups), name=f"{data.name} synthetic")


def train_segmenter(
    sets: Sequence[LabelledSet], classes: int, config: UsefulnessConfig, *, seed: int
) -> Callable[[Image], Image]:
    """Train a U-Net for a fixed number of iterations; returns a function from images to label maps."""
    shares = [1.0] * len(sets)
    source = BatchSource(list(sets), shares, batch=config.batch, dropout=0.0, seed=seed, contexts=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_segmenter(classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=config.iterations)
    network.train()
    for _, batch in source.stream(0, config.iterations):
        loss = segmentation_loss(network(grey_levels(torch.from_numpy(batch.image))), torch.from_numpy(batch.mask))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()

    @torch.inference_mode()
    def segment(
        images: Image,
    ) -> Image:
        parts = [
            network(grey_levels(torch.from_numpy(images[at : at + 32]))).argmax(1) for at in range(0, len(images), 32)
        ]
        return torch.cat(parts).to(torch.uint8).numpy()

    return segment


def read_scores(table: Path) -> list[Score]:
    """The scores of a table written by an earlier, perhaps interrupted, run; none if there is no table."""
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return [
            Score(row["arm"], float(row["fraction"]), int(row["seed"]), row["group"], row["name"], float(row["dice"]))
            for row in csv.DictReader(file)
        ]


def _append(table: Path, scores: Sequence[Score]) -> None:
    # A training's rows go out in one write, so that a run that was killed has it whole or not at all.
    new = not table.is_file()
    lines = [",".join(COLUMNS)] if new else []
    lines += [f"{s.arm},{s.fraction},{s.seed},{s.group},{s.name},{s.dice:.6f}" for s in scores]
    with table.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")

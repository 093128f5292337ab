"""Are the images useful: does a segmenter trained with them do better on groups that nobody has seen?

For each set a small U-Net (MONAI) is trained on real images only, on real and synthetic ones by halves, and on
synthetic only, with 10, 25 and 100 % of the real train groups, each over several seeds and always for the same number
of iterations. Every arm has the same classical augmentation, since that is what generated images must add to. Synthetic
images are made from masks and contexts of the chosen groups alone. The generator itself has seen all train groups, so
what 10 % shows is what a site with few labels gains from a bundle made elsewhere, not from its own few images.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from csg_edge.conditions.masks import vary_by
from csg_edge.datasets.augmentation import Warp
from csg_edge.datasets.batches import BatchSource
from csg_edge.datasets.labelled_set import Image, LabelledSet
from csg_edge.generation.generator import Generator
from csg_edge.progress import Progress
from csg_edge.quality.bootstrap import DRAWS, MIN_GROUPS, expanded_tail
from csg_edge.quality.cases import set_of
from csg_edge.quality.evaluators import grey_levels, make_segmenter, segmentation_loss
from csg_edge.quality.record import Figure, Subject
from csg_edge.quality.segmentation import known_labels, mean_dice

ARMS = ("real", "real and synthetic", "synthetic")
VARIATION = "deform:0.5?,tilt:3deg?"  # of `csg_edge.conditions.masks`, as users make new masks
COLUMNS = ("arm", "fraction", "seed", "group", "name", "dice")
AUGMENTATION = "flip, gain, gamma, gain over depth, shift up to 6 %, tilt up to 4 degrees, zoom 0.86 to 1.05, elastic"


@dataclass(frozen=True)
class UsefulnessConfig:
    """The grid and the budget of each training."""

    fractions: tuple[float, ...] = (0.1, 0.25, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    synthetic: int = 400  # images made for each fraction and seed
    iterations: int = 800  # at 200 a segmenter of nerves had 0.30 Dice, at 600 0.50
    batch: int = 8
    size: int = 128  # pixels a side: 27 trainings a set take 40 minutes on one core


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
    """Run what `table` (CSV) does not hold yet, adding each training's scores to it; returns all scores.

    train: sets with their names; those with fewer than MIN_GROUPS groups among `held_out` are left out, since nothing
    could be said of them.
    """
    sets = judged_sets(train, held_out)
    scores = read_scores(table)
    done = {(set_of(score.group), score.arm, score.fraction, score.seed) for score in scores}
    grid = list(itertools.product(sets, config.fractions, config.seeds))
    progress = Progress("usefulness", len(grid) * len(ARMS), done=len(done), unit="trainings")
    for data, fraction, seed in grid:
        todo = [arm for arm in ARMS if (data.name, arm, fraction, seed) not in done]
        if not todo:
            continue
        judged = [index for index, group in enumerate(held_out.groups) if set_of(group) == data.name]
        small = held_out.take(judged).resized(config.size)
        real = choose_groups(data, fraction, seed=seed)
        synthetic = make_synthetic(generator, real, config, seed=seed).resized(config.size)
        real = real.resized(config.size)
        arms = {"real": [real], "real and synthetic": [real, synthetic], "synthetic": [synthetic]}
        for arm in todo:
            found = train_segmenter(arms[arm], len(generator.bundle.manifest.labels), config, seed=seed)
            dice = mean_dice(found(small.images), small.masks)
            new = [
                Score(arm, fraction, seed, group, name, float(value))
                for group, name, value in zip(small.groups, small.names, dice, strict=True)
                if np.isfinite(value)
            ]
            _append(table, new)
            scores += new
            progress.advance(note=f"{data.name}, {arm}, {fraction:.0%}, seed {seed}: Dice {np.nanmean(dice):.3f}")
    return scores


def judged_sets(train: Sequence[LabelledSet], held_out: LabelledSet) -> list[LabelledSet]:
    """The sets of which enough groups are held out."""
    groups = {data.name: {group for group in held_out.groups if set_of(group) == data.name} for data in train}
    return [data for data in train if len(groups[data.name]) >= MIN_GROUPS]


def usefulness_subjects(scores: Sequence[Score], *, seed: int) -> list[Subject]:
    """A subject for each set and share of its groups: mean Dice of each arm, and what generated images add to real
    ones.

    The interval of a difference, or of a mean, is over held-out groups and over the seeds of the trainings, both drawn
    anew; images count alike.
    """
    subjects = []
    for name, fraction in dict.fromkeys((set_of(score.group), score.fraction) for score in scores):
        found = [score for score in scores if set_of(score.group) == name and score.fraction == fraction]
        seeds = sorted({score.seed for score in found})
        images = sorted({(score.group, score.name) for score in found})
        dice = np.full((len(ARMS), len(seeds), len(images)), np.nan)
        for score in found:
            place = ARMS.index(score.arm), seeds.index(score.seed), images.index((score.group, score.name))
            dice[place] = score.dice
        groups = [group for group, _ in images]
        random = np.random.default_rng([seed, len(subjects)])
        real, both, synthetic = dice
        figures = {
            "usefulness_real": _seeded_interval(real, groups, random),
            "usefulness_both": _seeded_interval(both, groups, random),
            "usefulness_synthetic": _seeded_interval(synthetic, groups, random),
            "usefulness_gain": _seeded_interval(both - real, groups, random),
        }
        subjects.append(Subject(f"{name}, {fraction:.0%} of the groups", "usefulness", len(images), figures))
    return subjects


def _seeded_interval(values: NDArray[np.float64], groups: Sequence[str], random: np.random.Generator) -> Figure:
    """Mean of (seeds, images) values with its interval over groups and seeds."""
    names, members = np.unique(groups, return_inverse=True)
    draws = np.empty(DRAWS)
    for draw in range(DRAWS):
        weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)))[members]
        chosen = random.integers(len(values), size=len(values))
        draws[draw] = (values[chosen].mean(axis=0) @ weights) / weights.sum()
    tail = expanded_tail(len(names))
    low, high = np.quantile(draws, [tail, 1 - tail])
    note = f"{len(values)} seeds; interval over groups and seeds"
    return Figure(float(values.mean()), float(low), float(high), len(names), note)


def choose_groups(data: LabelledSet, fraction: float, *, seed: int) -> LabelledSet:
    """A share of the groups of a set, at least two, drawn by the seed; a larger share contains the smaller one."""
    groups = sorted(set(data.groups))
    order = np.random.default_rng([seed, len(groups)]).permutation(len(groups))
    kept = {groups[index] for index in order[: max(2, round(fraction * len(groups)))]}
    return data.take([index for index, group in enumerate(data.groups) if group in kept])


def make_synthetic(generator: Generator, data: LabelledSet, config: UsefulnessConfig, *, seed: int) -> LabelledSet:
    """Synthetic images of a set's masks, varied, under contexts of its other groups."""
    random = np.random.default_rng([seed, len(data)])
    schema = generator.bundle.manifest.schema
    images, masks, names, groups = [], [], [], []
    for number in range(config.synthetic):
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
    source = BatchSource(
        list(sets), shares, batch=config.batch, dropout=0.0, seed=seed, contexts=False,
        geometry=partial(Warp.draw, strength=1.0),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_segmenter(classes, activation="relu")  # PReLU: a sixth slower
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=config.iterations)
    network.train()
    half = torch.cpu._is_avx512_bf16_supported()
    for _, batch in source.stream(0, config.iterations):
        masks = torch.from_numpy(known_labels(batch.mask))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            scores = network(grey_levels(torch.from_numpy(batch.image)))
        loss = segmentation_loss(scores.float(), masks)
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

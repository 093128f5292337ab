"""What is generated for a validation: the same cases for every engine and for the teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from csg_edge.datasets.labelled_set import Image, LabelledSet, find_sets, read_set
from csg_edge.errors import InputError
from csg_edge.generation.generator import Generator
from csg_edge.labels import LabelSchema
from csg_edge.progress import Progress

PAIRS = 32  # cases made twice, with another seed, for diversity


@dataclass(frozen=True)
class RealData:
    """Real images: those the generator may have seen, and those of groups it has not."""

    train: LabelledSet
    held_out: LabelledSet
    sets: dict[str, dict[str, int]]  # set -> images and groups of both splits

    @property
    def groups(self) -> int:
        return len(set(self.held_out.groups))


@dataclass(frozen=True)
class Cases:
    """Inputs of the images to make: real masks of held-out groups, contexts of another held-out group, seeds.

    `wanted` holds the real images of the masks; the last `pairs` cases repeat the first ones under another seed.
    partners: for each repeat the position of the case whose seed it has, one of another group and context but of the
    same set, so that the two share the seed alone; -1 where there is none, and the seed is a new one.
    """

    wanted: LabelledSet
    contexts: LabelledSet
    seeds: tuple[int, ...]
    pairs: int
    partners: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.seeds)

    def made(self, images: Image) -> LabelledSet:
        """Images (N, H, W) uint8 that were made of these cases, with their masks, names, groups and contexts."""
        return replace(self.wanted, images=images, contexts=self.contexts.images)

    @property
    def single(self) -> int:
        """How many cases there are without the repeats."""
        return len(self.seeds) - self.pairs


class Reference(Protocol):
    """A teacher, by the images it makes of cases: what an engine's images are compared with."""

    @property
    def guidance(self) -> float:
        """Of its sampling; 1 is the plain model."""

    @property
    def key(self) -> str:
        """Stands for its weights and guidance. Raises CsgEdgeError for a folder that cannot be read."""

    def make(self, cases: Cases) -> LabelledSet:
        """Its images of the cases, from the noise of their seeds."""


def read_real(roots: Sequence[Path], schema: LabelSchema, *, size: int, split: str = "val") -> RealData:
    """Read every labelled set below `roots`, the train split and the split to judge on.

    Raises InputError if a set lacks either split, knows other classes, or has one group only.
    """
    train, held_out, sets = [], [], {}
    for directory in (directory for root in roots for directory in find_sets(root)):
        seen = read_set(directory, schema, split="train", size=size)
        judged = read_set(directory, schema, split=split, size=size)
        if len({*seen.groups, *judged.groups}) < 2:
            raise InputError(
                f"{directory}: one group only; a context must come from another group, so put at least two groups there"
            )
        train.append(seen)
        held_out.append(judged)
        sets[seen.name] = {
            "train_images": len(seen), "train_groups": len(set(seen.groups)),
            "held_out_images": len(judged), "held_out_groups": len(set(judged.groups)),
        }  # fmt: skip
    return RealData(LabelledSet.join(train), LabelledSet.join(held_out), sets)


def set_of(group: str) -> str:
    """The set that a group belongs to: `read_set` names groups `set/group`."""
    return group.split("/")[0]


def plan_cases(real: LabelledSet, *, count: int, seed: int, spare: LabelledSet | None = None) -> Cases:
    """`count` cases that go round all held-out images, then up to PAIRS of the first again for diversity.

    real: held-out images whose group names start with their set's name and a slash. spare: images whose contexts are
    taken where a set has one held-out group only. Raises InputError where that is needed and not given.
    """
    offered = real if spare is None else LabelledSet.join([real, spare])
    random = np.random.default_rng(seed)
    rounds = [random.permutation(len(real)) for _ in range(-(-count // len(real)))]
    order = np.concatenate(rounds)[:count]
    sets = np.array([set_of(group) for group in offered.groups])
    groups = np.array(offered.groups)
    contexts = []
    for index in order:
        others = np.flatnonzero((sets == sets[index]) & (groups != groups[index]))
        held_out = others[others < len(real)]
        if not len(others):
            raise InputError(f"{sets[index]}: no image of another group as context; put at least two groups there")
        contexts.append(int(random.choice(held_out if len(held_out) else others)))
    pairs = min(PAIRS, count)
    seeds = [int(value) for value in random.integers(2**63, size=count + pairs)]
    partners = []
    for index in range(pairs):
        apart = [
            other for other in range(count)
            if sets[order[other]] == sets[order[index]] and groups[order[other]] != groups[order[index]]
            and groups[contexts[other]] != groups[contexts[index]]
        ]  # fmt: skip
        partners.append(int(random.choice(apart)) if apart else -1)
        if apart:
            seeds[count + index] = seeds[partners[index]]
    order, contexts = np.concatenate([order, order[:pairs]]), contexts + contexts[:pairs]
    return Cases(real.take(order), offered.take(contexts), tuple(seeds), pairs, tuple(partners))


def make_with_engine(generator: Generator, cases: Cases, *, label: str) -> LabelledSet:
    """The images of one engine, one call each, as it is used."""
    progress = Progress(label, len(cases), unit="images")
    images = []
    for index, seed in enumerate(cases.seeds):
        images.append(generator.generate_one(cases.wanted.masks[index], cases.contexts.images[index], seed))
        progress.advance()
    return cases.made(np.stack(images))


def fingerprint(cases: Cases) -> str:
    """A hash over masks, contexts and seeds: two validations with the same one judged the same cases."""
    digest = hashlib.sha256()
    for array in (cases.wanted.images, cases.wanted.masks, cases.contexts.images):
        digest.update(array.tobytes())
    digest.update(repr(cases.seeds).encode())
    return digest.hexdigest()[:16]

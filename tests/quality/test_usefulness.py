"""The usefulness grid in small: what each arm is trained on, and that a run goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import csg_edge
from csg_edge.datasets.labelled_set import LabelledSet, read_set
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.labels import MSK_SCHEMA
from csg_edge.quality.cases import read_real
from csg_edge.quality.usefulness import (
    ARMS,
    Score,
    UsefulnessConfig,
    choose_groups,
    judged_sets,
    make_synthetic,
    measure_usefulness,
    read_scores,
    usefulness_subjects,
)

SMALL = UsefulnessConfig(fractions=(0.5,), seeds=(0, 1), synthetic=6, iterations=3, batch=4, size=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("usefulness") / "phantoms"
    write_phantoms(path, count=150, seed=21)
    return path


@pytest.fixture(scope="module")
def train(folder: Path) -> LabelledSet:
    return read_set(folder, MSK_SCHEMA, split="train", size=256)


def test_a_larger_share_of_the_groups_contains_the_smaller_one(train: LabelledSet) -> None:
    quarter, half, whole = (set(choose_groups(train, share, seed=3).groups) for share in (0.25, 0.5, 1.0))
    assert quarter < half < whole == set(train.groups)
    assert set(choose_groups(train, 0.5, seed=4).groups) != half


def test_synthetic_images_use_masks_and_contexts_of_the_chosen_groups_alone(train: LabelledSet) -> None:
    chosen = choose_groups(train, 0.25, seed=0)
    with csg_edge.load() as generator:
        made = make_synthetic(generator, chosen, SMALL, seed=0)
        again = make_synthetic(generator, chosen, SMALL, seed=0)
    assert len(made) == 6 and set(made.groups) <= set(chosen.groups)
    assert np.array_equal(made.images, again.images) and np.array_equal(made.masks, again.masks)
    assert set(np.unique(made.masks)) <= set(np.unique(chosen.masks))


def test_every_arm_is_scored_on_every_held_out_image_and_nothing_is_trained_twice(
    folder: Path, train: LabelledSet, tmp_path: Path
) -> None:
    held_out = read_real([folder], MSK_SCHEMA, size=256).held_out
    table = tmp_path / "usefulness.csv"
    with csg_edge.load() as generator:
        scores = measure_usefulness(generator, [train], held_out, SMALL, table=table)
        assert {(score.arm, score.seed) for score in scores} == {(arm, seed) for arm in ARMS for seed in SMALL.seeds}
        assert len(scores) == len(ARMS) * len(SMALL.seeds) * len(held_out)
        assert not {score.group for score in scores} & set(train.groups)

        # As if stopped after all but the last training.
        lines = table.read_text().splitlines()
        table.write_text("\n".join(lines[: -len(held_out)]) + "\n")
        resumed = measure_usefulness(generator, [train], held_out, SMALL, table=table)
    before = {(s.arm, s.seed, s.name): s.dice for s in scores}
    after = {(s.arm, s.seed, s.name): s.dice for s in resumed}
    assert before.keys() == after.keys()
    assert all(abs(before[key] - after[key]) < 0.05 for key in before)
    assert len(read_scores(table)) == len(scores)


def test_the_gain_is_that_of_the_scores_with_an_interval_over_groups_and_seeds() -> None:
    random = np.random.default_rng(0)
    scores = []
    for seed in range(3):
        for group in range(12):
            for image in range(2):
                real = 0.5 + 0.1 * random.normal()
                for arm, dice in zip(ARMS, (real, real + 0.06, real - 0.1), strict=True):
                    scores.append(Score(arm, 0.25, seed, f"a/{group}", f"{group}-{image}", dice))
    (subject,) = usefulness_subjects(scores, seed=0)
    assert subject.name == "a, 25% of the groups" and subject.images == 24
    gain = subject.figures["usefulness_gain"]
    assert gain.value == pytest.approx(0.06) and gain.low == pytest.approx(0.06) and gain.groups == 12
    both, real_ones = subject.figures["usefulness_both"], subject.figures["usefulness_real"]
    assert both.value - real_ones.value == pytest.approx(0.06)
    assert real_ones.low < real_ones.value < real_ones.high


def test_sets_with_few_held_out_groups_are_left_out(train: LabelledSet, folder: Path) -> None:
    held_out = read_real([folder], MSK_SCHEMA, size=256).held_out
    assert [item.name for item in judged_sets([train], held_out)] == [train.name]
    few = held_out.take([i for i, group in enumerate(held_out.groups) if group in sorted(set(held_out.groups))[:4]])
    assert judged_sets([train], few) == []

"""What is generated: contexts of other groups, every mask as often, the same cases for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA, LabelSchema
from csg_edge.quality.cases import PAIRS, fingerprint, plan_cases, read_real


def real(count: int = 12) -> LabelledSet:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32)).astype(np.uint8)
    names = tuple(map(str, range(count)))
    groups = tuple(f"{'ab'[index % 2]}/{index // 4}" for index in range(count))
    return LabelledSet(images, images % 3, names, groups)


def test_contexts_come_from_another_group_of_the_same_set() -> None:
    cases = plan_cases(real(), count=50, seed=3)
    for own, other in zip(cases.wanted.groups, cases.contexts.groups, strict=True):
        assert own != other and own[0] == other[0]


def test_every_mask_is_used_as_often_and_the_first_cases_come_again_under_other_seeds() -> None:
    cases = plan_cases(real(), count=48, seed=3)
    assert cases.single == 48 and cases.pairs == PAIRS and len(cases) == 48 + PAIRS
    assert {cases.wanted.names[:48].count(name) for name in real().names} == {4}
    assert np.array_equal(cases.contexts.images[48:], cases.contexts.images[:PAIRS])
    assert cases.wanted.names[48:] == cases.wanted.names[:PAIRS]
    assert len(set(cases.seeds[:48])) == 48


def test_a_repeat_has_the_seed_of_a_case_with_which_it_shares_nothing_else() -> None:
    cases = plan_cases(real(), count=48, seed=3)
    assert len(cases.partners) == PAIRS and min(cases.partners) >= 0
    for index, partner in enumerate(cases.partners):
        assert cases.seeds[48 + index] == cases.seeds[partner] != cases.seeds[index]
        for side in (cases.wanted, cases.contexts):
            assert side.groups[index] != side.groups[partner]
            assert side.groups[index][0] == side.groups[partner][0]


def test_a_set_with_one_held_out_group_takes_contexts_from_others_and_shares_no_seed() -> None:
    samples = real()
    held_out = samples.take([index for index, group in enumerate(samples.groups) if group in ("a/0", "b/0", "b/1")])
    spare = samples.take([index for index, group in enumerate(samples.groups) if group in ("a/1", "b/2")])
    cases = plan_cases(held_out, count=20, seed=0, spare=spare)
    for own, other in zip(cases.wanted.groups, cases.contexts.groups, strict=True):
        assert other == "a/1" if own == "a/0" else other != own and other != "b/2"
    assert all((partner < 0) == (cases.wanted.groups[i] == "a/0") for i, partner in enumerate(cases.partners))
    assert len(set(cases.seeds)) >= 20
    with pytest.raises(InputError, match="at least two groups"):
        plan_cases(held_out, count=20, seed=0)


def test_the_seed_decides_the_cases() -> None:
    assert fingerprint(plan_cases(real(), count=20, seed=1)) == fingerprint(plan_cases(real(), count=20, seed=1))
    assert fingerprint(plan_cases(real(), count=20, seed=1)) != fingerprint(plan_cases(real(), count=20, seed=2))


def test_a_split_that_the_data_lacks_and_foreign_classes_are_refused(phantom_set: Path) -> None:
    with pytest.raises(InputError, match="no labelled image in split 'exam'"):
        read_real([phantom_set], MSK_SCHEMA, size=64, split="exam")
    with pytest.raises(InputError, match="no class"):
        read_real([phantom_set], LabelSchema(("background", "liver")), size=64)

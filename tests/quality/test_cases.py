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
    assert len(set(cases.seeds)) == len(cases)


def test_the_seed_decides_the_cases() -> None:
    assert fingerprint(plan_cases(real(), count=20, seed=1)) == fingerprint(plan_cases(real(), count=20, seed=1))
    assert fingerprint(plan_cases(real(), count=20, seed=1)) != fingerprint(plan_cases(real(), count=20, seed=2))


def test_a_split_that_the_data_lacks_and_foreign_classes_are_refused(phantom_set: Path) -> None:
    with pytest.raises(InputError, match="no labelled image in split 'exam'"):
        read_real([phantom_set], MSK_SCHEMA, size=64, split="exam")
    with pytest.raises(InputError, match="no class"):
        read_real([phantom_set], LabelSchema(("background", "liver")), size=64)

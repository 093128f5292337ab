"""Copies of training images are caught, also when altered; collapsed seeds and ignored contexts are as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import degrade
import numpy as np
import pytest
from conftest import phantom_samples, real_samples

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.quality.diversity import diversity_figure, seed_distances, seed_feature_distances
from csg_edge.quality.memorisation import feature_distances, image_distances, memorisation, own_distances
from csg_edge.quality.style import context_similarity

ALTERED: dict[str, Callable[[LabelledSet, np.random.Generator], LabelledSet]] = {
    "exact": lambda copies, rng: copies,
    "gain": lambda copies, rng: degrade.gain(copies),
    "shifted by 3 px": lambda copies, rng: degrade.shift_images(copies, rows=3, columns=-3),
    "mirrored": lambda copies, rng: degrade.flip(copies),
    "noisy": lambda copies, rng: degrade.noise(copies, grey_levels=6, rng=rng),
    "all of it": lambda copies, rng: degrade.noise(
        degrade.gain(degrade.flip(degrade.shift_images(copies, rows=3, columns=3))), grey_levels=6, rng=rng
    ),
}


@pytest.fixture(scope="module", params=["phantom", "real"])
def sets(request: pytest.FixtureRequest) -> tuple[LabelledSet, LabelledSet, np.ndarray]:
    """Training images, held-out images, and the distances between them."""
    if request.param == "phantom":
        train, held = phantom_samples(range(200), range(200)), phantom_samples(range(1000, 1060), range(1000, 1060))
    else:
        root: Path = request.getfixturevalue("real_data")
        train, held = real_samples(root, "train", a_group=3), real_samples(root, "val")
    return train, held, image_distances(held.images, train.images)


@pytest.mark.parametrize("name", ALTERED)
def test_every_copy_is_caught(
    name: str, sets: tuple[LabelledSet, LabelledSet, np.ndarray], rng: np.random.Generator
) -> None:
    train, held, to_train = sets
    chosen = rng.choice(len(train), len(held))
    copies = ALTERED[name](held.with_images(train.images[chosen]), rng)
    found = memorisation(image_distances(copies.images, train.images), to_train, copies.groups, held.groups, rng=rng)
    assert found.near.value == 1
    assert found.ratio.value < 0.1
    assert len(found.suspects) == len(copies)
    assert np.array_equal(train.images[found.generated.indices], train.images[chosen])  # near-duplicates are no copies


def test_images_that_copy_nothing_are_not_accused(
    sets: tuple[LabelledSet, LabelledSet, np.ndarray], rng: np.random.Generator
) -> None:
    train, held, to_train = sets
    grown = degrade.rescale_speckle(held)  # an image set of its own, as far from the training images
    found = memorisation(image_distances(grown.images, train.images), to_train, grown.groups, held.groups, rng=rng)
    assert found.near.low <= 0.05
    assert 0.9 < found.ratio.value < 1.2
    assert len(found.suspects) <= 2


def test_three_copies_among_sixty_are_named(
    sets: tuple[LabelledSet, LabelledSet, np.ndarray], rng: np.random.Generator
) -> None:
    train, held, to_train = sets
    images = held.images.copy()
    images[[5, 17, 40]] = train.images[[1, 2, 3]]
    found = memorisation(image_distances(images, train.images), to_train, held.groups, held.groups, rng=rng)
    assert set(found.suspects) == {5, 17, 40}


def test_copies_of_the_own_context_are_caught(sets: tuple[LabelledSet, LabelledSet, np.ndarray]) -> None:
    train, held, _ = sets
    contexts = train.images[: len(held)]
    assert own_distances(contexts[:8, :, ::-1].copy(), contexts[:8]).max() < 0.01
    assert np.median(own_distances(held.images[:8], contexts[:8])) > 0.3


def test_feature_distances_take_the_nearer_of_both_sides() -> None:
    references = np.eye(4, dtype=np.float32)
    found = feature_distances(references[:2] + 3, references, references[:2])
    assert found.argmin(axis=1).tolist() == [0, 1]
    assert found.min(axis=1) == pytest.approx([0, 0], abs=1e-6)


def test_memorisation_refuses_what_it_cannot_judge(rng: np.random.Generator) -> None:
    groups = [f"g{i}" for i in range(30)]
    distances = rng.random((30, 5)).astype(np.float32)
    with pytest.raises(InputError, match="at least 20"):
        memorisation(distances, distances[:10], groups, groups[:10], rng=rng)
    with pytest.raises(InputError, match="same training set"):
        memorisation(distances, distances[:, :4], groups, groups, rng=rng)
    with pytest.raises(InputError, match="one size"):
        image_distances(phantom_samples([1], [1], size=128).images, phantom_samples([1], [1], size=96).images)


def test_seeds_that_change_nothing_have_no_diversity(rng: np.random.Generator) -> None:
    conditions = range(8)
    other_speckle = phantom_samples([*conditions, *range(50, 58)], [*conditions] * 2, size=128)
    images = np.stack([other_speckle.images[:8], other_speckle.images[8:]], axis=1)
    groups = [f"g{i}" for i in conditions]
    assert diversity_figure(seed_distances(images), groups, rng=rng).low > 5
    collapsed = np.repeat(images[:, :1], 3, axis=1)
    assert diversity_figure(seed_distances(collapsed), groups, rng=rng).value == 0
    features = rng.normal(size=(8, 1, 5)).astype(np.float32)
    assert seed_feature_distances(np.repeat(features, 3, axis=1)) == pytest.approx(0)
    with pytest.raises(InputError, match="at least two seeds"):
        seed_distances(images[:, :1])


def test_known_distances_between_seeds() -> None:
    images = np.zeros((1, 3, 32, 32), np.uint8)
    images[0, 1], images[0, 2] = 10, 40
    assert seed_distances(images) == pytest.approx([(10 + 40 + 30) / 3])


@pytest.fixture(scope="module")
def in_context() -> LabelledSet:
    """Phantoms whose contexts are other anatomies under the same look; of one scene, which is no matter of style."""
    looks = range(300, 340)
    made = phantom_samples(range(40), looks, group=1, scene="muscle")
    return replace(made, contexts=phantom_samples(range(600, 640), looks, scene="muscle").images)


def test_own_context_is_nearer_and_shuffled_contexts_are_at_chance(
    in_context: LabelledSet, rng: np.random.Generator
) -> None:
    own = context_similarity(in_context, rng=rng)
    assert own.above_shuffled.value > 0.9
    assert own.above_shuffled.low > 0.85
    shuffled = context_similarity(degrade.shuffle_contexts(in_context, rng=rng), rng=rng)
    assert shuffled.above_shuffled.low <= 0.5 <= shuffled.above_shuffled.high
    assert own.error.value < 0.85 * shuffled.error.value
    identical = context_similarity(in_context.with_images(in_context.contexts), rng=rng)
    assert identical.above_shuffled.value == 1


def test_another_real_image_of_the_group_is_nearer_than_those_of_others(
    real_data: Path, rng: np.random.Generator
) -> None:
    real = real_samples(real_data, "train", a_group=2)
    pairs = [index for index in range(1, len(real)) if real.groups[index] == real.groups[index - 1]]
    twins = replace(real.take(pairs), contexts=real.images[[index - 1 for index in pairs]])
    strata = [group.split("/")[0] for group in twins.groups]
    assert context_similarity(twins, rng=rng, strata=strata).above_shuffled.low > 0.95


def test_contexts_of_the_own_group_are_no_others(in_context: LabelledSet, rng: np.random.Generator) -> None:
    """Two contexts a group, alike but for one grey level; every image is one of the second kind."""
    first = in_context.take(range(0, 40, 2))
    assert first.contexts is not None
    twin = np.clip(first.contexts.astype(int) + 1, 0, 255).astype(np.uint8)
    images = LabelledSet(
        np.concatenate([twin, twin]), np.concatenate([first.masks] * 2), (*first.names, *first.names),
        (*first.groups, *first.groups), np.concatenate([first.contexts, twin]),
    )  # fmt: skip
    groups = [str(index % 20) for index in range(40)]
    assert context_similarity(images, rng=rng).above_shuffled.value < 1
    assert context_similarity(images, rng=rng, context_groups=groups).above_shuffled.value == 1
    with pytest.raises(InputError, match="context groups"):
        context_similarity(images, rng=rng, context_groups=groups[1:])


def test_only_contexts_of_one_stratum_are_compared(in_context: LabelledSet, rng: np.random.Generator) -> None:
    strata = [str(index % 20) for index in range(len(in_context))]
    shares = context_similarity(in_context, rng=rng, strata=strata).shares
    assert set(shares) <= {0.0, 1.0}  # one other context each
    assert not set(context_similarity(in_context, rng=rng).shares) <= {0.0, 1.0}
    two = in_context.take([0, 1, 2, 3])
    with pytest.raises(InputError, match="two contexts in each stratum"):
        context_similarity(two, rng=rng, strata=["a", "a", "a", "b"])


def test_context_similarity_refuses_what_it_cannot_judge(in_context: LabelledSet, rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="without contexts"):
        context_similarity(replace(in_context, contexts=None), rng=rng)
    one = np.repeat(in_context.contexts[:1], len(in_context), axis=0)
    with pytest.raises(InputError, match="at least two contexts"):
        context_similarity(replace(in_context, contexts=one), rng=rng)

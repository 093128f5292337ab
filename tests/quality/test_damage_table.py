"""Every metric notices every damage that it claims to notice; every damage is noticed by several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import degrade
import numpy as np
import pytest
from conftest import CLASSES, Pair, Views

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.quality.c2st import c2st_of_features, c2st_of_pixels
from csg_edge.quality.descriptors import standardise, texture_features
from csg_edge.quality.distribution import frechet, gaussian_kernel, group_mmd, kid, polynomial_kernel
from csg_edge.quality.histograms import histogram_gap
from csg_edge.quality.speckle import speckle_figures
from csg_edge.quality.spectrum import spectrum_figure

DAMAGES: dict[str, Callable[[LabelledSet], LabelledSet]] = {
    "blur": degrade.blur,
    "speckle size": degrade.rescale_speckle,
    "mask shift": degrade.shift_masks,
    "one image": degrade.repeat_one,
    "gain": degrade.gain,
}
TEXTURE = {"blur", "speckle size", "one image"}


@dataclass(frozen=True)
class Claim:
    """What a metric must notice, and by how much more than what an undamaged set scores."""

    damages: set[str]
    margin: float


CLAIMS = {
    "spectrum gap": Claim(TEXTURE, 0.2),
    "speckle gap": Claim(TEXTURE, 0.2),
    "histogram gap": Claim({"mask shift", "one image", "gain"}, 4),
}
FEATURE_CLAIMS = {
    "KID, image": Claim(TEXTURE, 0.3),
    "KID, joint": Claim(TEXTURE | {"mask shift"}, 0.2),
    "MMD, image": Claim(TEXTURE, 0.02),
    "MMD, joint": Claim(TEXTURE | {"mask shift"}, 0.01),
    "Frechet, image": Claim(TEXTURE, 2),
    "Frechet, joint": Claim(TEXTURE | {"mask shift"}, 2),
    "KID of subsets, joint": Claim(TEXTURE | {"mask shift"}, 0.2),
    "C2ST, joint": Claim(TEXTURE | {"mask shift", "gain"}, 0.1),
}
PIXEL_CLAIM = Claim(TEXTURE, 0.1)


def random() -> np.random.Generator:
    return np.random.default_rng(0)


MEASURES: dict[str, Callable[[LabelledSet, LabelledSet], float]] = {
    "spectrum gap": lambda real, made: spectrum_figure(real, made, rng=random()).value,
    "speckle gap": lambda real, made: speckle_figures(real, made, rng=random())["all"].value,
    "histogram gap": lambda real, made: histogram_gap(real, made, classes=CLASSES, rng=random()).mean.value,
}


def feature_measures(real: LabelledSet, made: LabelledSet, real_views: Views, made_views: Views) -> dict[str, float]:
    found: dict[str, float] = {}
    for view, features in real_views.items():
        one, other = standardise(features, made_views[view])
        groups = (real.groups, made.groups)
        found |= {
            f"KID, {view}": group_mmd(one, other, *groups, kernel=polynomial_kernel, rng=random()).value,
            f"MMD, {view}": group_mmd(one, other, *groups, kernel=gaussian_kernel(one), rng=random()).value,
            f"Frechet, {view}": frechet(one, other),
            f"KID of subsets, {view}": kid(one, other, seed=0).mean,
            f"C2ST, {view}": c2st_of_features(one, other, *groups, seed=0).accuracy.value,
        }
    return found


def assert_noticed(name: str, claim: Claim, scores: dict[str, float]) -> None:
    for damage in sorted(claim.damages):
        assert scores[damage] > scores["none"] + claim.margin, (name, damage, scores)


@pytest.mark.parametrize("name", CLAIMS)
def test_measures_of_images_notice_what_they_claim(name: str, pair: Pair) -> None:
    real, made = pair
    claim = CLAIMS[name]
    scores = {"none": MEASURES[name](real, made)}
    scores |= {damage: MEASURES[name](real, DAMAGES[damage](made)) for damage in claim.damages}
    assert_noticed(name, claim, scores)


def test_measures_of_features_notice_what_they_claim(
    pair: Pair, describe: Callable[[LabelledSet], dict[str, Views]]
) -> None:
    real, made = pair
    by_real = describe(real)  # once for all: the passes over the images are what this test costs
    scores: dict[str, dict[str, dict[str, float]]] = {source: {} for source in by_real}
    for damage, apply in {"none": lambda samples: samples, **DAMAGES}.items():
        damaged = apply(made)
        for source, views in describe(damaged).items():
            scores[source][damage] = feature_measures(real, damaged, by_real[source], views)
    for source, found in scores.items():
        for name, claim in FEATURE_CLAIMS.items():
            values = {damage: figures[name] for damage, figures in found.items()}
            assert_noticed(f"{name}, {source}", claim, values)


@pytest.mark.slow
def test_a_network_on_pixels_notices_what_it_claims(phantom_pair: Pair) -> None:
    real, made = phantom_pair
    scores = {"none": c2st_of_pixels(real, made, seed=0).accuracy.value}
    scores |= {
        damage: c2st_of_pixels(real, DAMAGES[damage](made), seed=0).accuracy.value for damage in PIXEL_CLAIM.damages
    }
    assert_noticed("C2ST, pixels", PIXEL_CLAIM, scores)


def test_every_damage_is_claimed_by_several_metrics() -> None:
    claims = [*CLAIMS.values(), *FEATURE_CLAIMS.values(), PIXEL_CLAIM]
    for damage in DAMAGES:
        assert sum(damage in claim.damages for claim in claims) >= 2, damage


def test_image_only_kid_of_a_shifted_mask_is_unchanged(phantom_pair: Pair) -> None:
    """Why the joint features are needed: nothing that looks at images alone can notice another mask."""
    made = phantom_pair[1]
    assert np.array_equal(texture_features(made), texture_features(degrade.shift_masks(made)))

"""Long-range structure: directions as drawn, damage seen where nothing else sees it, real against real at chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import degrade
import numpy as np
import pytest
from conftest import CLASSES, Pair

from csg_edge.datasets.labelled_set import LabelledSet, read_set
from csg_edge.labels import MSK_SCHEMA
from csg_edge.quality.bootstrap import split_groups
from csg_edge.quality.c2st import c2st_of_features
from csg_edge.quality.comparison import structure_figures
from csg_edge.quality.histograms import histogram_gap
from csg_edge.quality.spectrum import spectrum_figure
from csg_edge.quality.structure import (
    WHOLE,
    Structure,
    coherence_shift,
    describe_structure,
    direction_gap,
    direction_spread,
    fibre_direction,
    ridge_length,
)

MUSCLE = MSK_SCHEMA.index("muscle")


def stripes(degrees: float, *, period: float = 12, size: int = 256) -> np.ndarray:
    """Bright lines that rise to the right by some degrees."""
    rows, columns = np.mgrid[:size, :size]
    angle = np.deg2rad(degrees)
    phase = (columns * np.sin(angle) + rows * np.cos(angle)) / period
    return (127 + 100 * np.sin(2 * np.pi * phase)).astype(np.uint8)


def set_of_images(images: list[np.ndarray], mask: np.ndarray | None = None) -> LabelledSet:
    masks = np.stack([mask if mask is not None else np.zeros_like(image) for image in images])
    names = tuple(map(str, range(len(images))))
    return LabelledSet(np.stack(images), masks, names, tuple(f"a/{name}" for name in names))


def describe(samples: LabelledSet) -> Structure:
    return describe_structure(samples, classes=CLASSES)


@pytest.mark.parametrize("degrees", [-75, -30, -10, 0, 5, 20, 60, 89])
def test_the_direction_of_stripes_is_measured_as_drawn(degrees: float) -> None:
    found, coherence = fibre_direction(stripes(degrees))
    apart = (found - degrees + 90) % 180 - 90
    assert np.abs(np.median(apart)) < 0.2
    assert np.quantile(np.abs(apart), 0.95) < 4  # at the borders, where the image is mirrored
    assert coherence.mean() > 0.97


def test_noise_has_no_direction(rng: np.random.Generator) -> None:
    noise = rng.normal(127, 40, (8, 256, 256)).clip(0, 255).astype(np.uint8)
    found = describe(set_of_images(list(noise)))
    assert found.coherence[:, WHOLE].max() < 0.3
    assert found.direction[:, WHOLE].max() < 0.08  # of 36 bins, 0.028 each if even


def test_neither_gain_nor_contrast_counts(real_pair: Pair) -> None:
    samples = real_pair[0].take(range(20))
    dim = samples.with_images((samples.images * 0.6).astype(np.uint8))
    before, after = describe(samples), describe(dim)
    assert np.abs(before.coherence[:, WHOLE] - after.coherence[:, WHOLE]).max() < 0.02
    assert np.abs(before.direction[:, WHOLE] - after.direction[:, WHOLE]).max() < 0.02


def test_mirrored_images_have_mirrored_directions(real_pair: Pair) -> None:
    samples = real_pair[0].take(range(12))
    there, back = describe(samples), describe(degrade.flip(samples))
    assert np.allclose(there.direction[:, WHOLE], back.direction[:, WHOLE, ::-1], atol=0.01)
    assert np.allclose(there.coherence[:, WHOLE], back.coherence[:, WHOLE], atol=0.01)


def test_each_class_is_measured_by_itself() -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[:128] = MUSCLE
    image = np.where(mask == MUSCLE, stripes(30), stripes(-20))
    found = describe(set_of_images([image, image], mask))
    degrees = np.linspace(-87.5, 87.5, 36)
    assert abs(found.direction[0, MUSCLE] @ degrees - 30) < 4
    assert found.coherence[0, MUSCLE] > 0.9 > found.coherence[0, WHOLE] - 0.1
    assert np.isnan(found.coherence[0, 1]) and np.isnan(found.features[0, 1]).all()
    assert found.spread[0, MUSCLE] < found.spread[0, WHOLE]


def test_the_gap_of_direction_goes_round_the_circle_of_axes() -> None:
    groups = ["a/0"], ["a/1"]
    level, nearly = (describe(set_of_images([stripes(angle)])) for angle in (85.1, -84.9))

    def gap(one: Structure, other: Structure) -> float:
        figure = direction_gap(one, other, groups, rng=np.random.default_rng(0))
        assert figure is not None
        return figure.value

    assert gap(level, nearly) == pytest.approx(10, abs=3)
    assert gap(level, level) == 0


def test_broken_lines_have_shorter_ridges(rng: np.random.Generator) -> None:
    whole, broken = [], []
    for _ in range(6):
        image = rng.normal(60, 12, (256, 256)).clip(0, 255).astype(np.uint8)
        cut = image.copy()
        for row in range(20, 240, 24):
            cv2.line(image, (0, row), (255, row + 10), 220, 2)
            for start in range(0, 256, 32):
                cv2.line(cut, (start, row + start * 10 // 256), (start + 16, row + (start + 16) * 10 // 256), 220, 2)
        whole.append(image)
        broken.append(cut)
    groups = [[f"a/{i}" for i in range(6)]] * 2
    figure = ridge_length(describe(set_of_images(whole)), describe(set_of_images(broken)), groups, rng=rng)
    assert figure is not None and figure.value < 0.5


DAMAGES: dict[str, Callable[[LabelledSet], LabelledSet]] = {
    "tiles shuffled": lambda samples: degrade.shuffle_tiles(samples, rng=np.random.default_rng(0)),
    "tiles mirrored": degrade.mirror_tiles,
    "phase scrambled": lambda samples: degrade.scramble_phase(samples, label=MUSCLE, rng=np.random.default_rng(0)),
}


def muscle_test(real: Structure, made: Structure, groups: tuple[tuple[str, ...], tuple[str, ...]]) -> float:
    _, test = structure_figures(real, made, groups, seed=0, column=MUSCLE, full=True)
    assert test is not None
    return test.accuracy.value


def test_damage_to_structure_is_seen_by_structure_alone(pair: Pair) -> None:
    """Blur, speckle and a shift stay with what caught them: see test_damage_table."""
    real, made = pair
    groups = real.groups, made.groups
    reference = describe(real)
    whole = describe(made)
    chance = muscle_test(reference, whole, groups)
    coherence = coherence_shift(reference, whole, groups, column=MUSCLE, rng=np.random.default_rng(0))
    spectrum = spectrum_figure(real, made, rng=np.random.default_rng(0)).value
    greys = histogram_gap(real, made, classes=CLASSES, rng=np.random.default_rng(0)).mean.value
    blurred = spectrum_figure(real, degrade.blur(made), rng=np.random.default_rng(0)).value
    for name, damage in DAMAGES.items():
        broken = damage(made)
        found = describe(broken)
        assert muscle_test(reference, found, groups) > chance + 0.15, name
        shift = coherence_shift(reference, found, groups, column=MUSCLE, rng=np.random.default_rng(0))
        assert shift is not None and coherence is not None and shift.value < coherence.value - 0.1, name
        assert spectrum_figure(real, broken, rng=np.random.default_rng(0)).value < spectrum + 0.15 < blurred / 5, name
        assert histogram_gap(real, broken, classes=CLASSES, rng=np.random.default_rng(0)).mean.value < greys + 1, name


@pytest.mark.parametrize(
    "name", ["dltrack_aponeurosis", "usgra_nerve_vessel", "timtrack_muscle", "ultrabones_lower_leg"]
)
def test_real_against_real_is_at_chance(real_data: Path, name: str) -> None:
    parts = [read_set(real_data / name, MSK_SCHEMA, split=split, size=256) for split in ("train", "val")]
    samples = LabelledSet.join(parts)
    samples = samples.take([index for members in samples.indices_by_group().values() for index in members[:4]])
    assert len(set(samples.groups)) >= 8
    found = describe(samples)
    accuracies, shifts = [], []
    for split in range(6):
        one, other = split_groups(samples.groups, rng=np.random.default_rng(split))
        groups = [[samples.groups[index] for index in half] for half in (one, other)]
        halves = found.take(one), found.take(other)
        test = c2st_of_features(
            halves[0].features[:, WHOLE], halves[1].features[:, WHOLE], groups[0], groups[1], seed=0
        )
        accuracies.append(test.accuracy.value)
        shift = coherence_shift(*halves, groups, rng=np.random.default_rng(0))
        spread = direction_spread(*halves, groups, rng=np.random.default_rng(0))
        assert shift is not None and spread is not None
        shifts.append(shift.value)
        assert 0.7 < spread.value < 1.4
    error = np.std(accuracies, ddof=1) / np.sqrt(len(accuracies))
    assert np.mean(accuracies) < 0.5 + max(0.05, 2 * error), accuracies
    assert abs(np.mean(shifts)) < 0.8, shifts

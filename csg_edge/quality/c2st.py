"""Can a classifier tell generated images from real ones? The classifier two-sample test (C2ST).

Lopez-Paz & Oquab, Revisiting Classifier Two-Sample Tests, arXiv 1610.06545 (ICLR 2017).

Accuracy 0.5 means that it cannot. Folds are drawn over groups: a real image and what was generated from its mask are
always on one side, so that the classifier cannot pass by knowing the anatomy. Both sets go the same way, as uint8 of
one size, so that neither rounding nor resizing gives them away. With few groups a classifier scores a little *below*
0.5 on equal sets (what is left out of a class moves the rest away from it): judge against a real-against-real control.
The interval resamples the groups judged, not the training of the classifier, and is a little narrow for it: on equal
sets of 25 + 25 groups it held 0.5 in 26 of 30 trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.quality.bootstrap import Weights, group_interval
from csg_edge.quality.checks import Features, check_feature_pair, check_features, check_pair
from csg_edge.quality.record import Figure

FOLDS = 5
REPEATS = 3
REGULARISATION = 0.1  # scikit-learn's C
PIXEL_FOLDS = 3
PIXEL_STEPS = 100
PIXEL_BATCH = 32

_Fit = Callable[[NDArray[np.intp], NDArray[np.intp], int], NDArray[np.float64]]


@dataclass(frozen=True)
class C2ST:
    """accuracy: the C2ST accuracy, balanced over the two sets, out of fold; 0.5 ideal.

    real, generated: (N,) mean score of each image, above 0 if taken for generated: the report shows the most telling.
    """

    accuracy: Figure
    real: NDArray[np.float64]
    generated: NDArray[np.float64]


def c2st_of_features(
    real: Features,
    generated: Features,
    real_groups: Sequence[str],
    generated_groups: Sequence[str],
    *,
    seed: int,
) -> C2ST:
    """Regularised logistic regression on (N, D) features; REPEATS draws of the folds are averaged.

    Raises InputError for fewer than two groups a side.
    """
    check_feature_pair(real, generated)
    check_features(real, real_groups, what="real features")
    check_features(generated, generated_groups, what="generated features")
    features = np.concatenate([real, generated]).astype(np.float64)
    labels = _labels(len(real), len(generated))

    def fit(train: NDArray[np.intp], test: NDArray[np.intp], _: int) -> NDArray[np.float64]:
        classifier = make_pipeline(
            StandardScaler(), LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=1000)
        )
        classifier.fit(features[train], labels[train])
        return np.asarray(classifier.decision_function(features[test]))

    return _cross_validate(fit, real_groups, generated_groups, folds=FOLDS, repeats=REPEATS, seed=seed)


def c2st_of_pixels(
    real: LabelledSet, generated: LabelledSet, *, seed: int, progress: Callable[[int, int], None] | None = None
) -> C2ST:
    """A small convolutional network on the pixels, the stricter test: PIXEL_STEPS steps in each of PIXEL_FOLDS folds.

    It does not see the masks. progress: called with folds done and folds in all. Raises InputError for images of
    different sizes or no multiple of 4, or for fewer than two groups a side.
    """
    check_pair(real, generated)
    if any(side % 4 for side in real.images.shape[1:]):
        raise InputError(f"C2ST: images of {real.images.shape[1:]}; give sides that are multiples of 4")
    images = torch.from_numpy(np.concatenate([real.images, generated.images]))[:, None]
    labels = _labels(len(real), len(generated))

    def fit(train: NDArray[np.intp], test: NDArray[np.intp], number: int) -> NDArray[np.float64]:
        scores = _train_network(images, labels, train, test, seed=seed * 1000 + number)
        if progress is not None:
            progress(number + 1, PIXEL_FOLDS)
        return scores

    return _cross_validate(fit, real.groups, generated.groups, folds=PIXEL_FOLDS, repeats=1, seed=seed)


def _labels(real: int, generated: int) -> NDArray[np.intp]:
    return np.repeat([0, 1], [real, generated])


def _cross_validate(
    fit: _Fit,
    real_groups: Sequence[str],
    generated_groups: Sequence[str],
    *,
    folds: int,
    repeats: int,
    seed: int,
) -> C2ST:
    count = len(real_groups)
    groups = np.asarray([*real_groups, *generated_groups])
    labels = _labels(count, len(generated_groups))
    folds = min(folds, len(set(real_groups)), len(set(generated_groups)))
    if folds < 2:
        raise InputError("C2ST: one group on a side leaves nothing to learn from; give at least two groups")
    scores = np.zeros((repeats, len(groups)))
    for repeat in range(repeats):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat)
        for number, (train, test) in enumerate(splitter.split(labels, labels, groups)):
            if len(set(labels[train])) < 2:
                raise InputError("C2ST: a fold has one kind of image only; give more groups on each side")
            scores[repeat, test] = fit(train, test, repeat * folds + number)
    right = ((scores > 0) == labels).mean(axis=0)
    accuracy = _balanced_accuracy(right[:count], right[count:], real_groups, generated_groups, seed=seed)
    mean = scores.mean(axis=0)
    return C2ST(accuracy, mean[:count], mean[count:])


def c2st_of_scores(
    real: NDArray[np.float64], generated: NDArray[np.float64], real_groups: Sequence[str],
    generated_groups: Sequence[str], *, seed: int,
) -> Figure:  # fmt: skip
    """The accuracy on some of the images of a test that was trained on more of them, by its scores (see `C2ST`)."""
    right = (real <= 0).astype(float), (generated > 0).astype(float)
    return _balanced_accuracy(*right, real_groups, generated_groups, seed=seed)


def _balanced_accuracy(
    real: NDArray[np.float64], generated: NDArray[np.float64], real_groups: Sequence[str],
    generated_groups: Sequence[str], *, seed: int,
) -> Figure:  # fmt: skip
    """(N,) how often each image was told right: the mean over both sets, each counting by half."""

    def balanced(a: Weights, b: Weights) -> float:
        if not a.any() or not b.any():
            return float("nan")
        return float((a @ real / a.sum() + b @ generated / b.sum()) / 2)

    return group_interval(balanced, real_groups, generated_groups, rng=np.random.default_rng(seed))


def _network() -> nn.Sequential:
    # Four pixels a side become channels first: no pixel is lost, and two cores run wide maps of few cells best. Batch
    # and not group normalisation: the strength of the texture in one image is what tells a blurred one.
    return nn.Sequential(
        nn.PixelUnshuffle(4),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 1),
    )


def _train_network(
    images: torch.Tensor, labels: NDArray[np.intp], train: NDArray[np.intp], test: NDArray[np.intp], *, seed: int
) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    sides = [train[labels[train] == label] for label in (0, 1)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=PIXEL_STEPS)
    half = PIXEL_BATCH // 2
    targets = torch.cat([torch.zeros(half), torch.ones(half)])
    for _ in range(PIXEL_STEPS):
        chosen = np.concatenate([rng.choice(side, half, replace=len(side) < half) for side in sides])
        batch = _to_range(images[torch.from_numpy(chosen)])
        if rng.random() < 0.5:
            batch = batch.flip(-1)
        loss = F.binary_cross_entropy_with_logits(network(batch)[:, 0], targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    with torch.inference_mode():
        parts = [network(_to_range(images[torch.from_numpy(part)]))[:, 0] for part in _parts(test)]
    return torch.cat(parts).double().numpy()


def _to_range(images: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) uint8 to (B, 2, H, W): grey levels, and what a 3 x 3 mean takes from them, brought to like size.

    A network of so few steps learns coarse shading first and would not get to the fine grain by itself.
    """
    grey = images.float() / 127.5 - 1
    fine = grey - F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.cat([grey, 8 * fine], dim=1)


def _parts(positions: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [positions[start : start + PIXEL_BATCH] for start in range(0, len(positions), PIXEL_BATCH)]

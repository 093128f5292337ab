"""Do generated images have the distribution of real ones? Kernel and Frechet distances over feature vectors.

`kid` and `frechet` are those of torchmetrics. Real ultrasound sets hold few groups of near-duplicates, which those
two take for independent images: near-duplicates inflate the similarity within each set, and two halves of a real set
seem to differ. `group_mmd` therefore compares only images of different groups: it is an unbiased estimate over groups,
near 0 for real against real, and has an interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from csg_edge.errors import InputError
from csg_edge.quality.bootstrap import Weights, group_interval
from csg_edge.quality.checks import Features, check_feature_pair, check_features
from csg_edge.quality.record import Figure

Kernel = Callable[[Features, Features], NDArray[np.float64]]

KID_SUBSETS = 100
KID_SUBSET_SIZE = 50


class _Identity(nn.Module):
    """The "network" of torchmetrics for features that are known already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


@dataclass(frozen=True)
class SubsetKid:
    """Mean and standard deviation of KID over random subsets of `subset_size` images; the latter is no interval."""

    mean: float
    deviation: float
    subset_size: int


def kid(real: Features, generated: Features, *, seed: int) -> SubsetKid:
    """Kernel inception distance (Binkowski et al., ICLR 2018) of (N, D) features, by torchmetrics; 0 is ideal.

    Mean over KID_SUBSETS random subsets of KID_SUBSET_SIZE images, or of as many as the smaller set has; can be below
    0. Raises InputError for fewer than two images a side.
    """
    check_feature_pair(real, generated)
    size = min(KID_SUBSET_SIZE, len(real), len(generated))
    if size < 2:
        raise InputError(f"KID: {len(real)} real and {len(generated)} generated images; give at least two of each")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        metric = KernelInceptionDistance(_Identity(real.shape[1]), subsets=KID_SUBSETS, subset_size=size)
        torch.manual_seed(seed)  # torchmetrics draws its subsets from torch's global generator
        _feed(metric, real, generated)
        mean, deviation = metric.compute()
    return SubsetKid(float(mean), float(deviation), size)


def frechet(real: Features, generated: Features) -> float:
    """Frechet distance (Heusel et al., NeurIPS 2017) of (N, D) features, by torchmetrics; 0 is ideal.

    Biased upwards for few images, the more the larger D is: compare figures of equal N only. Raises InputError for
    fewer than two images a side.
    """
    check_feature_pair(real, generated)
    if min(len(real), len(generated)) < 2:
        raise InputError(f"Frechet: {len(real)} real and {len(generated)} generated images; give at least two of each")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Frechet Inception Distance`", UserWarning)
        metric = FrechetInceptionDistance(_Identity(real.shape[1]))
    _feed(metric, real, generated)
    return float(metric.compute())


def polynomial_kernel(first: Features, second: Features) -> NDArray[np.float64]:
    """(N, M): (x . y / D + 1)^3, the kernel of KID."""
    return np.asarray((first.astype(np.float64) @ second.astype(np.float64).T / first.shape[1] + 1) ** 3)


def gaussian_kernel(reference: Features) -> Kernel:
    """exp(-|x - y|^2 / (2 s^2)) with s the median distance within `reference` (Gretton et al., JMLR 13:723, 2012).

    Take the real images as reference, so that every engine is judged by one kernel. Raises InputError if more than half
    of the reference is one and the same vector.
    """
    check_features(reference, what="reference features")
    upper = np.triu_indices(len(reference), 1)
    median = float(np.median(_squared_distances(reference, reference)[upper])) if len(reference) > 1 else 0.0
    if median <= 0:
        raise InputError("Gaussian kernel: the reference features are nearly all equal; give more varied real images")
    return lambda first, second: np.asarray(np.exp(-_squared_distances(first, second) / (2 * median)))


def group_mmd(
    real: Features,
    generated: Features,
    real_groups: Sequence[str],
    generated_groups: Sequence[str],
    *,
    kernel: Kernel,
    rng: np.random.Generator,
) -> Figure:
    """Squared maximum mean discrepancy over pairs of images of *different groups*, with its interval over groups.

    The unbiased estimate of Gretton et al. (JMLR 13:723, 2012, lemma 6) with groups in the place of samples: pairs of
    one group, within a set or across, are left out, for they share a subject. 0 is ideal; can be below 0. With
    `polynomial_kernel` this is KID over groups. Raises InputError for fewer than two groups a side.
    """
    discrepancy = group_discrepancy(real, generated, real_groups, generated_groups, kernel=kernel)
    return group_interval(discrepancy, real_groups, generated_groups, rng=rng)


def group_discrepancy(
    real: Features, generated: Features, real_groups: Sequence[str], generated_groups: Sequence[str], *, kernel: Kernel
) -> Callable[[Weights, Weights], float]:
    """The statistic behind `group_mmd`, of how often each real and each generated image counts.

    Two sets of generated images for the same masks can so be compared under the same resamplings.
    """
    check_feature_pair(real, generated)
    check_features(real, real_groups, what="real features")
    check_features(generated, generated_groups, what="generated features")
    for what, groups in (("real", real_groups), ("generated", generated_groups)):
        if len(set(groups)) < 2:
            raise InputError(f"MMD: the {what} images are of one group; give images of at least two groups")
    names = sorted({*real_groups, *generated_groups})
    sides = [_membership(groups, names) for groups in (real_groups, generated_groups)]
    sets = (real, generated)
    different = 1 - np.eye(len(names))
    # Sums over pairs of groups: a resampling of groups only reweighs them.
    blocks = {(i, j): sides[i].T @ kernel(sets[i], sets[j]) @ sides[j] * different for i, j in ((0, 0), (1, 1), (0, 1))}
    counts = [side.sum(axis=0) for side in sides]

    def mean(i: int, j: int, a: Weights, b: Weights) -> float:
        pairs = (a * counts[i]) @ different @ (b * counts[j])
        return float(a @ blocks[i, j] @ b / pairs) if pairs > 0 else float("nan")

    def discrepancy(a: Weights, b: Weights) -> float:
        # All images of a group carry the weight of the group.
        u, v = (sides[i].T @ w / np.maximum(counts[i], 1) for i, w in ((0, a), (1, b)))
        return mean(0, 0, u, u) + mean(1, 1, v, v) - 2 * mean(0, 1, u, v)

    return discrepancy


def _feed(metric: KernelInceptionDistance | FrechetInceptionDistance, real: Features, generated: Features) -> None:
    # Double precision: the Frechet distance loses digits in single.
    metric.update(torch.from_numpy(real.astype(np.float64)), real=True)
    metric.update(torch.from_numpy(generated.astype(np.float64)), real=False)


def _membership(groups: Sequence[str], names: Sequence[str]) -> NDArray[np.float64]:
    return np.asarray(np.asarray(groups)[:, None] == np.asarray(names), np.float64)


def _squared_distances(first: Features, second: Features) -> NDArray[np.float64]:
    a, b = first.astype(np.float64), second.astype(np.float64)
    return np.asarray(np.maximum((a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * a @ b.T, 0))

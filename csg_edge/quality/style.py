"""Does a generated image look like its own context, or like any?

Style is what a `DescribeImages` says: by default channel and Gram statistics of a filter bank and the profile over
depth (`descriptors.style_features`). An image should be nearer in style to its own context than to those of others; a
generator that ignores its context scores 0.5. Contexts of one group are near-duplicates: no
others, where groups are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.quality.bootstrap import group_interval
from csg_edge.quality.checks import Features, check_features, check_images
from csg_edge.quality.descriptors import DescribeImages, standardise, style_features
from csg_edge.quality.record import Figure


@dataclass(frozen=True)
class ContextSimilarity:
    """above_shuffled: share of (image, other context) pairs in which the own context is nearer; 0.5 is ignoring it.

    error: mean style distance to the own context in units of the mean distance to others; 1 is ignoring it.
    shares: (N,) of each image. own, others: (N,) style distance of each image to its context, and its mean to others.
    """

    above_shuffled: Figure
    error: Figure
    shares: NDArray[np.float64]
    own: NDArray[np.float64]
    others: NDArray[np.float64]


def context_similarity(
    generated: LabelledSet,
    *,
    rng: np.random.Generator,
    style: DescribeImages = style_features,
    strata: Sequence[str] | None = None,
    context_groups: Sequence[str] | None = None,
    image_styles: Features | None = None,
) -> ContextSimilarity:
    """Compare every image with its own context and with every different one of the set.

    strata: N strings, such as the public set of each image: only contexts of one stratum are compared, since telling
    two scanners apart is no merit. context_groups: N strings, the group of each image's context: those of its own group
    are not compared, since even real images of that group are nearer to another of it than to this one as often as
    not. image_styles: (N, D) what `style` says of the images, where it is known already. Raises InputError for images
    without contexts, or where no other context is left to compare with.
    """
    if generated.contexts is None:
        raise InputError("context similarity: images without contexts; give generated images with theirs")
    check_images(generated.images, "generated images")
    check_images(generated.contexts, "contexts")
    # One context may serve many images: describe each once, and compare an image with every other one once.
    pictures, own = np.unique(generated.contexts.reshape(len(generated), -1), axis=0, return_inverse=True)
    rows = np.arange(len(generated))
    others = _comparable(own.ravel(), len(pictures), strata or [""] * len(generated), context_groups)
    contexts = style(pictures.reshape(-1, *generated.contexts.shape[1:]))
    check_features(contexts, what="style features of the contexts")
    images = style(generated.images) if image_styles is None else image_styles
    check_features(images, what="style features of the images")
    contexts, images = standardise(contexts, images)
    gaps = images[:, None].astype(np.float64) - contexts[None]
    distances = np.sqrt((gaps**2).mean(axis=2))  # (N, contexts)
    mine = distances[rows, own.ravel()]
    nearer = (mine[:, None] < distances) + 0.5 * (mine[:, None] == distances)
    shares = nearer.mean(axis=1, where=others)
    foreign = distances.mean(axis=1, where=others)
    above, error = context_figures(shares, mine, foreign, generated.groups, rng=rng)
    return ContextSimilarity(above, error, shares, mine, foreign)


def context_figures(
    shares: NDArray[np.float64], own: NDArray[np.float64], others: NDArray[np.float64], groups: Sequence[str], *,
    rng: np.random.Generator,
) -> tuple[Figure, Figure]:  # fmt: skip
    """`above_shuffled` and `error` of some images by their (N,) values of ContextSimilarity."""
    return (
        group_interval(lambda a: float(a @ shares / a.sum()), groups, rng=rng),
        group_interval(lambda a: float(a @ own / (a @ others)), groups, rng=rng),
    )


def _comparable(
    own: NDArray[np.intp], contexts: int, strata: Sequence[str], context_groups: Sequence[str] | None
) -> NDArray[np.bool_]:
    """(N, contexts): which contexts are another than the image's own, of another group, of an image of its stratum."""
    if len(strata) != len(own):
        raise InputError(f"context similarity: {len(own)} images, {len(strata)} strata; give one stratum an image")
    names = np.asarray(strata)
    others = np.zeros((len(own), contexts), bool)
    for name in np.unique(names):
        members = np.flatnonzero(names == name)
        others[np.ix_(members, np.unique(own[members]))] = True
    others[np.arange(len(own)), own] = False
    if context_groups is not None:
        if len(context_groups) != len(own):
            raise InputError(
                f"context similarity: {len(own)} images, {len(context_groups)} context groups; give one each"
            )
        codes = np.unique(context_groups, return_inverse=True)[1]
        group_of = np.zeros(contexts, int)
        group_of[own] = codes
        others &= codes[:, None] != group_of[None, :]
    alone = np.flatnonzero(~others.any(axis=1))
    if len(alone):
        raise InputError(
            f"context similarity: {len(alone)} images, first at position {alone[0]}, have no other context to compare "
            "with; give images of at least two contexts in each stratum"
        )
    return others

"""Segmentation consistency: what a mask says is to be found in the image, as surely as in a real one.

A regression has no eye for labels: a nerve of a hundred pixels weighs as much as any hundred pixels, and a student may
draw it so faintly that nobody finds it. So a segmenter looks at the student's images, and the Dice of each class is
brought up to what it reaches on real images (the idea of a reward by consistency: Li et al., ControlNet++, ECCV 2024,
arXiv 2404.07987), and no further: images that are easier to segment than real ones are wrong, too.

The segmenter is fitted as the evaluators' is, from a seed of its own and without a fifth of the train groups, on which
it is measured: a student is never trained with the segmenter that judges it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csg_edge.datasets.batches import BatchSource, read_training_sets
from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import TrainingError
from csg_edge.labels import NO_MASK
from csg_edge.quality.evaluators import grey_levels
from csg_edge.quality.segmentation import known_labels
from csg_edge.training.block_dct import BlockDct
from csg_edge.training.fit_evaluators import fit_segmenter
from csg_edge.training.loop import LoopConfig
from csg_edge.training.teachers import Teacher

SEED = 78  # of the segmenter; `fit-evaluators` counts from the user's own, 0 if not given
ITERATIONS = 2000
HALVED = 2  # how many times smaller the segmenter sees images: a quarter of the time
HELD_BACK = 5  # one group in so many
MEASURED = 16  # batches of held-back images that the levels are the mean of
LEAST = 50.0  # pixels of a class in a batch, as the segmenter sees it, to count


class SegmentationConsistency(nn.Module):
    """How much less of each class is found in images than in real ones.

    levels: (K,) Dice of each class in real images, NaN where it is not known.
    """

    levels: Tensor

    def __init__(self, segmenter: nn.Module, levels: Tensor) -> None:
        super().__init__()
        self.segmenter = segmenter.eval().requires_grad_(False)
        self.register_buffer("levels", levels)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """(B, 1, H, W) images, -1..1, and their (B, H, W) uint8 masks -> mean shortfall of Dice, 0..1."""
        dice = self.dice(images, masks)
        short = (self.levels - dice).relu()
        known = short.isfinite()
        return torch.where(known, short, 0.0).sum() / known.sum().clamp_min(1)

    def dice(self, images: Tensor, masks: Tensor) -> Tensor:
        """(K,) soft Dice of each class over a batch; NaN for the background and for what the masks do not show."""
        masks = masks[:, HALVED // 2 :: HALVED, HALVED // 2 :: HALVED]
        labels = torch.from_numpy(known_labels(masks.cpu().numpy())).to(images.device)
        known = (labels != NO_MASK)[:, None]
        found = self.segmenter(F.avg_pool2d(images.clamp(-1.0, 1.0), HALVED)).float().softmax(1) * known
        wanted = F.one_hot(torch.where(labels == NO_MASK, 0, labels).long(), found.shape[1])
        wanted = wanted.permute(0, 3, 1, 2) * known
        sizes = wanted.sum((0, 2, 3))
        both = (found * wanted).sum((0, 2, 3))
        dice = 2.0 * both / (found.sum((0, 2, 3)) + sizes).clamp_min(1.0)
        shown = sizes >= LEAST
        shown[0] = False
        return torch.where(shown, dice, torch.nan)


def fit_segmentation_consistency(
    teacher: Teacher, data: list[Path], directory: Path, *, batch: int
) -> SegmentationConsistency | None:
    """Train or resume the segmenter in `directory`, on the train groups of `data`; None when stopped early.

    batch: of the student, as Dice is taken over a batch. Raises TrainingError for a teacher with a learned autoencoder,
    for sets of too few groups, and as the reading of `data` does.
    """
    if not isinstance(teacher.autoencoder, BlockDct):
        raise TrainingError("--segmentation: not for the latents of a learned autoencoder; leave it out")
    loop = LoopConfig(
        iterations=ITERATIONS, batch=16, learning_rate=3e-3, warmup=50, decay=0.7, ema=0.99, seed=SEED, precision="fp32"
    )
    sets = read_training_sets(data, teacher.schema, split="train", size=teacher.image_size)
    parts = [_held_back(item) for item in sets]
    held = [item for _, item in parts if item is not None]
    if not held:
        raise TrainingError(f"--segmentation: no set has {HELD_BACK} groups, one of which is held back; leave it out")
    small = [kept.resized(teacher.image_size // HALVED) for kept, _ in parts]
    segmenter = fit_segmenter(small, len(teacher.schema), loop, directory)
    if segmenter is None:
        return None
    found = SegmentationConsistency(segmenter, torch.full((len(teacher.schema),), torch.nan))
    source = BatchSource(held, [1.0] * len(held), batch=batch, dropout=0.0, seed=SEED, contexts=False)
    with torch.no_grad():
        measured = torch.stack([
            found.dice(grey_levels(torch.from_numpy(drawn.image)), torch.from_numpy(drawn.mask))
            for drawn in map(source.draw, range(MEASURED))
        ])  # fmt: skip
    found.levels.copy_(measured.nanmean(0))
    return found


def _held_back(item: LabelledSet) -> tuple[LabelledSet, LabelledSet | None]:
    """A set without one group in HELD_BACK, by the hashes of their names, and those; None of too few groups."""
    groups = sorted(set(item.groups), key=lambda group: hashlib.sha256(group.encode()).digest())
    held = set(groups[: len(groups) // HELD_BACK])
    if not held:
        return item, None
    places = {side: [i for i, group in enumerate(item.groups) if (group in held) == side] for side in (False, True)}
    return item.take(places[False]), item.take(places[True])

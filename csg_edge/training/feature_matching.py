"""Feature matching: what a student's images should share with its teacher's on average.

A regression averages what it cannot know. Each image then loses a little of its crispness and always in the same way,
which hardly counts in any distance but is what a classifier adds up. So the mean difference of features between a
student's images and its teacher's is brought to zero (feature matching: Salimans et al., arXiv 1606.03498).

The features are the channel means and deviations of an encoder that is fitted on the train groups as the evaluators'
is, from a seed of its own: a student is never trained with the features that judge it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from csg_edge.datasets.batches import read_training_sets
from csg_edge.errors import TrainingError
from csg_edge.quality.evaluators import Encoder
from csg_edge.training.block_dct import BlockDct
from csg_edge.training.fit_evaluators import fit_encoder
from csg_edge.training.loop import LoopConfig
from csg_edge.training.teachers import Teacher
from csg_edge.training.trajectories import Trajectories

SEED = 77  # of the encoder; `fit-evaluators` counts from the user's own, 0 if not given
ITERATIONS = 300
REFERENCE = 512  # clean ends whose features set the scale
COMPONENTS = 60  # principal ones of the features; the rest is noise at so few images
CHUNK = 32


class MatchedFeatures(nn.Module):
    """(B, 1, H, W) images, -1..1 -> (B, K) features of mean 0, deviation 1 and no correlation over the reference."""

    basis: Tensor
    mean: Tensor

    def __init__(self, encoder: Encoder, blocks: BlockDct, trajectories: Trajectories) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        clean, _ = trajectories.sample(REFERENCE)
        with torch.no_grad():
            features = torch.cat([self._features(blocks.decode_unit(part)) for part in clean.split(CHUNK)]).double()
        mean, deviation = features.mean(0), features.std(0) + 1e-4
        _, spread, directions = torch.linalg.svd((features - mean) / deviation, full_matrices=False)
        kept = min(COMPONENTS, len(features) - 1)
        scale = (spread[:kept] / len(features) ** 0.5).clamp_min(1e-6)
        self.register_buffer("mean", mean.float())
        self.register_buffer("basis", (directions[:kept].T / deviation[:, None] / scale).float())

    def forward(self, images: Tensor) -> Tensor:
        return (self._features(images) - self.mean) @ self.basis

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat(self.encoder(images.clamp(-1.0, 1.0)).statistics, 1)


def fit_matched_features(
    teacher: Teacher, trajectories: Trajectories, data: list[Path], directory: Path, *, precision: str
) -> MatchedFeatures | None:
    """Train or resume the encoder in `directory`, on the train groups of `data`; None when stopped early.

    Raises TrainingError for a teacher with a learned autoencoder, and as the reading of `data` does.
    """
    if not isinstance(teacher.autoencoder, BlockDct):
        raise TrainingError("--feature-matching: not for the latents of a learned autoencoder; leave it out")
    loop = LoopConfig(
        iterations=ITERATIONS, batch=24, learning_rate=2e-3, warmup=50, decay=0.7, ema=0.99, seed=SEED,
        precision=precision,
    )  # fmt: skip
    sets = read_training_sets(data, teacher.schema, split="train", size=teacher.image_size)
    encoder = fit_encoder(sets, len(teacher.schema), loop, directory)
    return None if encoder is None else MatchedFeatures(encoder, teacher.autoencoder, trajectories)

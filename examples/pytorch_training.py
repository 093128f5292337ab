"""Train a segmenter on a few labelled images and fresh synthetic ones, made on the fly in the DataLoader's workers.

    python examples/pytorch_training.py --data phantom/ --synthetic 0.5 --steps 200

DATA is a labelled set (docs/data.md). Each batch holds a share of real images; the others are made from the masks of
real images, varied (`deform`, `tilt`), under contexts of other groups and seeds that never come twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import csg_edge
from csg_edge.conditions.masks import vary_by
from csg_edge.datasets.labelled_set import LabelledSet, read_set
from csg_edge.labels import MSK_SCHEMA

VARIATION = "deform:0.5,tilt:3deg"


class Augmented(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless (image, mask) pairs, a share of them synthetic. Each worker opens a generator of its own."""

    def __init__(self, real: LabelledSet, *, synthetic: float, bundle: str, seed: int) -> None:
        self.real, self.synthetic, self.bundle, self.seed = real, synthetic, bundle, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        random = np.random.default_rng([self.seed, worker.id if worker else 0])
        groups = np.asarray(self.real.groups)
        with csg_edge.load(self.bundle, threads=1) as generator:
            while True:
                index = int(random.integers(len(self.real)))
                image, mask = self.real.images[index], self.real.masks[index]
                if random.random() < self.synthetic:
                    # The context comes from another group: the look of another patient.
                    others = np.flatnonzero(groups != groups[index])
                    context = self.real.images[int(random.choice(others))]
                    seed = int(random.integers(2**63))
                    mask = vary_by(mask, MSK_SCHEMA, VARIATION, seed=seed)
                    image = generator.generate_one(mask, context, seed)
                yield torch.from_numpy(image)[None].float() / 255, torch.from_numpy(mask).long()


def segmenter(classes: int) -> nn.Module:
    """A small convolutional network, (B, 1, H, W) -> (B, K, H, W); put your own in its place."""
    return nn.Sequential(
        nn.PixelUnshuffle(4), nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.ReLU(), nn.Conv2d(64, 64, 3, padding=4, dilation=4), nn.ReLU(), nn.Conv2d(64, 16 * classes, 1),
        nn.PixelShuffle(4),
    )  # fmt: skip


def mean_dice(network: nn.Module, held_out: LabelledSet) -> float:
    """Mean Dice over images and classes present, background aside."""
    scores = []
    with torch.no_grad():
        for image, mask in zip(held_out.images, held_out.masks, strict=True):
            found = network(torch.from_numpy(image)[None, None].float() / 255).argmax(1)[0].numpy()
            for index in np.unique(mask[mask > 0]):
                overlap = np.sum((found == index) & (mask == index))
                scores.append(2 * overlap / (np.sum(found == index) + np.sum(mask == index)))
    return float(np.mean(scores))


def main() -> None:
    """Train, and print the loss now and then and the Dice of the held-out groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="msk-256")
    parser.add_argument("--synthetic", type=float, default=0.5, help="share of synthetic images, 0 to 1")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    real, held_out = (read_set(arguments.data, MSK_SCHEMA, split=split, size=256) for split in ("train", "val"))
    data = Augmented(real, synthetic=arguments.synthetic, bundle=arguments.bundle, seed=0)
    loader = DataLoader(data, batch_size=arguments.batch, num_workers=arguments.workers)
    network = segmenter(len(MSK_SCHEMA))
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step, (images, masks) in zip(range(arguments.steps), loader, strict=False):
        loss = F.cross_entropy(network(images), masks, ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    print(f"Dice of {len(held_out)} held-out images: {mean_dice(network, held_out):.3f}")


if __name__ == "__main__":
    main()

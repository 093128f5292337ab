"""Training the teacher: flow matching on labelled ultrasound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csg_edge.labels import MSK_SCHEMA
from csg_edge.training.autoencoder import BlockDct, BlockDctConfig
from csg_edge.training.data import BatchSource, read_training_sets
from csg_edge.training.device import autocast, seeded
from csg_edge.training.loop import LoopConfig, fit, load_checkpoint, start
from csg_edge.training.model import CsgModel, read_json, write_json
from csg_edge.training.networks import CsgUNet, NetworkConfig
from csg_edge.training.process import mix, training_timesteps

MSK_NETWORK = NetworkConfig(classes=len(MSK_SCHEMA))


@dataclass(frozen=True)
class TeacherConfig:
    """Data and model of a teacher; how it is optimised is in LoopConfig."""

    data: tuple[Path, ...]
    image_size: int = 256
    dropout: float = 0.1  # of mask and of context, each
    network: NetworkConfig = MSK_NETWORK


def train(config: TeacherConfig, loop: LoopConfig, *, out: Path, device: torch.device) -> bool:
    """Train or resume in `out`; writes `out/teacher` (EMA weights) at the end. Returns False when stopped early."""
    sets = read_training_sets(list(config.data), MSK_SCHEMA, split="train", size=config.image_size)
    # Every set counts alike: the classes of a small set are as much wanted as those of a large one.
    source = BatchSource(sets, [1.0] * len(sets), batch=loop.batch, dropout=config.dropout, seed=loop.seed)
    bands = _bands(source, out / "autoencoder.json")

    torch.manual_seed(loop.seed)
    network = CsgUNet(config.network).to(device, memory_format=torch.channels_last)
    model = CsgModel(
        network, BlockDct(bands).to(device), schema=MSK_SCHEMA, image_size=config.image_size, role="teacher"
    )
    state = start(network, loop)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        load_checkpoint(checkpoint, state, loop)
    batches = source.stream(state.iteration, loop.iterations)

    def loss(iteration: int) -> Tensor:
        index, batch = next(batches)
        if index != iteration:
            raise RuntimeError(f"batch {index} at iteration {iteration}")
        image, mask, context = (item.to(device) for item in batch)
        generator = seeded(loop.seed, iteration)
        clean = model.autoencoder.encode(image)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        timestep = training_timesteps(len(clean), generator).to(device)
        with autocast(device, loop.precision):
            conditions = model.conditions(mask, context)
            velocity = network(mix(clean, noise, timestep), network.embed_time(timestep), conditions)
        return (velocity.float() - (noise - clean)).square().mean()

    finished = fit(state, loss, loop, directory=out, label="train")
    network.load_state_dict(state.ema)
    model.save(out / "teacher")
    return finished


def _bands(source: BatchSource, path: Path) -> BlockDctConfig:
    """Band statistics of the augmented training images.

    Fixed for the whole run even when it is resumed with more data.
    """
    if not path.exists():
        bands = BlockDctConfig.fit(torch.cat([source.draw(index).image for index in range(16)]).numpy())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, bands.to_json())
    return BlockDctConfig.from_json(read_json(path))

"""Distillation by offline trajectory regression.

The teacher is integrated from fresh noise; the student learns to jump from the noise to the clean end of the
same trajectory, f(z_t, t) = z_t - t v(z_t, t) (the parametrisation of consistency models, Song et al., arXiv
2303.01469; the fixed target as in knowledge distillation of Luhman & Luhman, arXiv 2101.02388). Later steps are learned
where a few-step student will stand: on the straight line from the noise to its own first jump. Points of the teacher's
curved trajectory instead made four steps far too contrasty. Nothing chases itself or an adversary: it cannot diverge.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from csg_edge.errors import TrainingError
from csg_edge.progress import Progress
from csg_edge.training.data import BatchSource, read_training_sets
from csg_edge.training.device import autocast, seeded
from csg_edge.training.loop import LoopConfig, fit, load_checkpoint, start, stop_requested
from csg_edge.training.model import CsgModel, read_json, write_json
from csg_edge.training.process import STUDENT_TIMESTEPS, TEACHER_STEPS, mix, multistep, teacher_timesteps

INNER_TIMESTEPS = STUDENT_TIMESTEPS[4][1:-1]
"""Where later steps begin; those of 2 steps are among them."""

SHARD = 32
LOSS_FLOOR = 1e-4


@dataclass(frozen=True)
class DistilConfig:
    """Which conditions the trajectories are drawn for, how many, and how strongly they are guided."""

    data: tuple[Path, ...]
    trajectories: int = 2048
    guidance: float = 1.0
    seed: int = 0


def make_trajectories(
    teacher: CsgModel, config: DistilConfig, directory: Path, *, device: torch.device, precision: str
) -> bool:
    """Fill `directory` with shards of SHARD trajectories each, skipping those already there.

    Returns False when stopped early.
    """
    sets = read_training_sets(list(config.data), teacher.schema, split="train", size=teacher.image_size)
    source = BatchSource(sets, [1.0] * len(sets), batch=SHARD, dropout=0.1, seed=config.seed)
    directory.mkdir(parents=True, exist_ok=True)
    _check_same(directory / "config.json", _fingerprint(teacher, config))
    teacher = teacher.to(device, memory_format=torch.channels_last).eval()
    shards = [shard_path(directory, index) for index in range(-(-config.trajectories // SHARD))]
    todo = [index for index, path in enumerate(shards) if not path.exists()]
    progress = Progress("trajectories", config.trajectories, done=(len(shards) - len(todo)) * SHARD)
    with stop_requested() as stopped:
        for index in todo:
            if stopped():
                return False
            batch = source.draw(index)
            mask, context = batch.mask.to(device), batch.context.to(device)
            noise = torch.randn(teacher.latent_shape(SHARD), generator=seeded(config.seed, index))
            noise = (
                noise.bfloat16().float().to(device)
            )  # as it will be stored: the student must start where the teacher did
            with torch.no_grad(), autocast(device, precision):
                velocity = teacher.guided_velocity(mask, context, guidance=config.guidance)
                clean = multistep(velocity, noise, teacher_timesteps(TEACHER_STEPS))
            if not torch.isfinite(clean).all():
                raise TrainingError(
                    f"trajectory shard {index}: not finite; lower --guidance or train the teacher longer"
                )
            ends = {"noise": noise.to("cpu", torch.bfloat16), "clean": clean.to("cpu", torch.bfloat16)}
            aside = shards[index].with_suffix(".partial")
            save_file({**ends, "mask": batch.mask, "context": batch.context}, aside)
            os.replace(aside, shards[index])
            progress.advance(SHARD)
    return True


def _fingerprint(teacher: CsgModel, config: DistilConfig) -> dict[str, Any]:
    digest = hashlib.sha256()
    for value in teacher.network.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    return {
        "teacher": digest.hexdigest(),
        "data": sorted(path.name for path in config.data),
        "guidance": config.guidance,
        "seed": config.seed,
    }


def _check_same(path: Path, wanted: dict[str, Any]) -> None:
    # Trajectories of two teachers in one folder would be averaged without a word.
    if not path.exists():
        write_json(path, wanted)
    elif (found := read_json(path)) != wanted:
        changed = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        raise TrainingError(f"{path.parent}: trajectories of another {changed}; use the same options or another --out")


def shard_path(directory: Path, index: int) -> Path:
    """File of one shard."""
    return directory / f"shard-{index:05d}.safetensors"


class Trajectories:
    """Random access to stored trajectories, read from disk as needed."""

    def __init__(self, directory: Path, count: int) -> None:
        self.count = count
        try:
            self._files = [
                safe_open(shard_path(directory, index), framework="pt") for index in range(-(-count // SHARD))
            ]
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{directory}: unreadable trajectories ({error}); delete the folder and run again"
            ) from None

    def read(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(C, h, w) noise and clean end, (H, W) mask and context of one trajectory."""
        file, row = self._files[index // SHARD], index % SHARD
        noise, clean, mask, context = (file.get_slice(name)[row] for name in ("noise", "clean", "mask", "context"))
        return noise.float(), clean.float(), mask, context


def distil(teacher: CsgModel, trajectories: Trajectories, loop: LoopConfig, *, out: Path, device: torch.device) -> bool:
    """Train or resume a student that starts as a copy of its teacher; writes `out/student` at the end."""
    student = CsgModel(
        teacher.network, teacher.autoencoder, schema=teacher.schema, image_size=teacher.image_size, role="student"
    ).to(device, memory_format=torch.channels_last)
    network = student.network.train()
    state = start(network, loop)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        load_checkpoint(checkpoint, state, loop)

    def loss(iteration: int) -> Tensor:
        random = np.random.default_rng([loop.seed, iteration])
        rows = [trajectories.read(int(index)) for index in random.integers(trajectories.count, size=loop.batch)]
        noise, clean, mask, context = (torch.stack(column).to(device) for column in zip(*rows, strict=True))
        # Half of the draws at pure noise, where one-step students live.
        later = random.random(loop.batch) < 0.5
        drawn = np.where(later, random.choice(INNER_TIMESTEPS, loop.batch), 1.0)
        timestep = torch.tensor(drawn, dtype=torch.float32, device=device)
        with autocast(device, loop.precision):
            latent = noise.clone()
            if later.any():
                chosen = torch.from_numpy(later).to(device)
                with torch.no_grad():
                    conditions = student.conditions(mask[chosen], context[chosen])
                    first = noise[chosen] - student.velocity(conditions)(noise[chosen], 1.0)
                latent[chosen] = mix(first, noise[chosen], timestep[chosen])
            velocity = network(latent, network.embed_time(timestep), student.conditions(mask, context))
        jump = latent - timestep.view(-1, 1, 1, 1) * velocity.float()
        return ((jump - clean).square().mean(dim=(1, 2, 3)) + LOSS_FLOOR).sqrt().mean()

    finished = fit(state, loss, loop, directory=out, label="distil")
    network.load_state_dict(state.ema)
    student.save(out / "student")
    return finished

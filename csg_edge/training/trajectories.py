"""Trajectories of a teacher: pure noise and the clean latent its own sampler makes of it, for conditions of the sets.

Sharded and resumable. A teacher need not be a flow, only a map from noise and conditions to a clean latent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from csg_edge.conditions import fibres
from csg_edge.conditions.arrays import classes_in
from csg_edge.conditions.fibres import Wish, field_of_mask
from csg_edge.datasets.batches import BatchSource, read_training_sets, weights_of
from csg_edge.errors import TrainingError
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.noise import MAX_SEED
from csg_edge.progress import Progress
from csg_edge.storage import write_json, written_whole
from csg_edge.training.device import autocast, seeded
from csg_edge.training.device_batches import batches_on
from csg_edge.training.loop import stop_requested
from csg_edge.training.model_files import read_json
from csg_edge.training.teachers import Teacher

SHARD = 32
TOGETHER = 8  # shards made in one call on a GPU
RESIDENT = 0.5  # of a GPU's free memory that trajectories may fill
LEAST_OF_KIND = 64  # trajectories of masks with the same classes, to count as a kind
DRAWN, WISHED = 0.5, 0.3  # shares of images whose fibre field the prior draws, or whose direction is asked for
DROPOUT = 0.1  # of mask and of context, each, where the teacher knows what it means


@dataclass(frozen=True)
class TrajectoryConfig:
    """Which conditions the trajectories are drawn for, how many, and how strongly they are guided."""

    data: tuple[Path, ...]
    trajectories: int = 2048
    guidance: float = 1.0
    seed: int = 0
    shares: tuple[tuple[str, float], ...] = ()  # how often a set is drawn, by name; 1 if not named

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise TrainingError(f"seed = {self.seed}: give an integer from 0 to {MAX_SEED}")


def make_trajectories(
    teacher: Teacher, config: TrajectoryConfig, directory: Path, *, device: torch.device, precision: str,
    seconds: float | None = None,
) -> bool:  # fmt: skip
    """Fill `directory` with shards of SHARD trajectories each, skipping those already there.

    seconds: stop after so long, with one shard more at least. Returns False when stopped early. Raises TrainingError,
    before anything is written, for guidance that the teacher does not know.
    """
    if config.guidance != 1.0 and not teacher.droppable:
        raise TrainingError(
            f"--guidance {config.guidance}: this teacher knows no dropped conditions (see its csg.json); give 1"
        )
    sets = read_training_sets(list(config.data), teacher.schema, split="train", size=teacher.image_size)
    dropout = DROPOUT if teacher.droppable else 0.0
    source = BatchSource(
        sets,
        weights_of(sets, config.shares),
        batch=SHARD,
        dropout=dropout,
        seed=config.seed,
        field_dropout=DRAWN + WISHED,
    )
    directory.mkdir(parents=True, exist_ok=True)
    _check_same(directory / "config.json", _fingerprint(teacher, config))
    teacher = teacher.to(device, memory_format=torch.channels_last).eval()
    shards = [shard_path(directory, index) for index in range(-(-config.trajectories // SHARD))]
    todo = [index for index, path in enumerate(shards) if not path.exists()]
    together = together_on(device)
    batches = batches_on(device, source)
    progress = Progress("trajectories", config.trajectories, done=(len(shards) - len(todo)) * SHARD)
    begun = time.monotonic()
    with stop_requested() as stopped:
        for first in range(0, len(todo), together):
            late = seconds is not None and first > 0 and time.monotonic() - begun > seconds
            if stopped() or late:
                return False
            indices = todo[first : first + together]
            drawn = [batches.draw(index) for index in indices]
            mask, context = (torch.cat([getattr(batch, name) for batch in drawn]) for name in ("mask", "context"))
            noise = torch.cat([
                torch.randn(teacher.latent_shape(SHARD), generator=seeded(config.seed, index)) for index in indices
            ])  # fmt: skip
            noise = noise.bfloat16().to(device).float()  # as stored: the student must start where the teacher did
            fields = [
                given_fields(batch.mask.cpu().numpy(), batch.field.cpu().numpy(), teacher.schema, [config.seed, index])
                for index, batch in zip(indices, drawn, strict=True)
            ]
            given = torch.from_numpy(np.concatenate(fields)).to(device)
            with torch.no_grad(), autocast(device, precision):
                field = teacher.used_field(mask, context, noise, given)
                clean = teacher.integrate(mask, context, noise, guidance=config.guidance, field=field)
            if not torch.isfinite(clean).all():
                raise TrainingError(
                    f"trajectory shard {indices[0]}: not finite; lower --guidance or train the teacher longer"
                )
            made = {"noise": noise.bfloat16(), "clean": clean.bfloat16(), "mask": mask, "context": context}
            if field is not None:
                made["field"] = field.float()
            for index, *parts in zip(indices, *(item.cpu().split(SHARD) for item in made.values()), strict=True):
                with written_whole(shards[index]) as aside:
                    save_file(dict(zip(made, (part.contiguous() for part in parts), strict=True)), aside)
            progress.advance(SHARD * len(indices))
    return True


def together_on(device: torch.device) -> int:
    """How many shards are made in one call."""
    return TOGETHER if device.type == "cuda" else 1


def given_fields(
    masks: NDArray[np.uint8], fields: NDArray[np.float32], schema: LabelSchema, key: list[int]
) -> NDArray[np.float32]:
    """What is given of the fibre fields of a batch (B, 3, 16, 16).

    Nothing for DRAWN of them, directions of a class for WISHED, as users ask for them, and for the rest, which have a
    field in the batch, that of the image whose mask it is.
    """
    random = np.random.default_rng(key)
    given = fields.copy()
    for mask, field in zip(masks, given, strict=True):
        classes = np.unique(mask)
        classes = classes[(classes != NO_MASK) & (classes > 0)]
        if field.any() or not len(classes) or random.random() >= WISHED / (DRAWN + WISHED):
            continue
        degrees, coherence = random.uniform(-40, 40), random.uniform(0.4, 0.8)
        wish = Wish(schema.names[int(random.choice(classes))], degrees, degrees, coherence)
        field[...] = field_of_mask(mask, schema, [wish], seed=0)
    return given


def _fingerprint(teacher: Teacher, config: TrajectoryConfig) -> dict[str, Any]:
    return {
        "teacher": teacher.fingerprint(),
        "data": sorted(path.name for path in config.data),
        "guidance": config.guidance,
        "seed": config.seed,
        **({"shares": dict(config.shares)} if config.shares else {}),
    }


def _check_same(path: Path, wanted: dict[str, Any]) -> None:
    # Trajectories of two teachers in one folder would be averaged without a word.
    if not path.exists() or not any(path.parent.glob("shard-*.safetensors")):
        write_json(path, wanted)
    elif (found := read_json(path)) != wanted:
        changed = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        raise TrainingError(f"{path.parent}: trajectories of another {changed}; use the same options or another --out")


def shard_path(directory: Path, index: int) -> Path:
    """File of one shard."""
    return directory / f"shard-{index:05d}.safetensors"


class Trajectory(NamedTuple):
    """Two ends and what lies between: (C, h, w) noise and clean end, (H, W) mask and context, (3, 16, 16) fibre field.

    Of several, stacked, each has a batch in front.
    """

    noise: Tensor
    clean: Tensor
    mask: Tensor
    context: Tensor
    field: Tensor


class Trajectories:
    """Random access to stored trajectories, read from disk as needed."""

    def __init__(self, directory: Path, count: int) -> None:
        self.count, self._directory = count, directory
        self._resident: dict[str, Tensor] | None = None
        try:
            self._files = [
                safe_open(shard_path(directory, index), framework="pt") for index in range(-(-count // SHARD))
            ]
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{directory}: unreadable trajectories ({error}); delete the folder and run again"
            ) from None

    def read(self, indices: Sequence[int] | NDArray[np.intp]) -> Trajectory:
        """Several trajectories, stacked; their fields are zeros if the teacher knows none."""
        if self._resident is not None:
            chosen = torch.as_tensor(indices, device=self._resident["noise"].device)
            found = {name: item[chosen] for name, item in self._resident.items()}
        else:
            rows = [(self._files[index // SHARD], index % SHARD) for index in map(int, indices)]
            found = {name: torch.stack([file.get_slice(name)[row] for file, row in rows]) for name in self._names}
        field = found.get("field")
        if field is None:
            field = found["noise"].new_zeros((len(indices), *fibres.SHAPE), dtype=torch.float32)
        return Trajectory(found["noise"].float(), found["clean"].float(), found["mask"], found["context"], field)

    def move(self, device: torch.device) -> None:
        """Keep all in the memory of a GPU, if they take no more than RESIDENT of what is free there."""
        if device.type != "cuda":
            return
        size = sum(shard_path(self._directory, index).stat().st_size for index in range(len(self._files)))
        if size <= RESIDENT * torch.cuda.mem_get_info(device)[0]:
            self.keep(device)

    def keep(self, device: torch.device) -> None:
        """Read all of them into the memory of a device."""
        self._resident = {
            name: torch.cat([file.get_tensor(name).to(device) for file in self._files]) for name in self._names
        }

    @property
    def has_fields(self) -> bool:
        """Whether the teacher knew fibre fields."""
        return "field" in self._names

    @property
    def _names(self) -> list[str]:
        return list(self._files[0].keys())

    @cached_property
    def kinds(self) -> list[NDArray[np.intp]]:
        """Positions of trajectories whose masks have the same classes; those of rare combinations in one."""
        by_classes: dict[tuple[int, ...], list[int]] = {}
        for index in range(self.count):
            mask = self._files[index // SHARD].get_slice("mask")[index % SHARD].numpy()
            classes = tuple(value for value in classes_in(mask) if value not in (0, NO_MASK))
            by_classes.setdefault(classes, []).append(index)
        common = [found for found in by_classes.values() if len(found) >= LEAST_OF_KIND]
        rare = [index for found in by_classes.values() if len(found) < LEAST_OF_KIND for index in found]
        return [np.array(found) for found in (*common, sorted(rare)) if found]

    def sample(self, count: int) -> tuple[Tensor, NDArray[np.uint8]]:
        """Clean ends (N, C, h, w) of the first `count` trajectories, and their contexts (M, H, W) but the dropped.

        Raises TrainingError if all were dropped.
        """
        first = self.read(range(min(count, self.count)))
        contexts = [context for context in first.context.numpy() if context.any()]
        if not contexts:
            raise TrainingError("no trajectory has a context; give more --trajectories")
        return first.clean, np.stack(contexts)

"""A teacher as the reference of a validation: its images of the same cases, from the same noise."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.noise import noise_for
from csg_edge.progress import Progress
from csg_edge.quality.cases import Cases
from csg_edge.training.device import autocast, choose_precision
from csg_edge.training.teachers import folder_digest, load_teacher

BATCH = 8
CPU = torch.device("cpu")


@dataclass(frozen=True)
class TeacherReference:
    """A teacher's folder, and the guidance it samples with."""

    folder: Path
    guidance: float = 1.0

    @property
    def key(self) -> str:
        """Stands for weights and guidance. Raises TrainingError for a folder without weights."""
        return hashlib.sha256(f"{folder_digest(self.folder)} {self.guidance}".encode()).hexdigest()[:16]

    def make(self, cases: Cases) -> LabelledSet:
        """The teacher's images of the cases, by its own sampler. Raises TrainingError as `load_teacher` does."""
        precision = choose_precision("auto", CPU)
        teacher = load_teacher(self.folder).eval().to(memory_format=torch.channels_last)
        progress = Progress("teacher", len(cases), unit="images")
        images = []
        for start in range(0, len(cases), BATCH):
            batch = slice(start, min(start + BATCH, len(cases)))
            mask, context = (torch.from_numpy(array[batch]) for array in (cases.wanted.masks, cases.contexts.images))
            noise = np.stack([noise_for(seed, teacher.latent_shape(1)[1:]) for seed in cases.seeds[batch]])
            with torch.inference_mode(), autocast(CPU, precision):
                clean = teacher.integrate(mask, context, torch.from_numpy(noise), guidance=self.guidance)
                images.append(teacher.autoencoder.decode(clean).numpy())
            progress.advance(len(images[-1]))
        return cases.made(np.concatenate(images))

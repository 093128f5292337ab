"""What a teacher is, to those who learn from it or judge it; ours and anyone's own, by one call."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from csg_edge.errors import InputError, TrainingError
from csg_edge.labels import LabelSchema
from csg_edge.training.autoencoder import Autoencoder
from csg_edge.training.model import CsgModel
from csg_edge.training.model_files import read_json

ENTRY = "csg.json"  # how conditions enter a teacher that diffusers made


class Teacher(Protocol):
    """A conditioned generator of latents with a sampler of its own; `CsgModel` and `DiffusersTeacher` are two."""

    schema: LabelSchema
    image_size: int
    autoencoder: Autoencoder
    droppable: bool  # whether it was trained with dropped conditions, and so can be guided

    def latent_shape(self, batch: int) -> tuple[int, int, int, int]:
        """(B, C, h, w) of noise and latents."""

    def used_field(self, mask: Tensor, context: Tensor, noise: Tensor, given: Tensor | None = None) -> Tensor | None:
        """The fibre field (B, 3, 16, 16) of an image: what is given, the rest drawn; None where it knows no field."""

    def integrate(
        self, mask: Tensor, context: Tensor, noise: Tensor, *, guidance: float, field: Tensor | None = None
    ) -> Tensor:
        """Mask (255: none) and context (zeros: none) (B, H, W) uint8, noise (B, C, h, w) -> clean latent, float32.

        field: of `used_field`; None: as the teacher draws it, where it knows fibre fields. The same inputs give the
        same latent; guidance 1 is the plain model. Raises TrainingError for another guidance where the teacher has
        none.
        """

    def fingerprint(self) -> str:
        """A hash of all that decides what `integrate` returns."""

    def to(self, *arguments: Any, **options: Any) -> Any:
        """Moved to a device or memory format, as torch modules are."""

    def eval(self) -> Any:
        """In evaluation mode."""


def load_teacher(folder: Path, *, steps: int | None = None) -> Teacher:
    """Read a folder of `csg-edge train`, or one in diffusers layout with csg.json (docs/teacher-format.md).

    `steps`: sampling steps, instead of what csg.json says. Raises TrainingError for a folder that is missing, damaged
    or does not fit together, InputError for `steps` where they cannot be chosen.
    """
    if (folder / ENTRY).is_file():
        from csg_edge.training.diffusers_teacher import DiffusersTeacher

        return DiffusersTeacher.load(folder, steps=steps)
    if steps is not None:
        raise InputError(f"--teacher-steps {steps}: a teacher of csg-edge train always takes 11 evaluations; leave out")
    if not (folder / "model_index.json").is_file():
        raise TrainingError(
            f"{folder}: no teacher; give a folder of `csg-edge train`, or one with {ENTRY} as in docs/teacher-format.md"
        )
    name = read_json(folder / "model_index.json").get("_class_name")
    if name != "CsgModel":
        raise TrainingError(
            f"{folder}: model class {name!r}, and no {ENTRY} that says how mask and context enter; write one as in "
            "docs/teacher-format.md"
        )
    return CsgModel.load(folder)


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all JSON and safetensors files of a model folder.

    Raises TrainingError if there are no weights.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))
    if not any(path.suffix == ".safetensors" for path in files):
        raise TrainingError(f"{folder}: no model weights here; give a folder of `csg-edge train` or as in "
                            "docs/teacher-format.md")  # fmt: skip
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(
                    f"{path.relative_to(folder).as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode()
                )
        except OSError as error:
            raise TrainingError(f"{path}: cannot read ({error.strerror}); copy the model again") from None
    return digest.hexdigest()

"""Reading modules and schedulers that diffusers wrote: a short list of classes, safetensors only, never the network.

A class is looked up in a table here, not in what a file says; nothing is downloaded and no code from a folder runs.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from csg_edge.errors import InputError, TrainingError
from csg_edge.training.model_files import read_json
from csg_edge.training.quiet import quiet

MODULES = ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL", "VQModel")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONVERT = "safetensors.torch.save_file(torch.load({!r}, weights_only=True), 'diffusion_pytorch_model.safetensors')"


def load_module(directory: Path, name: str) -> Any:
    """A diffusers module of class `name`, one of MODULES, from `config.json` and safetensors, one file or sharded.

    Raises TrainingError for a pickle, a missing or damaged file, or weights that do not fit the config, and InputError
    without diffusers.
    """
    config = read_json(directory / "config.json")
    if name not in MODULES or config.get("_class_name") != name:
        raise TrainingError(
            f"{directory / 'config.json'}: class {config.get('_class_name')!r}; give one of {', '.join(MODULES)}"
        )
    refuse_pickles(directory)
    if "quantization_config" in config:
        raise TrainingError(f"{directory / 'config.json'}: quantised weights; give the teacher in fp32 or fp16")
    diffusers = import_diffusers()
    try:
        with _quiet_diffusers():
            module, report = getattr(diffusers, name).from_pretrained(
                str(directory),
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                torch_dtype=torch.float32,
            )
    except Exception as error:  # a wrong config or file can fail anywhere inside diffusers
        raise TrainingError(f"{directory}: not a readable {name} ({_first_line(error)}); save it again") from None
    for kind, keys in (("missing", report["missing_keys"]), ("unexpected", report["unexpected_keys"])):
        if keys:
            raise TrainingError(
                f"{directory}: {len(keys)} weights are {kind}, {sorted(keys)[0]} first; the weights are not those of "
                "config.json, save both again"
            )
    return module.eval().requires_grad_(False)


def refuse_pickles(directory: Path) -> None:
    """Raise TrainingError if a folder has weights, but no safetensors."""
    if not directory.is_dir():
        raise TrainingError(f"{directory}: missing; see docs/teacher-format.md")
    files = sorted(directory.iterdir())
    if any(path.suffix == ".safetensors" for path in files):
        return
    pickles = [path for path in files if path.suffix in PICKLES]
    if pickles:
        raise TrainingError(
            f"{pickles[0]}: a pickle, which may run any code when it is opened; convert it where you trust it: "
            + CONVERT.format(pickles[0].name)
        )
    raise TrainingError(f"{directory}: no weights (*.safetensors); save the model with safe_serialization=True")


def make_scheduler(config: dict[str, Any], name: str, **changes: Any) -> Any:
    """A diffusers scheduler from its JSON. Raises TrainingError for values it refuses."""
    diffusers = import_diffusers()
    try:
        with _quiet_diffusers():
            return getattr(diffusers, name).from_config(config, **changes)
    except Exception as error:
        raise TrainingError(f"scheduler_config.json: not a usable {name} ({_first_line(error)})") from None


def import_diffusers() -> Any:
    """The diffusers package. Raises InputError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import diffusers
    except ImportError:
        raise InputError("diffusers not installed; pip install 'csg-edge[train]'") from None
    return diffusers


def _quiet_diffusers() -> AbstractContextManager[None]:
    # It tells of unused keys and initialised weights in many lines; what matters is checked here.
    return quiet("diffusers", below=logging.CRITICAL)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__

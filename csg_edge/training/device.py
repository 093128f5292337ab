"""Where and in which precision training runs."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from csg_edge.datasets.batches import Batch
from csg_edge.errors import InputError


class Tensors(NamedTuple):
    """A batch where training runs."""

    image: Tensor  # (B, H, W) uint8
    mask: Tensor  # (B, H, W) uint8
    context: Tensor  # (B, H, W) uint8
    field: Tensor  # (B, 3, 16, 16) float32


def tensors(batch: Batch, device: torch.device) -> Tensors:
    """A batch as tensors on a device; on a CPU they share its memory."""
    return Tensors(*(torch.from_numpy(item).to(device) for item in batch))


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda`. Raises InputError when CUDA is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; use --device cpu")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` becomes bf16 where the hardware computes in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def check_compiler(device: torch.device) -> None:
    """Raise InputError where torch.compile has nothing to compile with: on a CPU it writes C++."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))):
        raise InputError("--compile: no C++ compiler here; install g++, or leave it out")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Mixed precision for bf16, nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def seeded(*key: int, device: torch.device | None = None) -> torch.Generator:
    """A generator for one iteration of one run, whose draws depend on the key alone: of the CPU, or of a device."""
    return torch.Generator(device or "cpu").manual_seed(
        int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )

"""The flow between noise and latents, and its samplers.

Rectified flow (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747): z_t = (1 - t) z_0 + t e, velocity e -
z_0, timestep t in 0 (data) .. 1 (noise). A sampler is a plain function of (velocity, noise, timesteps).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from csg_edge.errors import InputError

Velocity = Callable[[Tensor, float], Tensor]
"""(B, C, h, w) latent and a timestep -> (B, C, h, w) velocity, conditions bound."""

TEACHER_STEPS = 11
"""Evaluations of the teacher for one image."""

STUDENT_TIMESTEPS = {1: (1.0, 0.0), 2: (1.0, 0.5, 0.0), 4: (1.0, 5 / 6, 0.5, 1 / 6, 0.0)}
"""Steps -> timesteps."""


def parse_steps(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4). Raises InputError for anything the sampler has no timesteps for."""
    known = ", ".join(map(str, STUDENT_TIMESTEPS))
    try:
        steps = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise InputError(f"--steps {text}: give numbers among {known}, separated by commas") from None
    if not set(steps) <= set(STUDENT_TIMESTEPS):
        raise InputError(f"--steps {text}: choose among {known}")
    return steps


def mix(clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """z_t for one timestep per image (B,)."""
    weight = timestep.view(-1, 1, 1, 1)
    return (1.0 - weight) * clean + weight * noise


def training_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """(count,) timesteps in 0..1, where the generator is.

    One half are logit-normal (Esser et al., arXiv 2403.03206), one half uniform in 0.6..1.

    Where a structure lies is decided near pure noise, where the logit-normal alone hardly ever looks: trained with
    it, the first prediction ignored the mask after 1,000 iterations, while speckle was already right.
    """
    where = generator.device
    middle = torch.sigmoid(torch.randn(count, generator=generator, device=where))
    late = 0.6 + 0.4 * torch.rand(count, generator=generator, device=where)
    return torch.where(torch.rand(count, generator=generator, device=where) < 0.5, middle, late)


def teacher_timesteps(steps: int) -> tuple[float, ...]:
    """`steps + 1` timesteps from 1 to 0, dense at both ends, where the flow bends most.

    With eleven evaluations and `multistep` a sample lies a quarter as far from the end of the exact flow as with six
    even steps of Heun's method, which lost 45 % of the power of the lowest band and 25 % of that of the highest.
    """
    even = [index / steps for index in range(steps, 0, -1)]
    bent = [u - 0.6 * math.sin(2.0 * math.pi * u) / (2.0 * math.pi) + 0.1 * u * (1.0 - u) for u in even]
    return (*bent, 0.0)


def euler(velocity: Velocity, noise: Tensor, timesteps: Sequence[float]) -> Tensor:
    """First order; with one step this is z_0 = z_1 - v(z_1, 1), the student's own rule."""
    latent = noise
    for now, then in pairwise(timesteps):
        latent = latent + (then - now) * velocity(latent, now)
    return latent


def multistep(velocity: Velocity, noise: Tensor, timesteps: Sequence[float]) -> Tensor:
    """Two-step Adams-Bashforth with uneven steps: second order at one evaluation a step; the first step is Euler's.

    Linear multistep methods for diffusion: Liu et al., arXiv 2202.09778; Zhang & Chen, arXiv 2204.13902.
    """
    latent, before, step_before = noise, None, 0.0
    for now, then in pairwise(timesteps):
        slope, step = velocity(latent, now), then - now
        ahead = slope if before is None else slope + (slope - before) * (step / (2.0 * step_before))
        latent = latent + step * ahead
        before, step_before = slope, step
    return latent

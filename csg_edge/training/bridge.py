"""The Brownian bridge diffusion process between an image's latent and its condition's (BBDM, arXiv 2205.07680).

Between the clean latent x_0 and the condition y, here the encoded mask, with m_t from near 0 to near 1:

    q(x_t | x_0, y) = N((1 - m_t) x_0 + m_t y, d_t I),    d_t = 2 s (m_t - m_t^2)

(s is the paper's factor of diversity). A network's prediction gives x_0 in one of three ways; an
accelerated step from t to an earlier u keeps the direction of the noise it finds, as DDIM does:

    x_u = (1 - m_u) x_0 + m_u y + sqrt(d_u - v) / sqrt(d_t) (x_t - (1 - m_t) x_0 - m_t y) + sqrt(v) z
    v = eta^2 d_u (1 - d_u (1 - m_t)^2 / (d_t (1 - m_u)^2))    the posterior's variance for eta = 1

The start is y itself, where there is no noise to keep: the first step draws all of sqrt(d_u) afresh. That is the exact
posterior of x_u, which given x_T = y is the marginal. Our input noise enters there, so that one condition has as many
images as there are seeds; what follows is deterministic, or for eta > 0 draws from a stream keyed by that noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csg_edge.errors import TrainingError

PREDICTIONS = ("grad", "noise", "ysubx")
KEYS = {"_class_name", "num_train_timesteps", "m_min", "m_max", "max_variance", "prediction_type", "eta"}
Predict = Callable[[Tensor, Tensor], Tensor]
"""(B, C, h, w) latent and a timestep () -> the network's prediction (B, C, h, w), conditions bound."""


@dataclass(frozen=True)
class BrownianBridge:
    """`scheduler/scheduler_config.json` of a bridge.

    Timestep i of the network, 0..timesteps - 1, has m_i linearly from m_min to m_max; by default i + 1 over the number
    of timesteps, the paper's t / T.
    """

    timesteps: int = 1000
    m_min: float = 0.001
    m_max: float = 1.0
    max_variance: float = 1.0  # s
    prediction: str = "grad"
    eta: float = 0.0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> BrownianBridge:
        """Raises TrainingError for unknown keys and values out of range."""
        if unknown := sorted(set(values) - KEYS - {"_diffusers_version"}):
            raise TrainingError(
                f"scheduler_config.json: BrownianBridge knows no {unknown[0]!r}; {', '.join(sorted(KEYS))}"
            )
        try:
            timesteps = int(values.get("num_train_timesteps", 1000))
            bridge = cls(
                timesteps=timesteps,
                m_min=float(values.get("m_min", 1.0 / max(timesteps, 1))),
                m_max=float(values.get("m_max", 1.0)),
                max_variance=float(values.get("max_variance", 1.0)),
                prediction=values.get("prediction_type", "grad"),
                eta=float(values.get("eta", 0.0)),
            )
        except (TypeError, ValueError) as error:
            raise TrainingError(f"scheduler_config.json: BrownianBridge: {error}") from None
        if bridge.prediction not in PREDICTIONS:
            raise TrainingError(
                f"scheduler_config.json: prediction_type {bridge.prediction!r}; a bridge has {', '.join(PREDICTIONS)}"
            )
        if bridge.timesteps < 2 or not 0.0 <= bridge.m_min < bridge.m_max <= 1.0 or bridge.max_variance <= 0.0:
            raise TrainingError(
                "scheduler_config.json: give 0 <= m_min < m_max <= 1, max_variance > 0, 2 timesteps or more"
            )
        if not 0.0 <= bridge.eta <= 1.0:
            raise TrainingError(f"scheduler_config.json: eta {bridge.eta}; give 0 to 1")
        if bridge.prediction == "noise" and bridge.m_max == 1.0:
            raise TrainingError("scheduler_config.json: at m_max 1 noise says nothing of the image; give m_max < 1")
        return bridge

    def weight(self, index: int) -> float:
        """m at a timestep of the network."""
        return self.m_min + (self.m_max - self.m_min) * index / (self.timesteps - 1)

    def variance(self, index: int) -> float:
        """d at a timestep of the network."""
        weight = self.weight(index)
        return 2.0 * self.max_variance * (weight - weight * weight)

    def diffuse(self, clean: Tensor, end: Tensor, noise: Tensor, index: int) -> Tensor:
        """x_t of the forward process."""
        weight = self.weight(index)
        return (1.0 - weight) * clean + weight * end + self.variance(index) ** 0.5 * noise

    def target(self, clean: Tensor, end: Tensor, noise: Tensor, index: int) -> Tensor:
        """What a network of this prediction is trained to say at `diffuse(clean, end, noise, index)`."""
        if self.prediction == "noise":
            return noise
        if self.prediction == "ysubx":
            return end - clean
        return self.diffuse(clean, end, noise, index) - clean

    def clean(self, prediction: Tensor, latent: Tensor, end: Tensor, index: int) -> Tensor:
        """The estimate of x_0 that a prediction stands for."""
        if self.prediction == "grad":
            return latent - prediction
        if self.prediction == "ysubx":
            return end - prediction
        weight = self.weight(index)
        return (latent - weight * end - self.variance(index) ** 0.5 * prediction) / (1.0 - weight)

    def sample(self, predict: Predict, noise: Tensor, *, start: Tensor, steps: int) -> Tensor:
        """From the encoded mask `start` to a clean latent; `noise` is what the first step injects."""
        indices = np.unique(np.linspace(0, self.timesteps - 1, steps).round().astype(int))[::-1].tolist()
        streams = _streams(noise) if self.eta > 0.0 else []
        latent = start
        for position, now in enumerate(indices):
            timestep = torch.tensor(now, device=noise.device)
            estimate = self.clean(predict(latent, timestep).float(), latent, start, now)
            if position == len(indices) - 1:
                break
            then = indices[position + 1]
            if position == 0:
                latent = self.diffuse(estimate, start, noise, then)
            else:
                latent = self._step(latent, estimate, start, now, then, streams)
        return estimate

    def _step(
        self, latent: Tensor, clean: Tensor, end: Tensor, now: int, then: int, streams: list[np.random.Generator]
    ) -> Tensor:
        m_now, m_then, d_now, d_then = self.weight(now), self.weight(then), self.variance(now), self.variance(then)
        posterior = d_then * (1.0 - d_then * (1.0 - m_now) ** 2 / (d_now * (1.0 - m_then) ** 2))
        fresh = self.eta**2 * max(posterior, 0.0)
        found = latent - (1.0 - m_now) * clean - m_now * end
        latent = (1.0 - m_then) * clean + m_then * end + ((d_then - fresh) / d_now) ** 0.5 * found
        if fresh > 0.0:
            drawn = np.stack([stream.standard_normal(latent.shape[1:], dtype=np.float32) for stream in streams])
            latent = latent + fresh**0.5 * torch.from_numpy(drawn).to(latent.device)
        return latent


def _streams(noise: Tensor) -> list[np.random.Generator]:
    """One stream per image, keyed by the SHA-256 of its noise: independent of the batch."""
    rows = noise.detach().to("cpu", torch.float32).numpy()
    return [
        np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:16], "little")))
        for row in rows
    ]

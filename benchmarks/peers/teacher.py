"""The many-step teacher, as one would run it without distillation: in diffusers, and exported to OpenVINO.

Neither uses guidance, which would double the cost of the guided evaluations: the ratios are on the careful side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from student import Make, compile_part

TEACHER = Path(__file__).parents[2] / "export" / "msk-256.teacher"


def diffusers_pipeline(*, evaluations: int, threads: int, precision: str) -> Make:
    """A diffusers pipeline in torch eager: FlowMatchEulerDiscreteScheduler over our teacher's network."""
    import torch
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

    from csg_edge.training.model import CsgModel

    torch.set_num_threads(threads)

    class Pipeline(DiffusionPipeline):  # type: ignore[misc]
        def __init__(self, model: Any, scheduler: Any) -> None:
            super().__init__()
            self.register_modules(scheduler=scheduler)
            self.model = model

        @torch.inference_mode()
        def __call__(self, mask: Any, context: Any, noise: Any, num_inference_steps: int) -> Any:
            self.scheduler.set_timesteps(num_inference_steps)
            field = self.model.used_field(mask, context, noise)
            velocity = self.model.velocity(self.model.conditions(mask, context, field))
            latent = noise
            for timestep, sigma in zip(self.scheduler.timesteps, self.scheduler.sigmas, strict=False):
                latent = self.scheduler.step(velocity(latent, float(sigma)), timestep, latent).prev_sample
            return self.model.autoencoder.decode(latent)

    model = CsgModel.load(TEACHER).eval().to(memory_format=torch.channels_last)
    pipeline = Pipeline(model, FlowMatchEulerDiscreteScheduler())

    def make(mask: Any, context: Any, noise: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            inputs = (torch.from_numpy(array) for array in (mask, context, noise))
            return np.asarray(pipeline(*inputs, num_inference_steps=evaluations))

    return make


def openvino_unrolled(*, threads: int, precision: str) -> Make:
    """The teacher's own sampler, eleven evaluations, as one OpenVINO model."""
    import torch

    from csg_edge.training.model import CsgModel

    model = CsgModel.load(TEACHER).eval()

    class Unrolled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, mask: Any, context: Any, noise: Any) -> Any:
            return self.model.autoencoder.decode(self.model.integrate(mask, context, noise, guidance=1.0))

    pixels = torch.ones((1, model.image_size, model.image_size), dtype=torch.uint8)
    request = compile_part(Unrolled(), (pixels, pixels, torch.zeros(model.latent_shape(1))), precision, threads)
    return lambda mask, context, noise: request.infer([mask, context, noise], share_inputs=True)[0]

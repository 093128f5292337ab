"""Fine-tuning a student so that int8 changes its images less: the fallback where calibration alone misses the gate.

Quantisation-aware training in the sense of Jacob et al. (arXiv 1712.05877): convolutions compute with weights and
inputs rounded to eight bits, gradients pass the rounding as if it were none. The target is the student's own image in
fp32, so nothing is learned but to bear the rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from csg_edge.datasets.batches import BatchSource, read_training_sets
from csg_edge.errors import TrainingError
from csg_edge.training.device import Tensors, autocast, seeded
from csg_edge.training.distil import LOSS_FLOOR, check_same, walk
from csg_edge.training.loop import LoopConfig, fit_on_batches, start_or_resume
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import Conditions, CsgUNet

LEVELS = 127  # each side of zero: symmetric, as every runtime family takes it
DROPOUT = 0.1
FLOOR = 1e-8  # of a scale: a channel of zeros stays one


def round_input(features: Tensor) -> Tensor:
    """Eight bits over the range of this batch, all of one timestep: in use each has ranges of its own."""
    scale = (features.detach().abs().amax().float() / LEVELS).clamp_min(FLOOR)
    zero = torch.zeros((), dtype=torch.int32, device=features.device)
    rounded = torch.fake_quantize_per_tensor_affine(features.float(), scale, zero, -LEVELS, LEVELS)
    return rounded.to(features.dtype)


def round_weight(weight: Tensor) -> Tensor:
    """Eight bits per output channel of a convolution's (C, D, k, k) weight."""
    scale = (weight.detach().flatten(1).abs().amax(dim=1).float() / LEVELS).clamp_min(FLOOR)
    zero = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -LEVELS, LEVELS)


def quantised_layers(network: CsgUNet) -> dict[str, nn.Conv2d]:
    """Convolutions of the denoiser; not those of conditions alone, nor the stem, whose columns are split."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size != (1, 1)
        and not name.startswith(("style", "mask_stem", "stem"))
    }


@contextmanager
def rounded_inputs(layers: Iterable[nn.Conv2d]) -> Iterator[None]:
    """While this lasts, every layer's input is rounded."""
    hooks = [layer.register_forward_pre_hook(lambda _layer, inputs: (round_input(inputs[0]),)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def int8_velocity(network: CsgUNet, latent: Tensor, timestep: float, conditions: Conditions) -> Tensor:
    """What the denoiser says with weights and inputs in eight bits; gradients reach its own weights."""
    layers = quantised_layers(network)
    weights = {f"{name}.weight": round_weight(layer.weight) for name, layer in layers.items()}
    embedding = network.embed_time(torch.full((1,), timestep, device=latent.device))
    with rounded_inputs(layers.values()):
        return functional_call(network, weights, (latent, embedding, conditions)).float()


def tune_int8(student: CsgModel, data: list[Path], loop: LoopConfig, *, out: Path, device: torch.device) -> bool:
    """Tune or resume; writes `out/student` at the end. Returns False when stopped early.

    data: labelled sets, whose train groups give masks and contexts. Raises TrainingError for a folder of another run or
    a model that is no student.
    """
    if student.role != "student":
        raise TrainingError(f"a {student.role} is not tuned for int8, a student is; make one with `csg-edge distill`")
    sets = read_training_sets(data, student.schema, split="train", size=student.image_size)
    source = BatchSource(sets, [1.0] * len(sets), batch=loop.batch, dropout=DROPOUT, seed=loop.seed)
    run: dict[str, Any] = {"start": student.fingerprint(), "data": sorted(path.name for path in data), "for": "int8"}
    check_same(out / "student.json", run)
    student = student.to(device, memory_format=torch.channels_last)
    frozen = copy.deepcopy(student).eval()
    network, places = student.network.train(), student.inner_places
    state = start_or_resume(network, loop, out)

    def loss(iteration: int, batch: Tensors) -> Tensor:
        mask, context = batch.mask, batch.context
        noise = torch.randn(student.latent_shape(len(mask)), generator=seeded(loop.seed, iteration)).to(device)
        random = np.random.default_rng([loop.seed, iteration])
        later = bool(places) and random.random() < 0.5
        place = places[int(random.integers(len(places)))] if later else (1, 0)
        with autocast(device, loop.precision):
            with torch.no_grad():
                field = frozen.used_field(mask, context, noise)
            latent, reached = walk(frozen, noise, mask, context, field, [place] * len(noise))
            timestep = reached[0].item()
            with torch.no_grad():
                wanted = latent - timestep * frozen.velocity(frozen.conditions(mask, context, field))(latent, timestep)
            made = latent - timestep * int8_velocity(
                network, latent, timestep, student.conditions(mask, context, field)
            )
        return ((made - wanted).square().mean(dim=(1, 2, 3)) + LOSS_FLOOR).sqrt().mean()

    finished = fit_on_batches(state, source, loss, loop, device=device, directory=out, label="tune int8")
    student.save(out / "student")
    return finished

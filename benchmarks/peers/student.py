"""The student through other hands: the same graph or the same network, each used as its makers recommend."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from csg_edge.bundle.manifest import find_bundle
from csg_edge.conditions.fibres import nothing_given

HINTS = {"bf16": "bf16", "fp32": "f32"}
STUDENT = Path(__file__).parents[2] / "export" / "msk-256.student"

Make = Callable[[Any, Any, Any], Any]
"""mask (1, H, W) uint8, context (1, H, W) uint8, noise (1, C, h, w) float32 -> image (1, H, W) uint8."""


def bare_onnxruntime(*, bundle: str, steps: int, threads: int) -> Make:
    """An InferenceSession on the bundle's graph and nothing else."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = find_bundle(bundle) / "graphs" / f"steps-{steps}.batch-1.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names, fibre = {port.name for port in session.get_inputs()}, nothing_given()[None]

    def make(mask: Any, context: Any, noise: Any) -> Any:
        feeds = {"mask": mask, "context": context, "noise": noise, "fibre": fibre}
        return session.run(["image"], {name: feeds[name] for name in names})[0]

    return make


def torch_student(*, steps: int, threads: int, precision: str, compiled: bool) -> Make:
    """The student's network in torch, channels last; bf16 by autocast, `compiled` by torch.compile."""
    import torch

    from csg_edge.export.graph import FewStepGraph
    from csg_edge.training.model import CsgModel

    torch.set_num_threads(threads)
    module: Any = FewStepGraph(CsgModel.load(STUDENT).eval(), steps).eval().to(memory_format=torch.channels_last)
    if compiled:
        module = torch.compile(module)

    fibre = nothing_given()[None]

    def make(mask: Any, context: Any, noise: Any) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            image, _ = module(*(torch.from_numpy(array) for array in (mask, context, noise, fibre)))
            return image.numpy()

    return make


def step_loop(*, steps: int, threads: int, precision: str) -> Make:
    """Three OpenVINO models, context encoder, denoiser and decoder, and the sampler's loop in Python.

    So optimum-intel and openvino.genai run diffusion models. Inputs and outputs are shared, not copied.
    """
    import torch

    from csg_edge.training.model import CsgModel
    from csg_edge.training.process import STUDENT_TIMESTEPS

    model = CsgModel.load(STUDENT).eval()
    size, shape = model.image_size, model.latent_shape(1)
    pixels = torch.ones((1, size, size), dtype=torch.uint8)
    start, fibre = torch.zeros(shape), nothing_given()[None]
    with torch.inference_mode():
        like, _ = model.conditions_of(pixels, pixels, start, torch.from_numpy(fibre))

    class Encode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, mask: Any, context: Any, noise: Any, given: Any) -> Any:
            return tuple(flatten(self.model.conditions_of(mask, context, noise, given)[0]))

    class Denoise(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.network

        def forward(self, latent: Any, time_embedding: Any, *conditions: Any) -> Any:
            return self.network(latent, time_embedding, rebuild(like, iter(conditions)))

    class Decode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.autoencoder = model.autoencoder

        def forward(self, latent: Any) -> Any:
            return self.autoencoder.decode(latent)

    # Worked out beforehand, as in our graph, so that the loop is charged for nothing that ours does not do.
    with torch.inference_mode():
        times = [model.network.embed_time(torch.full((1,), now)) for now in STUDENT_TIMESTEPS[steps][:-1]]
    embeddings = [time.numpy() for time in times]
    parts = [
        (Encode(), (pixels, pixels, start, torch.from_numpy(fibre))),
        (Denoise(), (start, times[0].clone(), *(item.clone() for item in flatten(like)))),
        (Decode(), (start,)),
    ]
    encode, denoise, decode = (compile_part(module, example, precision, threads) for module, example in parts)

    def call(request: Any, *inputs: Any) -> list[Any]:
        return list(request.infer(list(inputs), share_inputs=True, share_outputs=True).values())

    def make(mask: Any, context: Any, noise: Any) -> Any:
        conditions = call(encode, mask, context, noise, fibre)
        latent = noise
        for (now, then), embedding in zip(pairwise(STUDENT_TIMESTEPS[steps]), embeddings, strict=True):
            (velocity,) = call(denoise, latent, embedding, *conditions)
            latent = latent + np.float32(then - now) * velocity
        return call(decode, latent)[0]

    return make


def compile_part(module: Any, example: tuple[Any, ...], precision: str, threads: int) -> Any:
    """A torch module as an OpenVINO infer request with the shapes of its example."""
    import openvino
    import torch

    with torch.inference_mode():
        model = openvino.convert_model(torch.jit.trace(module, example, check_trace=False))
    for port, tensor in zip(model.inputs, example, strict=True):
        port.get_node().set_partial_shape(openvino.PartialShape(list(tensor.shape)))
        port.get_node().set_element_type(openvino.Type(tensor.numpy().dtype))
    model.validate_nodes_and_infer_types()
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
    }
    return openvino.Core().compile_model(model, "CPU", options).create_infer_request()


def flatten(value: Any) -> list[Any]:
    """The tensors of nested tuples, in order; None holds none."""
    if value is None:
        return []
    return [item for part in value for item in flatten(part)] if isinstance(value, tuple) else [value]


def rebuild(like: Any, tensors: Iterator[Any]) -> Any:
    """Nested tuples as in `like`, with these tensors."""
    if like is None:
        return None
    if not isinstance(like, tuple):
        return next(tensors)
    parts = [rebuild(part, tensors) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def benchmark_app_ms(bundle: str, *, steps: int, threads: int, precision: str, seconds: float) -> float:
    """Median latency in ms of the bundle's graph by OpenVINO's own tool: synchronous, one stream.

    That is what the latency hint means, and the tool takes no number of threads beside a hint."""
    graph = find_bundle(bundle) / "graphs" / f"steps-{steps}.batch-1.onnx"
    command = [
        Path(sys.executable).parent / "benchmark_app", "-m", graph, "-d", "CPU", "-hint", "none", "-nstreams", 1,
        "-nthreads", threads, "-api", "sync", "-infer_precision", HINTS[precision], "-t", max(1, round(seconds)),
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    if found is None:
        raise RuntimeError(f"benchmark_app printed no median: {(done.stderr or done.stdout).strip()[-300:]}")
    return float(found.group(1))

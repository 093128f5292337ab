"""A student becomes one ONNX graph per number of steps: mask, context, noise[, fibre] -> image[, fibre_used].

Condition encoder, fibre prior, one-hot, every denoiser evaluation, decoder and uint8 conversion are all inside.
Timesteps are constants, so the time embedding is computed here and its network never enters the graph. Nodes are named
`stage/module/operator`, the stages being `context`, `step_1`, `step_2`, ... and `decode`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import onnx
import torch
from onnx import helper
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from csg_edge import __version__
from csg_edge.conditions import fibres
from csg_edge.errors import EngineError, InputError
from csg_edge.export.targets import MAX_BATCH
from csg_edge.export.weights import Tensors, share_weights, write_graphs
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import Conditions
from csg_edge.training.process import STUDENT_TIMESTEPS
from csg_edge.training.quiet import quiet

OPSET = 20  # ONNX Runtime 1.32 fails on quantised graphs of opset 21 and later
MAX_IMAGE_SIZE = 512
SIZE_MULTIPLE = 32
FOLDED = 2**24  # elements of a constant worked out on export
SCOPES = "pkg.torch.onnx.name_scopes"


class ContextStage(nn.Module):
    """Mask and context (B, H, W) uint8 -> Conditions.

    Where the student takes a fibre field, also of noise (B, C, h, w) and what is given of it (B, 3, 16, 16); with the
    conditions goes the field that is used, or None.
    """

    def __init__(self, model: CsgModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, mask: Tensor, context: Tensor, noise: Tensor, given: Tensor | None
    ) -> tuple[Conditions, Tensor | None]:
        # TensorRT takes a uint8 input only if it is cast before anything else.
        mask, context = mask.to(torch.int64), context.to(torch.float32)
        if given is None:
            return self.model.conditions(mask, context), None
        return self.model.conditions_of(mask, context, noise, given)


class Update(nn.Module):
    """One Euler step along the velocity."""

    def __init__(self, span: float) -> None:
        super().__init__()
        self.span = span

    def forward(self, latent: Tensor, velocity: Tensor) -> Tensor:
        return latent + self.span * velocity


class StepStage(nn.Module):
    """One denoiser evaluation and the step it leads to; (B, C, h, w) latent -> latent."""

    time_embedding: Tensor

    def __init__(self, model: CsgModel, now: float, then: float) -> None:
        super().__init__()
        self.network, self.update = model.network, Update(then - now)
        with torch.no_grad():
            self.register_buffer("time_embedding", model.network.embed_time(torch.tensor([now])))  # (1, E)

    def forward(self, latent: Tensor, conditions: Conditions) -> Tensor:
        velocity: Tensor = self.network(latent, self.time_embedding, conditions)
        latent = self.update(latent, velocity)
        return latent


class DecodeStage(nn.Module):
    """(B, C, h, w) latent -> (B, H, W) uint8."""

    def __init__(self, model: CsgModel) -> None:
        super().__init__()
        self.autoencoder = model.autoencoder

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.autoencoder.decode(latent)
        return image


class FewStepGraph(nn.Module):
    """The student with its sampler unrolled.

    (B, H, W) uint8, (B, H, W) uint8, (B, C, h, w) float32 -> (B, H, W) uint8; with a fibre prior also the fibre field,
    given and used, (B, 3, 16, 16) float32.
    """

    def __init__(self, model: CsgModel, steps: int) -> None:
        super().__init__()
        self.context = ContextStage(model)
        self.steps = nn.ModuleList(StepStage(model, now, then) for now, then in pairwise(STUDENT_TIMESTEPS[steps]))
        self.decode = DecodeStage(model)

    def forward(
        self, mask: Tensor, context: Tensor, noise: Tensor, fibre: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        conditions, used = self.context(mask, context, noise, fibre)
        latent = noise
        for step in self.steps:
            latent = step(latent, conditions)
        image: Tensor = self.decode(latent)
        return image if used is None else (image, used)


def graph_name(steps: int, *, batch: int | None, precision: str = "fp32") -> str:
    """File name of a graph: `steps-1.onnx`, `steps-1.batch-1.onnx`, `steps-1.batch-1.fp16.onnx`."""
    parts = [f"steps-{steps}", *([f"batch-{batch}"] if batch else []), *([precision] if precision != "fp32" else [])]
    return ".".join([*parts, "onnx"])


def check_student(model: CsgModel) -> None:
    """Raise InputError unless the model is a student whose parts fit together at its image size."""
    config, autoencoder = model.network.config, model.autoencoder
    if model.role != "student":
        raise InputError(f"student: this is a {model.role}; make a student of it with `csg-edge distill`")
    if config.latent_channels != autoencoder.channels or config.patch != autoencoder.patch:
        raise InputError(
            f"student: the network has {config.latent_channels} latent channels at 1/{config.patch} size, the "
            f"autoencoder makes {autoencoder.channels} at 1/{autoencoder.patch}; they are from two models, distil again"
        )
    if config.fibres and model.prior is None:
        raise InputError("student: it takes a fibre field, but has no prior to draw one; train its teacher to the end")
    multiple = max(
        SIZE_MULTIPLE, fibres.SIDE * config.patch if config.fibres else 0, config.patch * 2 ** (len(config.widths) - 1)
    )
    if not 0 < model.image_size <= MAX_IMAGE_SIZE or model.image_size % multiple:
        raise InputError(
            f"--size {model.image_size}: give a multiple of {multiple} up to {MAX_IMAGE_SIZE}; "
            "the network halves its input and cannot take others"
        )


def export_graphs(model: CsgModel, steps: Sequence[int], directory: Path) -> dict[tuple[int, int | None], Path]:
    """Write, for each number of steps, the graph for a free batch and for batch 1, and one weights file they share.

    Returns (steps, batch) -> path. Raises InputError for a model that is no whole student.
    """
    check_student(model)
    if unknown := sorted(set(steps) - set(model.steps)):
        raise InputError(
            f"--steps {','.join(map(str, unknown))}: the student was made for {', '.join(map(str, model.steps))}; "
            "choose among these, or distil again with --steps"
        )
    model = model.cpu().eval()
    graphs = {
        (count, batch): _trace(FewStepGraph(model, count).eval(), model, batch)
        for count in steps
        for batch in (None, 1)
    }
    tensors: Tensors = {}
    for (count, batch), graph in graphs.items():
        tensors |= share_weights(graph)
        helper.set_model_props(graph, _metadata(model, count, batch))
    names = {key: graph_name(key[0], batch=key[1]) for key in graphs}
    write_graphs({names[key]: graph for key, graph in graphs.items()}, tensors, directory)
    return {key: directory / name for key, name in names.items()}


def _metadata(model: CsgModel, steps: int, batch: int | None) -> dict[str, str]:
    values = {
        "steps": steps,
        "timesteps": STUDENT_TIMESTEPS[steps],
        "labels": model.schema.names,
        "image_size": [model.image_size, model.image_size],
        "noise_shape": model.latent_shape(1)[1:],
        "batch": batch,
        "precision": "fp32",
        "producer": f"csg-edge {__version__}",
    }
    return {f"csg_edge.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _trace(module: FewStepGraph, model: CsgModel, batch: int | None) -> onnx.ModelProto:
    count = batch or 2  # a traced batch of 1 would be taken for a constant
    size = (count, model.image_size, model.image_size)
    example: tuple[Tensor, ...] = (
        torch.zeros(size, dtype=torch.uint8),
        torch.ones(size, dtype=torch.uint8),
        torch.zeros(model.latent_shape(count)),
    )
    if model.prior is not None:
        example += (torch.zeros(count, *fibres.SHAPE),)
    free = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    # The exporter reports at length on torchvision operators and its own deprecations.
    with torch.no_grad(), quiet("torch.onnx"):
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["mask", "context", "noise", "fibre"][: len(example)],
            output_names=["image", "fibre_used"][: len(example) - 2],
            dynamic_shapes=None if batch else (free,) * len(example),
            verbose=False,
        )
        if program is None:
            raise EngineError("torch.onnx.export returned no program")
        # The stem's weights are used in two parts, which the exporter leaves as slices: too large for its own folding.
        fold_constants(program.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    graph = program.model_proto
    graph.producer_version = ""
    _name_nodes(graph.graph)
    return graph


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name nodes `stage/module/operator` and drop what else the exporter says of them.

    Its stack traces say nothing to a reader and would change the hash from machine to machine.
    """
    place_of: dict[str, str] = {}  # output -> place of its producer
    count: dict[str, int] = {}
    for node in graph.node:
        properties = {item.key: item.value for item in node.metadata_props}
        if SCOPES in properties:
            place = _place(ast.literal_eval(properties[SCOPES])[-2])
        else:  # a node that the exporter's own optimiser put in, beside what feeds it
            place = next(place_of[name] for name in node.input if name in place_of)
        place_of.update(dict.fromkeys(node.output, place))
        name = f"{place}/{node.op_type}"
        count[name] = count.get(name, 0) + 1
        node.name = name if count[name] == 1 else f"{name}_{count[name]}"
        del node.metadata_props[:]


def _place(scope: str) -> str:
    """`steps.0.network.stem` -> `step_1/stem`, `context.model.network.style` -> `context/style`."""
    parts = scope.split(".")
    if parts[0] == "steps":
        parts[:2] = [f"step_{int(parts[1]) + 1}"]
    inner = [part for index, part in enumerate(parts[1:]) if not (index < 2 and part in ("model", "network"))]
    return "/".join([parts[0], ".".join(inner)]) if inner else parts[0]

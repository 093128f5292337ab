"""Model repositories for inference servers: Triton Inference Server and OpenVINO Model Server.

A served model is a bundle's own graph or engine, for one number of steps, as it lies in the bundle: the server gets
mask, context, noise and, where the bundle takes it, a fibre field, and gives the image. Noise is the client's to make
from a seed (`csg_edge.noise`), so that a served image is the image of the bundle.

Triton: one folder a model with `config.pbtxt` (triton-inference-server/server, docs/user_guide/model_configuration.md),
ONNX for its onnxruntime backend, full TensorRT engines for its tensorrt backend. OpenVINO Model Server: `config.json`
beside one folder a model (docs.openvino.ai, model-server, ovms_docs_parameters), OpenVINO IR or ONNX. Both are checked
against the files that they serve before the folder is put in place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from csg_edge.bundle.manifest import Bundle, Engine, Ports, Target
from csg_edge.errors import BundleError, InputError
from csg_edge.export.targets import MAX_BATCH
from csg_edge.export.weights import WEIGHTS_NAME
from csg_edge.storage import folder_replaced, write_json

SERVERS = ("triton", "ovms")
CONFIG, VERSION = "config.pbtxt", "1"
OVMS_CONFIG = "config.json"
OVMS_KEYS = frozenset({"name", "base_path", "target_device", "nireq", "plugin_config"})  # of those it documents, ours
TRITON_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


@dataclass(frozen=True)
class Served:
    """One model of a repository: its name, what it is of the bundle, and its batch (None: free)."""

    name: str
    engine: Engine
    batch: int | None

    @property
    def runtime(self) -> str:
        return Target.parse(self.engine.target).runtime


def write_repository(bundle: Bundle, out: Path, *, server: str) -> list[Served]:
    """Write the repository of a bundle for one of SERVERS; `out` is whole or untouched.

    Returns the models in it. Raises InputError for another server, a folder that holds something else or a bundle
    without an engine that the server runs; BundleError for a repository that its own files contradict.
    """
    if server not in SERVERS:
        raise InputError(f"--for {server}: choose among {', '.join(SERVERS)}")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not is_repository(out))):
        raise InputError(f"--out {out}: not empty and no model repository; choose another folder")
    served = models_of(bundle, server)
    if not served:
        offered = ", ".join(dict.fromkeys(engine.target for engine in bundle.manifest.engines))
        raise InputError(f"bundle {bundle.manifest.name} has nothing that {server} runs; it has {offered}")
    with folder_replaced(out) as aside:
        for model in served:
            folder = aside / model.name / VERSION
            folder.mkdir(parents=True)
            _copy_model(bundle, model, folder)
            if server == "triton":
                (aside / model.name / CONFIG).write_text(triton_config(bundle, model), encoding="utf-8")
        if server == "ovms":
            write_json(aside / OVMS_CONFIG, ovms_config(served))
        if faults := check_repository(aside, bundle, server=server):
            raise BundleError(f"{bundle.manifest.name}: {faults[0]}; export the bundle again")
    return served


def is_repository(folder: Path) -> bool:
    """Whether a folder looks like one that `write_repository` wrote."""
    return (folder / OVMS_CONFIG).is_file() or any(folder.glob(f"*/{CONFIG}"))


def models_of(bundle: Bundle, server: str) -> list[Served]:
    """What of a bundle a server can run: for each number of steps the most preferred engine of each kind."""
    kinds = {"triton": ("onnxruntime", "tensorrt"), "ovms": ("openvino",)}[server]
    found: dict[tuple[str, int, str], Served] = {}
    for engine in bundle.manifest.engines:
        target = Target.parse(engine.target)
        if target.runtime not in kinds or (target.runtime == "openvino" and target.device != "CPU"):
            continue
        name = f"{bundle.manifest.name}-{target.runtime}-{target.precision}-steps-{engine.steps}"
        free = engine.file.endswith(".onnx") and engine.batch is None
        found.setdefault((target.runtime, engine.steps, target.precision), Served(name, engine, None if free else 1))
    return list(found.values())


def triton_config(bundle: Bundle, model: Served) -> str:
    """`config.pbtxt` of a model: a free batch is Triton's own dimension, a fixed one stands in the shapes."""
    inputs, outputs = bundle.manifest.inputs, bundle.manifest.outputs
    fixed = () if model.batch is None else (model.batch,)

    def port(name: str, kind: str, shape: tuple[int, ...]) -> str:
        dims = ", ".join(map(str, (*fixed, *shape)))
        return f'  {{ name: "{name}" data_type: {TRITON_TYPES[kind]} dims: [ {dims} ] }}'

    lines = [f'name: "{model.name}"', f'backend: "{model.runtime}"']
    lines += [f'default_model_filename: "{_model_file(model)}"', f"max_batch_size: {0 if fixed else MAX_BATCH}"]
    for title, ports in (("input", inputs), ("output", outputs)):
        lines += [f"{title} [", ",\n".join(port(name, *about) for name, about in ports.items()), "]"]
    kind = "KIND_CPU" if Target.parse(model.engine.target).device == "CPU" else "KIND_GPU"
    lines += [f"instance_group [ {{ count: 1 kind: {kind} }} ]"]
    return "\n".join(lines) + "\n"


def ovms_config(served: Sequence[Served]) -> dict[str, Any]:
    """`config.json`; paths are relative to it."""
    rows = []
    for model in served:
        precision = Target.parse(model.engine.target).precision
        hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}[precision]
        rows.append(
            {
                "config": {
                    "name": model.name,
                    "base_path": model.name,
                    "target_device": "CPU",
                    "plugin_config": {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint},
                }
            }
        )
    return {"model_config_list": rows}


def check_repository(folder: Path, bundle: Bundle, *, server: str) -> list[str]:
    """What is wrong with a repository of a bundle, one line each; an empty list if nothing is.

    Names, types and shapes are held against the files themselves: ONNX and OpenVINO models are opened, TensorRT engines
    are taken at the manifest's word. Triton's configurations are parsed by its own protocol (tritonclient).
    """
    if server == "triton":
        configs = {path.parent.name: path for path in sorted(folder.glob(f"*/{CONFIG}"))}
        return [fault for name, path in configs.items() for fault in _check_triton(name, path, bundle)]
    try:
        rows = json.loads((folder / OVMS_CONFIG).read_text(encoding="utf-8"))["model_config_list"]
        configs_ = [row["config"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{OVMS_CONFIG}: not a list of models ({error})"]
    return [fault for row in configs_ for fault in _check_ovms(folder, row, bundle)]


def _check_triton(name: str, path: Path, bundle: Bundle) -> list[str]:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        return [f"{name}/{CONFIG}: {' '.join(str(error).split())}"]
    file = path.parent / VERSION / config.default_model_filename
    if not file.is_file():
        return [f"{name}: {VERSION}/{config.default_model_filename} is missing"]
    found = {}
    for port in (*config.input, *config.output):
        kind = model_config_pb2.DataType.Name(port.data_type)
        found[port.name] = (next((key for key, value in TRITON_TYPES.items() if value == kind), kind), tuple(port.dims))
    batch = () if config.max_batch_size else (1,)
    there = {port: (kind, (*batch, *shape)) for port, (kind, shape) in _ports_of_file(file, bundle).items()}
    faults = [f"{name}: named {config.name} in {CONFIG}"] if config.name != name else []
    return faults + _differences(name, found, there)


def _check_ovms(folder: Path, config: Mapping[str, Any], bundle: Bundle) -> list[str]:
    name = str(config.get("name"))
    if unknown := sorted(set(config) - OVMS_KEYS):
        return [f"{name}: {OVMS_CONFIG} has unknown keys {', '.join(unknown)}"]
    if missing := sorted({"name", "base_path"} - set(config)):
        return [f"{name}: {OVMS_CONFIG} lacks {', '.join(missing)}"]
    files = [
        path for path in (folder / config["base_path"] / VERSION).glob("model.*") if path.suffix in (".xml", ".onnx")
    ]
    if len(files) != 1:
        return [f"{name}: {config['base_path']}/{VERSION} holds {len(files)} models instead of one"]
    inputs, outputs = bundle.manifest.inputs, bundle.manifest.outputs
    return _differences(name, {**inputs, **outputs}, _ports_of_file(files[0], bundle))


def _differences(name: str, found: Ports, there: Ports) -> list[str]:
    faults = [f"{name}: {port} is not in the model" for port in sorted(set(found) - set(there))]
    faults += [f"{name}: {port} of the model is not served" for port in sorted(set(there) - set(found))]
    for port in sorted(set(found) & set(there)):
        if found[port] != there[port]:
            faults.append(f"{name}: {port} is {found[port]} in the configuration and {there[port]} in the model")
    return faults


def _ports_of_file(file: Path, bundle: Bundle) -> Ports:
    """Ports of a model file, without the batch."""
    if file.suffix == ".plan":
        return {**bundle.manifest.inputs, **bundle.manifest.outputs}
    if file.suffix == ".xml":
        import openvino

        model = openvino.Core().read_model(file)
        return {
            port.any_name: (
                port.element_type.to_dtype().name,
                tuple(size.get_length() for size in port.partial_shape)[1:],
            )
            for port in (*model.inputs, *model.outputs)
        }
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    found: Ports = {}
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        found[value.name] = (dtype, tuple(size.dim_value for size in kind.shape.dim)[1:])
    return found


def _model_file(model: Served) -> str:
    return "model" + {".engine": ".plan"}.get(
        PurePosixPath(model.engine.file).suffix, PurePosixPath(model.engine.file).suffix
    )


def _copy_model(bundle: Bundle, model: Served, folder: Path) -> None:
    source = bundle.file(model.engine.file)
    shutil.copyfile(source, folder / _model_file(model))
    if source.suffix == ".xml":
        shutil.copyfile(source.with_suffix(".bin"), folder / "model.bin")
    elif source.suffix == ".onnx":  # which names its weights file
        weights = source.with_name(WEIGHTS_NAME)
        if weights.is_file():
            shutil.copyfile(weights, folder / WEIGHTS_NAME)

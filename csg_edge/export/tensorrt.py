"""Engines for NVIDIA GPUs: TensorRT-RTX, ahead of time and without a GPU, and full TensorRT, on the GPU at hand.

Both have the same Python interface, so there is one path over the two modules. Networks are strongly typed: the types
in the graph are the types of the engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from csg_edge.errors import EngineError, InputError, RuntimeUnavailableError
from csg_edge.export.weights import read_graph, widen_weights
from csg_edge.storage import write_whole

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
DTYPES = {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32"}
# The layers that do the work; what they compute in is what an engine's precision means.
HEAVY_LAYERS = ("CONVOLUTION", "MATRIX_MULTIPLY", "NORMALIZATION", "SOFTMAX")

Ports = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of an input or output -> dtype as NumPy names it, shape."""


@dataclass(frozen=True)
class Options:
    """What full TensorRT alone understands: engines for later versions of it, and a file that remembers timings."""

    version_compatible: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine and what parser and builder say of it."""

    data: bytes
    built_with: str
    ports: Ports
    layers: Mapping[str, Mapping[str, int]]  # type -> kind of layer -> count, for the layers that do the work
    reproducible: str  # "yes", or why not


def check_builder(runtime: str, device: str, options: Options) -> None:
    """Raise unless this machine can build for a device: RuntimeUnavailableError or InputError, with the remedy."""
    module = _module(runtime)
    if runtime == "tensorrt-rtx":
        if options.version_compatible or options.timing_cache is not None:
            raise InputError(
                "--version-compatible and --timing-cache are for tensorrt: TensorRT-RTX compiles its kernels on the "
                "GPU that runs the engine and times nothing; leave them out"
            )
        known = _capabilities(module)
        if device not in known:
            raise InputError(
                f"--target {runtime}:{device}: {built_with(runtime)} builds for {', '.join(known)}, not {device}; "
                "choose one of these, or tensorrt on the GPU itself"
            )
    elif (found := _current_device()) != device:
        raise InputError(
            f"--target {runtime}:{device}: TensorRT builds for the GPU of this machine, which is {found}; "
            "run this command on the GPU that the engine is for, or build for tensorrt-rtx"
        )


def built_with(runtime: str) -> str:
    """`tensorrt-rtx 1.7.1.116`: what an engine built here records, and what must open it."""
    return f"{runtime} {_module(runtime).__version__}"


def build_engine(path: Path, *, runtime: str, device: str, options: Options = Options()) -> BuiltEngine:
    """Build an engine from a graph whose batch is fixed; int8 graphs carry symmetric Q/DQ nodes.

    Raises EngineError with the parser's or builder's first complaint.
    """
    check_builder(runtime, device, options)
    trt = _module(runtime)
    complaints: list[str] = []
    builder = trt.Builder(_logger(trt, complaints))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _logger(trt, complaints))
    model = read_graph(path)
    widen_weights(model)
    if not parser.parse(model.SerializeToString()):
        reason = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise EngineError(f"{path}: {built_with(runtime)} cannot read it ({_one_line(reason)}); choose another target")
    ports = {tensor.name: _port(tensor) for tensor in _tensors(network)}
    config = builder.create_builder_config()
    if runtime == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, device.upper()), 0)
    cache = _prepare_timing(trt, config, options)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        reason = complaints[-1] if complaints else "no reason given"
        raise EngineError(f"{path}: {built_with(runtime)} cannot build it ({_one_line(reason)}); choose another target")
    if cache is not None and options.timing_cache is not None:
        write_whole(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    return BuiltEngine(
        data=bytes(serialised),
        built_with=built_with(runtime),
        ports=ports,
        layers=_layers(network),
        reproducible="yes" if runtime == "tensorrt-rtx" else "no: TensorRT chooses kernels by timing them on the GPU",
    )


def _module(runtime: str) -> Any:
    try:
        return import_module(MODULES[runtime])
    except ImportError:
        remedy = {
            "tensorrt-rtx": "pip install 'csg-edge[build]'",
            "tensorrt": "pip install 'csg-edge[tensorrt]', or build for tensorrt-rtx",
        }[runtime]
        raise RuntimeUnavailableError(f"{runtime} is not installed; {remedy}") from None


def _capabilities(module: Any) -> tuple[str, ...]:
    names = sorted(name for name in module.ComputeCapability.__members__ if name.startswith("SM"))
    return tuple(sorted((name.lower() for name in names), key=lambda name: int(name[2:])))


def _current_device() -> str:
    """`sm86` of the first GPU, or `none`."""
    try:
        version("cuda-bindings")
        runtime = import_module("cuda.bindings.runtime")
    except (PackageNotFoundError, ImportError):
        raise RuntimeUnavailableError(
            "cuda-bindings is not installed, so the GPU cannot be asked; pip install 'csg-edge[tensorrt]'"
        ) from None
    kinds = runtime.cudaDeviceAttr
    major, minor = (
        runtime.cudaDeviceGetAttribute(kind, 0)
        for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    )
    return f"sm{major[1]}{minor[1]}" if int(major[0]) == int(minor[0]) == 0 else "none"


def _logger(trt: Any, complaints: list[str]) -> Any:
    """A logger that keeps errors for the one line a user gets, instead of writing pages to stderr."""

    class Quiet(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            # Without a GPU every build says that it found none.
            if severity <= trt.ILogger.Severity.ERROR and "cuda" not in message.lower():
                complaints.append(message)

    return Quiet()


def _prepare_timing(trt: Any, config: Any, options: Options) -> Any:
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.timing_cache is None:
        return None
    known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
    cache = config.create_timing_cache(known)
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _tensors(network: Any) -> list[Any]:
    return [
        *(network.get_input(index) for index in range(network.num_inputs)),
        *(network.get_output(index) for index in range(network.num_outputs)),
    ]


def _port(tensor: Any) -> tuple[str, tuple[int, ...]]:
    return DTYPES.get(tensor.dtype.name, tensor.dtype.name), tuple(tensor.shape)


def _layers(network: Any) -> dict[str, dict[str, int]]:
    """The parser's view, before layers are fused: a layer's type is that of its first input, int8 after Q/DQ."""
    found: dict[str, Counter[str]] = {}
    quantised: set[str] = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "DEQUANTIZE":
            quantised.add(layer.get_output(0).name)
        if layer.type.name in HEAVY_LAYERS:
            tensor = layer.get_input(0)
            kind = "int8" if tensor.name in quantised else DTYPES.get(tensor.dtype.name, tensor.dtype.name)
            found.setdefault(kind, Counter())[layer.type.name.lower()] += 1
    return {kind: dict(sorted(count.items())) for kind, count in sorted(found.items())}


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]

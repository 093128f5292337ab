"""OpenVINO IR: one file for every device and number format, since both are chosen when it is compiled."""

from __future__ import annotations

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csg_edge.errors import EngineError, InputError, RuntimeUnavailableError
from csg_edge.runtimes.ov import OpenVinoRuntime

# Layers of compiled models that do the work, under the names that the inspector uses for every runtime.
LAYERS = {
    "Convolution": "convolution",
    "FullyConnected": "matrix_multiply",
    "MatMul": "matrix_multiply",
    "MVN": "normalization",
    "Softmax": "softmax",
}


def check_builder() -> None:
    """Raise RuntimeUnavailableError if OpenVINO is not installed."""
    if find_spec("openvino") is None:
        raise RuntimeUnavailableError("openvino is not installed; pip install 'csg-edge[build]'")


def write_ir(graph: Path, xml: Path) -> str:
    """Convert a graph to `xml` and the `.bin` beside it; returns what did it, `openvino 2026.4.1`.

    Weights that the graph holds in fp16, since that is exact, stay so on disk; none is rounded. Raises EngineError if
    OpenVINO cannot read the graph, InputError if the files cannot be written.
    """
    check_builder()
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        raise EngineError(f"{graph}: OpenVINO cannot read it ({_last_line(error)}); choose another target") from None
    save_ir(model, xml)
    return f"openvino {openvino.get_version().split('-')[0]}"


def save_ir(model: Any, xml: Path) -> None:
    """Write an OpenVINO model to `xml` and the `.bin` beside it; the same model gives the same bytes.

    Raises EngineError or InputError as `write_ir` does.
    """
    import openvino

    _name_alike(model)
    xml.parent.mkdir(parents=True, exist_ok=True)
    try:
        # compress_to_fp16 would round fp32 constants; what fits in fp16 is fp16 in the graph already.
        openvino.save_model(model, xml, compress_to_fp16=False)
        written = openvino.Core().read_model(xml)  # a disk that filled up leaves a file that cannot be read
    except RuntimeError as error:
        raise InputError(
            f"{xml}: cannot write ({_last_line(error)}); free disk space or choose another folder"
        ) from None
    if len(written.get_ops()) != len(model.get_ops()):
        raise EngineError(f"{xml}: OpenVINO wrote another model than it read; update OpenVINO")


def layer_precisions(path: Path, device: str, precision: str) -> tuple[str, dict[str, dict[str, int]]]:
    """Compile a graph or IR as the runtime does and read back its precision and, per number format, its layers.

    Returns (`bf16`, {"bf16": {"convolution": 51, ...}, ...}) for the layers that do the work.
    """
    found: dict[str, Counter[str]] = {}
    with OpenVinoRuntime.open(path, device=device, precision=precision) as runtime:
        for layer, executed in runtime.layers():
            if layer in LAYERS:
                found.setdefault(executed, Counter())[LAYERS[layer]] += 1
        return runtime.effective_precision, {name: dict(count) for name, count in found.items()}


def _name_alike(model: Any) -> None:
    """Number unnamed operations by their position: OpenVINO counts them through the life of a process."""
    for index, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{operation.get_type_name()}_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}_{index}")


def _last_line(error: Any) -> str:
    return str(error).strip().splitlines()[-1].strip()

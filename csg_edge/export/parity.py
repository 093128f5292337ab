"""How far a graph is from the fp32 torch reference, on the golden cases of its bundle."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from csg_edge.bundle.golden import error_statistics, read_case
from csg_edge.bundle.manifest import Bundle, Engine, Graph
from csg_edge.errors import EngineError
from csg_edge.export.precision import simulate_half
from csg_edge.export.targets import TOLERANCES
from csg_edge.export.weights import read_graph
from csg_edge.generation.generator import Generator
from csg_edge.runtimes.base import Runtime
from csg_edge.runtimes.ort import OnnxRuntime


def graph_error(bundle: Bundle, graph: Graph) -> dict[str, Any]:
    """Error statistics of a graph in ONNX Runtime on the CPU against the golden images; fp16 with every rounding.

    Raises EngineError if the graph is further from the reference than its precision allows.
    """
    path = bundle.file(graph.file)
    if graph.precision in ("fp16", "int8"):  # what int8 leaves is fp16 in graphs for TensorRT
        with tempfile.TemporaryDirectory() as folder:
            simulated = Path(folder) / "simulated.onnx"
            simulated.write_bytes(simulate_half(read_graph(path)).SerializeToString())
            with OnnxRuntime.open(simulated, device="CPU", precision="fp32") as runtime:
                statistics = _statistics(bundle, graph, runtime)
    else:
        with OnnxRuntime.open(path, device="CPU", precision="fp32") as runtime:
            statistics = _statistics(bundle, graph, runtime)
    tolerance = TOLERANCES[graph.precision]
    psnr = statistics["worst_psnr"]
    exact_enough = tolerance.levels > 1 or statistics["share_within_1"] >= tolerance.share
    if not exact_enough or (psnr is not None and psnr < tolerance.psnr):
        raise EngineError(
            f"{graph.file}: PSNR {psnr:.1f} dB, {100 * statistics['share_within_1']:.2f} % of pixels within 1 grey "
            f"level of torch; {graph.precision} needs {tolerance.psnr:g} dB"
            + (f" and {100 * tolerance.share:g} %" if tolerance.levels == 1 else "")
            + "; choose another precision"
        )
    return statistics


def _statistics(bundle: Bundle, graph: Graph, runtime: Runtime) -> dict[str, Any]:
    engine = Engine(f"onnxruntime:CPU:{graph.precision}", graph.steps, graph.file, TOLERANCES[graph.precision])
    generator = Generator(bundle, engine, runtime)
    pairs = []
    for case in bundle.manifest.golden:
        data = read_case(bundle, case, graph.steps)
        pairs.append((generator.generate_one(data.mask, data.context, case.seed, field=data.field), data.expected))
    return error_statistics(pairs)

"""Where the time of one inference goes: per node by the runtime's own profiler, summed by stage and by operator.

Nodes are named `stage/module/operator` when the graph is exported. A runtime fuses, splits and adds nodes: one without
such a name counts to the stage of the next named one in order of execution. Profiling costs time itself, so shares are
what counts; `profiled_ms` beside the unprofiled median says how much.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csg_edge.benchmarks.systems import find_engine
from csg_edge.bundle.manifest import Bundle, Engine, Target, read_bundle
from csg_edge.errors import RuntimeUnavailableError
from csg_edge.noise import noise_for
from csg_edge.runtimes.ov import CAPABILITIES, HINTS

STAGE = re.compile(r"\b(context|step_\d+|decode)/")
KERNEL = "_kernel_time"
SLOWEST = 12


@dataclass(frozen=True)
class NodeTime:
    """One node of the compiled graph in one inference: name, what it was fused from, operator, number format, ms."""

    name: str
    origin: str
    operator: str
    precision: str
    ms: float


def profile_engine(request: Mapping[str, Any]) -> dict[str, Any]:
    """Profile `images` inferences of an engine after `warm_up`. Raises RuntimeUnavailableError without a profiler."""
    bundle = read_bundle(Path(request["bundle"]))
    engine = find_engine(bundle, request["target"], request["steps"])
    runtime = Target.parse(engine.target).runtime
    if runtime not in PROFILERS:
        raise RuntimeUnavailableError(f"{runtime}: no profiler is read for this runtime; use openvino or onnxruntime")
    inferences, about = PROFILERS[runtime](bundle, engine, request)
    return {**summarise_profile(inferences), **about}


def summarise_profile(inferences: Sequence[Sequence[NodeTime]]) -> dict[str, Any]:
    """Medians over inferences of the ms per stage, per operator and per operator within a stage; the slowest nodes."""
    stages, operators, inside = [], [], []
    nodes: dict[tuple[str, str, str], list[float]] = {}
    for inference in inferences:
        by_stage: Counter[str] = Counter()
        by_operator: Counter[str] = Counter()
        by_both: Counter[str] = Counter()
        for node, stage in zip(inference, assign_stages(inference), strict=True):
            by_stage[stage] += node.ms  # type: ignore[assignment]
            by_operator[node.operator] += node.ms  # type: ignore[assignment]
            by_both[f"{stage} {node.operator}"] += node.ms  # type: ignore[assignment]
            nodes.setdefault((node.name, node.operator, node.precision), []).append(node.ms)
        stages.append(by_stage)
        operators.append(by_operator)
        inside.append(by_both)
    slowest = sorted(((statistics.median(times), *key) for key, times in nodes.items()), reverse=True)[:SLOWEST]
    return {
        "profiled_ms": statistics.median(sum(found.values()) for found in stages),
        "stages_ms": _medians(stages),
        "operators_ms": _medians(operators),
        "stage_operators_ms": _medians(inside),
        "slowest": [
            {"ms": ms, "node": name, "operator": operator, "precision": precision}
            for ms, name, operator, precision in slowest
        ],
        "images": len(inferences),
    }


def assign_stages(nodes: Sequence[NodeTime]) -> list[str]:
    """The stage of each node, in order of execution: its own, else that of the next one that has a stage."""
    stages = [""] * len(nodes)
    following = ""
    for index in range(len(nodes) - 1, -1, -1):
        # Of several fused nodes the last one names the stage: an early one may prepare it.
        named = STAGE.findall(nodes[index].origin) or STAGE.findall(nodes[index].name)
        following = named[-1] if named else following
        stages[index] = following
    previous = next((stage for stage in stages if stage), "whole graph")
    for index, stage in enumerate(stages):  # after the last named node
        previous = stages[index] = stage or previous
    return stages


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in found for name in row)
    medians = {name: float(statistics.median(row.get(name, 0.0) for row in found)) for name in names}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def _inputs(bundle: Bundle, request: Mapping[str, Any], count: int) -> Iterable[dict[str, Any]]:
    with np.load(request["library"]) as library:
        masks, contexts = library["masks"], library["contexts"]
    for index in range(count):
        noise = noise_for(request["seed"] + index, bundle.manifest.noise_shape)
        feeds = {"mask": masks[index % len(masks)][None], "context": contexts[index % len(contexts)][None],
                 "noise": noise[None]}  # fmt: skip
        if shape := bundle.manifest.fibre_shape:
            feeds["fibre"] = np.zeros((1, *shape), np.float32)
        yield feeds


def _openvino(
    bundle: Bundle, engine: Engine, request: Mapping[str, Any]
) -> tuple[list[list[NodeTime]], dict[str, Any]]:
    import openvino

    target = Target.parse(engine.target)
    core = openvino.Core()
    able = core.get_property(target.device, "OPTIMIZATION_CAPABILITIES")
    hint = next(hint for hint in HINTS[target.precision] if CAPABILITIES[hint] in able)
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, "PERF_COUNT": True}
    if request["threads"] is not None:
        options["INFERENCE_NUM_THREADS"] = request["threads"]
    model = core.read_model(bundle.file(engine.file))
    model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
    compiled = core.compile_model(model, target.device, options)
    origins = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        origins[node.get_friendly_name()] = tuple(
            about[key].astype(str) if key in about else "" for key in ("originalLayersNames", "runtimePrecision")
        )
    inference = compiled.create_infer_request()
    found = []
    for index, feeds in enumerate(_inputs(bundle, request, request["warm_up"] + request["images"])):
        inference.infer(feeds)
        if index < request["warm_up"]:
            continue
        found.append(
            [
                NodeTime(
                    node.node_name, origins.get(node.node_name, ("", ""))[0], node.node_type,
                    origins.get(node.node_name, ("", ""))[1], 1e3 * node.real_time.total_seconds(),
                )
                for node in inference.profiling_info
                if str(node.status).endswith("EXECUTED")
            ]
        )  # fmt: skip
    about = {}
    if target.device == "CPU":
        about["threads"] = int(compiled.get_property("INFERENCE_NUM_THREADS"))
    return found, about


def _onnxruntime(
    bundle: Bundle, engine: Engine, request: Mapping[str, Any]
) -> tuple[list[list[NodeTime]], dict[str, Any]]:
    import onnxruntime

    from csg_edge.runtimes.ort import PROVIDERS

    target = Target.parse(engine.target)
    provider = PROVIDERS[target.device]
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        if request["threads"] is not None:
            options.intra_op_num_threads = request["threads"]
        chosen = [(provider.name, provider.options[target.precision])]
        session = onnxruntime.InferenceSession(bundle.file(engine.file), options, providers=chosen)
        for feeds in _inputs(bundle, request, request["warm_up"] + request["images"]):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return read_ort_events(events)[request["warm_up"] :], {}


def read_ort_events(events: Sequence[Mapping[str, Any]]) -> list[list[NodeTime]]:
    """The kernels of each run of ONNX Runtime's profile; a run ends where its `model_run` says so."""
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    kernels = sorted(
        (e for e in events if e.get("cat") == "Node" and e["name"].endswith(KERNEL)), key=lambda event: event["ts"]
    )
    return [
        [
            NodeTime(e["name"].removesuffix(KERNEL), "", e["args"]["op_name"], "", 1e-3 * e["dur"])
            for e in kernels
            if begin <= e["ts"] < end
        ]
        for begin, end in runs
    ]


PROFILERS = {"openvino": _openvino, "onnxruntime": _onnxruntime}

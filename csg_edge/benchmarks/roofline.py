"""The most this machine can do, and how near an engine comes to it.

Peaks are measured, not looked up: the best of a few matrix products and convolutions through OpenVINO (oneDNN) in each
number format, with the threads of the engines, and the memory bandwidth of STREAM's Add kernel (McCalpin 1995) on
arrays far larger than the caches. The roofline is that of Williams et al. 2009, 10.1145/1498765.1498785. A virtual
machine shares its cores with others: a peak is the best of several attempts, what was there at one time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np

PRECISIONS = ("fp32", "bf16", "int8")
PRODUCTS = ((1024, 1024, 1024), (4096, 512, 512))  # rows, inner, columns
# Channels and side of 3 x 3 convolutions: those of the shipped student, and one with more work for each byte.
CONVOLUTIONS = ((64, 64), (128, 32), (192, 16), (256, 64))
STREAM_BYTES = 128 * 2**20  # each of three arrays
STREAM_TRIES = 5
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


def measure_peaks(seconds: float, *, threads: int | None = None) -> dict[str, Any]:
    """GFLOP/s per number format with the shape that reached it, and GB/s; `seconds` for each shape and format.

    A multiply-accumulate counts as two operations, in int8 too. A format that the CPU lacks is left out.
    """
    found: dict[str, Any] = {"gflops": {}, "shape": {}, "executed": {}, "every_shape": {}}
    found["bandwidth_gb_s"] = measure_bandwidth(threads or available_cores())
    found["threads"] = threads or available_cores()
    if find_spec("openvino") is None:
        return found
    import openvino

    core = openvino.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in PRECISIONS:
        if {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}[precision] not in able:
            continue
        rates: dict[str, float] = {}
        executed: dict[str, str] = {}
        for name, model, operations in _models(precision):
            rates[name], executed[name] = _rate(core, model, precision, operations, seconds, threads)
        # A shape that the runtime chose to execute in another format says nothing about this one.
        right = {name: rate for name, rate in rates.items() if executed[name] == precision}
        found["every_shape"][precision] = rates
        if right:
            best = max(right, key=right.__getitem__)
            found["gflops"][precision], found["shape"][precision] = right[best], best
            found["executed"][precision] = executed[best]
    return found


def measure_bandwidth(threads: int) -> float:
    """GB/s (10^9 bytes) of a = b + c, best of several; two arrays read and one written, the write counted once."""
    size = STREAM_BYTES // 8
    first, second, total = np.ones(size), np.ones(size), np.zeros(size)
    edges = np.linspace(0, size, threads + 1, dtype=int)

    def add(begin: int, end: int) -> None:
        np.add(first[begin:end], second[begin:end], out=total[begin:end])  # NumPy lets go of the interpreter here

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(STREAM_TRIES):
            start = time.perf_counter()
            list(pool.map(add, edges[:-1], edges[1:]))
            best = max(best, 3e-9 * 8 * size / (time.perf_counter() - start))
    return best


def achieved(
    stages: Mapping[str, Mapping[str, Any]], *, milliseconds: float, precision: str, peaks: Mapping[str, Any],
    stages_ms: Mapping[str, float] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """How much of the machine's peak an engine reaches, whole and per stage; None where the peak was not measured.

    stages: as `csg_edge.export.inspect.stages_of` counts them. milliseconds: of the whole call. stages_ms: profiled;
    scaled so that they add up to the whole. `fraction` is of the arithmetic peak. `roof_fraction` is of the roofline,
    whose traffic is every weight once and every activation written and read once: more than a runtime that fuses
    operators and keeps them in its caches needs, so that the true roof is higher where memory sets it.
    """
    peak = peaks["gflops"].get(precision)
    if not peak or not milliseconds:
        return None
    width, bandwidth = BYTES[precision] / 4.0, peaks["bandwidth_gb_s"]
    scale = milliseconds / sum(stages_ms.values()) if stages_ms and sum(stages_ms.values()) else None

    def row(operations: float, traffic: float, ms: float) -> dict[str, float]:
        bound = 1e-6 * max(operations / peak, traffic / bandwidth)  # ms
        return {
            "gflop": 1e-9 * operations,
            "ms": ms,
            "gflops": 1e-6 * operations / ms,
            "fraction": 1e-6 * operations / ms / peak,
            "flop_per_byte": operations / max(traffic, 1.0),
            "roof_ms": bound,
            "roof_fraction": bound / ms,
        }

    work = {
        name: (2.0 * stage["macs"], width * (4.0 * stage["parameters"] + 2.0 * stage["activation_bytes"]))
        for name, stage in stages.items()
    }
    whole = row(sum(item[0] for item in work.values()), sum(item[1] for item in work.values()), milliseconds)
    by_stage = {}
    if scale is not None and stages_ms is not None:
        by_stage = {name: row(*work[name], scale * ms) for name, ms in stages_ms.items() if name in work and ms > 0}
    return {
        "precision": precision, "peak_gflops": peak, "bandwidth_gb_s": bandwidth,
        "ridge_flop_per_byte": peak / bandwidth, **whole, "stages": by_stage,
    }  # fmt: skip


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _models(precision: str) -> list[tuple[str, Any, float]]:
    """(name, model, operations) of every shape."""
    import openvino
    from openvino import opset13 as ops

    draw = np.random.default_rng(0)
    found = []

    def quantised(node: Any, low: float, levels: int) -> Any:
        if precision != "int8":
            return node
        ends = [np.float32(low), np.float32(1.0)]
        return ops.fake_quantize(node, *ends, *ends, levels)

    for rows, inner, columns in PRODUCTS:
        given = ops.parameter([rows, inner], openvino.Type.f32)
        weights = ops.constant(draw.uniform(-1, 1, (inner, columns)).astype(np.float32))
        made = ops.matmul(quantised(given, 0.0, 256), quantised(weights, -1.0, 255), False, False)
        model = openvino.Model([made], [given], "product")
        found.append((f"product {rows} x {inner} x {columns}", model, 2.0 * rows * inner * columns))
    for channels, side in CONVOLUTIONS:
        given = ops.parameter([1, channels, side, side], openvino.Type.f32)
        weights = ops.constant(draw.uniform(-1, 1, (channels, channels, 3, 3)).astype(np.float32))
        made, layers = quantised(given, 0.0, 256), 4  # several, so that entering and leaving weighs little
        for _ in range(layers):
            made = ops.convolution(made, quantised(weights, -1.0, 255), [1, 1], [1, 1], [1, 1], [1, 1])
            made = quantised(ops.relu(made), 0.0, 256)
        model = openvino.Model([made], [given], "convolution")
        operations = 2.0 * layers * 9 * channels * channels * side * side
        found.append((f"{layers} convolutions 3 x 3, {channels} channels, {side} x {side}", model, operations))
    return found


def _rate(
    core: Any, model: Any, precision: str, operations: float, seconds: float, threads: int | None
) -> tuple[float, str]:
    """GFLOP/s of the fastest of many inferences, and the number format they were executed in."""
    from csg_edge.runtimes.ov import EXECUTED, HEAVY_LAYERS

    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", options)
    types = [
        EXECUTED.get(node.get_rt_info()["runtimePrecision"].astype(str).lower(), "other")
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) in HEAVY_LAYERS
    ]
    request = compiled.create_infer_request()
    request.infer({0: np.random.default_rng(1).random(list(model.inputs[0].shape), dtype=np.float32)})
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        request.infer()
        best = min(best, time.perf_counter() - start)
    return 1e-9 * operations / best, most_common(types)


def most_common(values: Sequence[str]) -> str:
    """The most frequent value; empty for none."""
    return max(dict.fromkeys(values), key=values.count) if values else ""

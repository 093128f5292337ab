"""What this machine can run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import packages_distributions
from typing import Any

from csg_edge import __version__
from csg_edge.bundle.manifest import Bundle, find_bundle, read_bundle
from csg_edge.cache import BlobCache
from csg_edge.errors import CsgEdgeError
from csg_edge.generation.proof import remembered
from csg_edge.generation.selection import why_not
from csg_edge.machine import allowed_processors, default_threads, processor_name, processor_quota
from csg_edge.runtimes import RUNTIMES, runtime_class

__all__ = ["examine", "processor_name"]

# Each extra that brings a runtime, by the runtime and device that it is for; a GPU's architecture is found.
EXTRAS = {
    "openvino": ("openvino", "CPU"),
    "onnxruntime": ("onnxruntime", "CPU"),
    "onnxruntime-gpu": ("onnxruntime", "CUDA"),
    "onnxruntime-openvino": ("onnxruntime", "OpenVINO"),
    "tensorrt-rtx": ("tensorrt-rtx", ""),
    "tensorrt": ("tensorrt", ""),
}


def examine(bundle: str) -> dict[str, Any]:
    """A JSON-ready report.

    Machine, cache, runtimes with versions and devices, each extra with yes or why not and what to install, packages
    that stand in each other's way, each engine of the bundle with yes or why not, and what `auto` takes.
    """
    cache = BlobCache()
    entries, size = cache.size()
    report: dict[str, Any] = {
        "csg_edge": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "allowed_processors": allowed_processors(),
        "processor_quota": processor_quota(),
        "default_threads": default_threads(),
        "cache": {"folder": str(cache.folder), "entries": entries, "bytes": size},
        "runtimes": {name: _runtime(name) for name in RUNTIMES},
        "extras": {name: _extra(*about) for name, about in EXTRAS.items()},
        "conflicts": conflicts(),
    }
    try:
        report["bundle"] = {"name": bundle, **_engines(read_bundle(find_bundle(bundle)), cache)}
    except CsgEdgeError as error:
        report["bundle"] = {"name": bundle, "error": str(error)}
    return report


def _engines(bundle: Bundle, cache: BlobCache) -> dict[str, Any]:
    """Each engine: whether it runs here, and the verdict of its golden case if one was run; what `auto` takes."""
    states: dict[str, str] = {}
    verdicts: dict[str, str] = {}
    auto: dict[str, str] = {}
    for engine in bundle.manifest.engines:
        label = f"{engine.target} steps {engine.steps}"
        reason = why_not(engine)
        states[label] = reason or "runs here"
        if reason is not None:
            continue
        verdict = remembered(bundle, engine, cache)
        wrong = "" if verdict is None else verdict.failure or verdict.slower
        if verdict is not None:
            verdicts[label] = wrong or "golden case passed"
        if not wrong:
            checked = "not checked yet: its golden case runs first" if verdict is None else "golden case passed"
            auto.setdefault(str(engine.steps), f"{engine.target}, {checked}")
    return {"engines": states, "verdicts": verdicts, "auto": auto}


def conflicts() -> list[str]:
    """What is installed twice over: builds of ONNX Runtime are packages of their own with one and the same module."""
    builds = sorted(set(packages_distributions().get("onnxruntime", [])))
    if len(builds) < 2:
        return []
    return [
        f"{' and '.join(builds)} are builds of one module in one environment: the one installed last is imported, "
        f"without the providers of the other; pip uninstall {' '.join(builds)}, then install the one you need"
    ]


def _extra(name: str, device: str) -> str:
    kind = runtime_class(name)
    try:
        device = device or next(iter(kind.devices()), "sm86")  # without a GPU any will do to hear why not
        return kind.why_not(device, "fp32") or "runs here"
    except CsgEdgeError as error:
        return str(error)


def _runtime(name: str) -> dict[str, Any]:
    try:
        return runtime_class(name).machine()
    except CsgEdgeError as error:
        return {"missing": str(error)}

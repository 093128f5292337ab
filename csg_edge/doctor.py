"""What this machine can run."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from csg_edge import __version__
from csg_edge.bundle import find_bundle, read_bundle
from csg_edge.errors import CsgEdgeError
from csg_edge.generator import why_not
from csg_edge.runtimes import RUNTIMES, runtime_class


def examine(bundle: str) -> dict[str, Any]:
    """A JSON-ready report.

    Machine, runtimes with versions and devices, and each engine of the bundle with yes or why not.
    """
    report: dict[str, Any] = {
        "csg_edge": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "runtimes": {name: _runtime(name) for name in RUNTIMES},
    }
    try:
        engines = read_bundle(find_bundle(bundle)).manifest.engines
        report["bundle"] = {
            "name": bundle,
            "engines": {f"{e.target} steps {e.steps}": why_not(e) or "runs here" for e in engines},
        }
    except CsgEdgeError as error:
        report["bundle"] = {"name": bundle, "error": str(error)}
    return report


def processor_name() -> str:
    """The processor as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _runtime(name: str) -> dict[str, Any]:
    try:
        return runtime_class(name).machine()
    except CsgEdgeError as error:
        return {"missing": str(error)}

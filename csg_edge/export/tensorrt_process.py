"""Build a TensorRT engine in a process of its own.

What TensorRT-RTX 1.7 writes depends on what its process built before: after a build that failed, the next engine came
out with other bytes. A fresh process for each engine makes builds reproducible, and one that crashes takes nothing with
it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from csg_edge.errors import CsgEdgeError, EngineError
from csg_edge.export.tensorrt import BuiltEngine, Options, build_engine

PACKAGE_ROOT = Path(__file__).parents[2]
NO_OPTIONS = Options()


def build_engine_apart(path: Path, *, runtime: str, device: str, options: Options = NO_OPTIONS) -> BuiltEngine:
    """`build_engine` in a fresh process. Raises EngineError with the builder's reason, or if the process dies."""
    request = {
        "path": str(path),
        "runtime": runtime,
        "device": device,
        "version_compatible": options.version_compatible,
        "timing_cache": options.timing_cache and str(options.timing_cache),
    }
    search = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "csg_edge.export.tensorrt_process", json.dumps(request)],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": search},
    )
    header, _, data = done.stdout.partition(b"\n")
    if done.returncode or not header:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise EngineError(f"{path}: {runtime} died while building for {device} ({last[0]}); choose another target")
    values = json.loads(header)
    if "error" in values:
        raise EngineError(values["error"])
    ports = {name: (kind, tuple(shape)) for name, (kind, shape) in values.pop("ports").items()}
    return BuiltEngine(data=data, ports=ports, **values)


def main(request: str) -> None:
    """Build what the request asks for and write a line of JSON and the engine to stdout."""
    result = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get into the engine
    values = json.loads(request)
    cache = values["timing_cache"]
    options = Options(version_compatible=values["version_compatible"], timing_cache=Path(cache) if cache else None)
    try:
        built = build_engine(Path(values["path"]), runtime=values["runtime"], device=values["device"], options=options)
    except CsgEdgeError as error:
        result.write(json.dumps({"error": str(error)}).encode() + b"\n")
        result.close()
        return
    about = asdict(built)
    data = about.pop("data")
    result.write(json.dumps(about).encode() + b"\n" + data)
    result.close()


if __name__ == "__main__":
    main(sys.argv[1])

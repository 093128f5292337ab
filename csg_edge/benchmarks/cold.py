"""From nothing to the first image, each time in a fresh process: `python -m csg_edge.benchmarks.cold REQUEST.json`.

The parent hands over when it started the process, so that the interpreter's own start is in the figures. Nothing but
the standard library is imported before the first mark.
"""

from __future__ import annotations

import time

MARKS = [("interpreter", time.time())]
INPUTS = "inputs"  # reading the benchmark's own inputs is no part of a start


def mark(name: str) -> None:
    """Note that a phase has ended."""
    MARKS.append((name, time.time()))


def main(path: str) -> None:
    """Load an engine, make one image, and print each phase in milliseconds as JSON."""
    import json
    import sys
    from importlib import import_module
    from pathlib import Path

    request = json.loads(Path(path).read_text(encoding="utf-8"))
    import numpy as np

    from csg_edge.bundle.manifest import read_bundle
    from csg_edge.cache import BlobCache
    from csg_edge.errors import CsgEdgeError
    from csg_edge.generation.generator import open_engine

    mark("import_csg_edge")
    bundle = read_bundle(Path(request["bundle"]))
    engine = next(e for e in bundle.manifest.engines if (e.target, e.steps) == (request["target"], request["steps"]))
    mark("read_and_check_bundle")
    if framework := FRAMEWORKS.get(request["target"].split(":")[0]):
        import_module(framework)
    mark("import_runtime")
    with np.load(request["library"]) as library:
        inputs = library["masks"][0], library["contexts"][0]
    mark(INPUTS)
    cache = BlobCache(Path(request["cache"])) if request["cache"] else None
    try:
        generator = open_engine(bundle, engine, threads=request["threads"], cache=cache)
        mark("load_engine")
        generator.generate_one(*inputs, 0)
        mark("first_image")
        generator.generate_one(*inputs, 1)
        mark("second_image")
    except CsgEdgeError as error:
        sys.exit(str(error))
    began = request["began"]
    phases = {}
    for name, when in MARKS:
        if name != INPUTS:
            phases[name] = 1e3 * (when - began)
        began = when
    print(json.dumps(phases))


FRAMEWORKS = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "tensorrt-rtx": "tensorrt_rtx",
    "tensorrt": "tensorrt",
    "torch": "torch",
}

if __name__ == "__main__":
    import sys

    main(sys.argv[1])

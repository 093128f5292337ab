"""Check a built wheel: `csg_edge` alone at top level, with the bundle and the type marker inside.

Run by `make wheel`.
"""

from __future__ import annotations

import sys
import zipfile

NEEDED = (
    "csg_edge/models/msk-256/manifest.json",
    "csg_edge/models/msk-256/graphs/weights.safetensors",
    "csg_edge/quality/evaluators_msk/encoder.safetensors",
    "csg_edge/quality/evaluators_msk/segmenter.safetensors",
    "csg_edge/quality/templates/page.html",
    "csg_edge/quality/templates/report.html",
    "csg_edge/quality/templates/turing.js",
    "csg_edge/benchmarks/scenarios/short.toml",
    "csg_edge/augment/templates/augment.html",
    "csg_edge/benchmarks/templates/bench.html",
    "csg_edge/studio/static/index.html",
    "csg_edge/studio/static/studio.js",
    "csg_edge/studio/static/painter.js",
    "csg_edge/studio/static/studio.css",
    "csg_edge/py.typed",
)


def main(path: str) -> None:
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
    top = {name.split("/")[0] for name in names}
    packages = {name for name in top if not name.endswith(".dist-info")}
    if packages != {"csg_edge"}:
        sys.exit(f"{path}: top level holds {sorted(packages)}, want csg_edge alone")
    missing = [name for name in NEEDED if name not in names]
    if missing:
        sys.exit(f"{path}: lacks {', '.join(missing)}")
    print(f"{path}: {len(names)} files, csg_edge alone at top level, bundle inside")


main(*sys.argv[1:])

"""What the runtime API costs beside the bare engine: time, memory, start, and whether the bytes are always the same.

    python benchmarks/runtime.py [--only overhead,memory,growth,cold,help,determinism,split] [--images 10000]

The two sides of every ratio take turns in one run, and the ratio is taken pair by pair, so that other work on the
machine hits both alike. Sections not asked for keep their last figures. Writes `benchmarks/results/runtime.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import csg_edge
from csg_edge.bundle.manifest import find_bundle
from csg_edge.conditions.files import write_png
from csg_edge.datasets.phantom import make_phantom
from csg_edge.machine import processor_name

RECORD = Path(__file__).parent / "results" / "runtime.json"
HINTS = {"bf16": "bf16", "fp32": "f32"}
SHAPES = "mask[1,256,256],context[1,256,256],noise[1,16,64,64],fibre[1,3,16,16]"


def main() -> None:
    """Measure the sections asked for and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--images", type=int, default=10_000, help="images of the growth section")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of the ratios")
    arguments = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    for name in arguments.only.split(","):
        before = os.getloadavg()[0]
        found = SECTIONS[name](arguments)
        record[name] = {"load_before_and_after": [before, os.getloadavg()[0]], **found}
        print(name, json.dumps(record[name], indent=2), flush=True)
        record |= {
            "csg_edge": csg_edge.__version__, "openvino": _openvino().get_version(), "python": sys.version.split()[0],
            "processor": processor_name(), "cores": os.cpu_count(), "bundle": "msk-256, 1 step",
        }  # fmt: skip
        RECORD.write_text(json.dumps(record, indent=2) + "\n")


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """`Generator.generate` against the engine alone, by benchmark_app (sync, latency hint) and by a bare infer loop."""
    phantom, context = make_phantom(1), make_phantom(60).image
    result: dict[str, Any] = {"threads": os.cpu_count(), "images_a_turn": 40}
    for precision in HINTS:
        with csg_edge.load(runtime="openvino", precision=precision) as generator:
            for seed in range(5):
                generator.generate([phantom.mask], [context], [seed])
            pairs = []
            for turn in range(arguments.pairs):
                sides: list[Callable[[], float]] = [
                    lambda p=precision: benchmark_app(p),
                    lambda g=generator: generate_p50(g, phantom.mask, context),
                ]
                order = (0, 1) if turn % 2 == 0 else (1, 0)
                times = {side: sides[side]() for side in order}
                pairs.append((times[0], times[1]))
            bare, run, whole = in_one_process(generator, precision, phantom.mask, context)
        result[precision] = {
            "benchmark_app_p50_ms": [round(first, 2) for first, _ in pairs],
            "generate_p50_ms": [round(second, 2) for _, second in pairs],
            "ratio_median_of_pairs": statistics.median(second / first for first, second in pairs),
            "ratio_of_best": min(second for _, second in pairs) / min(first for first, _ in pairs),
            "image_by_image": {
                "bare_infer_p50_ms": bare, "runtime_run_p50_ms": run, "generate_p50_ms": whole,
                "generate_over_bare": whole / bare,
            },
        }  # fmt: skip
    return result


def benchmark_app(precision: str) -> float:
    """Median latency in ms by OpenVINO's own tool, which with a hint takes OpenVINO's number of threads, as we do."""
    tool = Path(sys.executable).parent / "benchmark_app"
    command = [
        tool, "-m", find_bundle("msk-256") / "graphs" / "steps-1.onnx", "-d", "CPU", "-hint", "latency", "-api", "sync",
        "-infer_precision", HINTS[precision], "-shape", SHAPES, "-niter", "40",
    ]  # fmt: skip
    text = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) ms", text)
    if found is None:
        raise SystemExit(f"benchmark_app printed no median:\n{text}")
    return float(found.group(1))


def generate_p50(generator: csg_edge.Generator, mask: Any, context: Any) -> float:
    """Median of 40 calls, another seed each."""
    times = []
    for seed in range(40):
        start = time.perf_counter()
        generator.generate([mask], [context], [seed])
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def in_one_process(
    generator: csg_edge.Generator, precision: str, mask: Any, context: Any
) -> tuple[float, float, float]:
    """Medians in ms of bare infer, Runtime.run and Generator.generate, taking turns image by image."""
    from csg_edge.noise import noise_for

    core = _openvino().Core()
    request = _compiled(core, precision).create_infer_request()
    feeds = {"mask": mask[None], "context": context[None], "noise": noise_for(0, (16, 64, 64))[None]}
    out = {"image": np.empty((1, 256, 256), np.uint8)}
    for name, array in {**feeds, **out}.items():
        request.set_tensor(name, _openvino().Tensor(np.ascontiguousarray(array), shared_memory=True))
    sides: list[Callable[[int], Any]] = [
        lambda _: request.infer(),
        lambda _: generator.runtime.run(feeds, out),
        lambda seed: generator.generate([mask], [context], [seed]),
    ]
    times: list[list[float]] = [[], [], []]
    for turn in range(105):
        for side, call in enumerate(sides):
            start = time.perf_counter()
            call(turn)
            if turn >= 5:
                times[side].append(1e3 * (time.perf_counter() - start))
    bare, run, whole = (statistics.median(found) for found in times)
    return bare, run, whole


SERVE = """
import sys, json, numpy as np, csg_edge
def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))
images, precision, cache = int(sys.argv[1]), sys.argv[2], sys.argv[3]
random = np.random.default_rng(0)
masks = random.integers(0, 10, (8, 256, 256), dtype=np.uint8)
contexts = random.integers(0, 256, (8, 256, 256), dtype=np.uint8)
generator = csg_edge.load(runtime="openvino", precision=precision, cache=cache or False)
rows = []
for seed in range(images):
    generator.generate(masks[seed % 8 : seed % 8 + 1], contexts[seed % 7 : seed % 7 + 1], [seed])
    if seed % max(1, images // 100) == 0:
        rows.append((seed, status("VmRSS")))
print(json.dumps({"peak_kb": status("VmHWM"), "rows": rows}))
"""


def serve(images: int, precision: str, cache: str) -> dict[str, Any]:
    """A process that does nothing but serve: peak and course of its resident memory, in kB."""
    command = [sys.executable, "-c", SERVE, str(images), precision, cache]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of a serving process, in MB (10^6 bytes)."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for precision in HINTS:
            serve(1, precision, cache)  # fills the cache
            result[precision] = {
                "warm_cache_mb": 1.024e-3 * serve(50, precision, cache)["peak_kb"],
                "no_cache_mb": 1.024e-3 * serve(50, precision, "")["peak_kb"],
            }
        with tempfile.TemporaryDirectory() as empty:
            result["fp32"]["filling_the_cache_mb"] = 1.024e-3 * serve(50, "fp32", empty)["peak_kb"]
    return result


def growth(arguments: argparse.Namespace) -> dict[str, Any]:
    """Resident memory over many images; the slope leaves out the first tenth, in which caches fill."""
    with tempfile.TemporaryDirectory() as cache:
        rows = np.array(serve(arguments.images, "bf16", cache)["rows"], dtype=float)
    later = rows[len(rows) // 10 :]
    slope = np.polyfit(later[:, 0], later[:, 1], 1)[0]
    return {
        "images": arguments.images, "precision": "bf16", "slope_bytes_per_image": 1024 * float(slope),
        "resident_kb": {"after a tenth": later[0, 1], "at the end": later[-1, 1], "highest": float(later[:, 1].max())},
    }  # fmt: skip


OURS = """
import time; marks = [("begin", time.time())]
def mark(name): marks.append((name, time.time()))
import sys, json; mask, context, out, cache = sys.argv[1:5]
import csg_edge; mark("import csg_edge and NumPy")
from pathlib import Path
from csg_edge.bundle import find_bundle, read_bundle
from csg_edge.conditions import read_mask, read_context, write_png
from csg_edge.generator import open_engine
from csg_edge.cache import BlobCache
bundle = read_bundle(find_bundle("msk-256")); mark("read and check the bundle")
import openvino; mark("import openvino")
engine = next(e for e in bundle.manifest.engines if (e.target, e.steps) == ("openvino:CPU:" + sys.argv[5], 1))
generator = open_engine(bundle, engine, cache=BlobCache(Path(cache)) if cache else None); mark("open the engine")
inputs = read_mask(Path(mask), bundle.manifest.schema), read_context(Path(context)); mark("read mask and context")
image = generator.generate_one(*inputs, 0); mark("first image")
write_png(Path(out), image); mark("write")
print(json.dumps({name: 1e3 * (then - now) for (_, now), (name, then) in zip(marks, marks[1:])}))
"""

# What one would write by hand: import, compile with OpenVINO's own cache, infer, write. It checks nothing; its noise is
# NumPy's, as a seed must count there too.
BARE = """
import time; marks = [("begin", time.time())]
def mark(name): marks.append((name, time.time()))
import sys, json; mask, context, out, cache = sys.argv[1:5]
import numpy as np, cv2; mark("import NumPy and OpenCV")
import openvino; mark("import openvino")
core = openvino.Core()
options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": sys.argv[5]}
if cache: options["CACHE_DIR"] = cache
model = core.read_model(sys.argv[6])
model.reshape({"mask": [1, 256, 256], "context": [1, 256, 256], "noise": [1, 16, 64, 64]})
request = core.compile_model(model, "CPU", options).create_infer_request(); mark("open the engine")
feeds = {"mask": cv2.imread(mask, -1)[None], "context": cv2.imread(context, -1)[None]}
feeds["noise"] = np.random.default_rng(0).standard_normal((1, 16, 64, 64), dtype=np.float32)
mark("read mask and context")
image = request.infer(feeds)["image"][0]; mark("first image")
cv2.imwrite(out, image); mark("write")
print(json.dumps({name: 1e3 * (then - now) for (_, now), (name, then) in zip(marks, marks[1:])}))
"""


def cold(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fresh process to first image on disk, ours and a bare OpenVINO script taking turns; milliseconds."""
    folder = Path(tempfile.mkdtemp())
    phantom = make_phantom(1)
    write_png(folder / "mask.png", phantom.mask)
    write_png(folder / "context.png", make_phantom(60).image)
    graph = str(find_bundle("msk-256") / "graphs" / "steps-1.onnx")
    result: dict[str, Any] = {}
    for precision in HINTS:
        for state in ("warm cache", "no cache"):
            sides = {
                "csg_edge": [OURS, str(folder / f"ours-{precision}"), precision],
                "bare": [BARE, str(folder / f"bare-{precision}"), HINTS[precision], graph],
            }
            walls: dict[str, list[float]] = {name: [] for name in sides}
            stages: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
            for turn in range(arguments.pairs + 1):
                for name, (code, cache, *rest) in sides.items():
                    files = [str(folder / "mask.png"), str(folder / "context.png"), str(folder / f"{name}.png")]
                    command = [sys.executable, "-c", code, *files, cache if state == "warm cache" else "", *rest]
                    start = time.perf_counter()
                    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    if turn:  # the first fills the caches, the disk's too
                        walls[name].append(1e3 * (time.perf_counter() - start))
                        stages[name].append(json.loads(text))
            result[f"{precision}, {state}"] = {
                "ratio_median_of_pairs": statistics.median(
                    ours / bare for ours, bare in zip(walls["csg_edge"], walls["bare"], strict=True)
                ),
                "ratio_of_best": min(walls["csg_edge"]) / min(walls["bare"]),
                **{
                    name: {
                        "whole_process_ms": {"median": statistics.median(walls[name]), "best": min(walls[name])},
                        "stages_median_ms": {
                            stage: round(statistics.median(run[stage] for run in stages[name]), 1)
                            for stage in stages[name][0]
                        },
                    }
                    for name in sides
                },
            }
    shutil.rmtree(folder)
    return result


def help_(arguments: argparse.Namespace) -> dict[str, Any]:
    """`csg-edge --help` against importing NumPy and click."""
    times: list[list[float]] = [[], []]
    commands = (["-m", "csg_edge", "--help"], ["-c", "import numpy, click"])
    for turn in range(2 * arguments.pairs + 1):
        for side, command in enumerate(commands):
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], capture_output=True, check=True)
            if turn:
                times[side].append(1e3 * (time.perf_counter() - start))
    return {
        "help_ms": statistics.median(times[0]), "numpy_and_click_ms": statistics.median(times[1]),
        "ratio_median_of_pairs": statistics.median(a / b for a, b in zip(*times, strict=True)),
        "ratio_of_best": min(times[0]) / min(times[1]),
    }  # fmt: skip


FRESH = """
import sys, hashlib, csg_edge
from csg_edge.phantom import make_phantom
masks = [make_phantom(seed).mask for seed in range(3)]
contexts = [make_phantom(seed + 50).image for seed in range(2)]
with csg_edge.load(runtime=sys.argv[1], precision=sys.argv[2]) as generator:
    for s in range(7):
        print(hashlib.sha256(generator.generate_one(masks[s % 3], contexts[s % 2], s)).hexdigest())
"""


def determinism(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seven images in batches of 1, 4 and 7, by 1 and 8 callers, in a fresh process: how many digests differ."""
    masks = [make_phantom(seed).mask for seed in range(3)]
    contexts = [make_phantom(seed + 50).image for seed in range(2)]
    jobs = [(masks[s % 3], contexts[s % 2], s) for s in range(7)]
    result: dict[str, Any] = {}
    for runtime, precision in (("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32")):

        def digests(images: Any) -> list[str]:
            return [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images]

        with csg_edge.load(runtime=runtime, precision=precision) as generator:
            one = digests(generator.generate_one(*job) for job in jobs)
            ways = {f"batch {size}": digests(generator.generate(*zip(*jobs[:size], strict=True))) for size in (4, 7)}
            with ThreadPoolExecutor(8) as pool:
                ways["8 callers"] = digests(pool.map(lambda job: generator.generate_one(*job), jobs))
            ways["stream"] = digests(generator.stream(*zip(*jobs, strict=True)))
        command = [sys.executable, "-c", FRESH, runtime, precision]
        ways["fresh process"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        with csg_edge.load(runtime=runtime, precision=precision, threads=1, cache=False) as generator:
            ways["1 thread, no cache"] = digests(generator.generate_one(*job) for job in jobs)
        result[f"{runtime} {precision}"] = {
            way: sum(a != b for a, b in zip(found, one, strict=False)) for way, found in ways.items()
        } | {"images_sha256": hashlib.sha256("".join(one).encode()).hexdigest()}
    return result


def split(arguments: argparse.Namespace) -> dict[str, Any]:
    """What encoding a context once would save: the time of the nodes that depend on the context alone."""
    import onnx

    path = find_bundle("msk-256") / "graphs" / "steps-1.onnx"
    model = onnx.load(path)
    constants = {item.name for item in model.graph.initializer} | {""}
    reached = {name: frozenset({name}) for name in ("mask", "context", "noise")}
    kept, made = [], set()
    for node in model.graph.node:
        sources = frozenset().union(*(reached.get(name, frozenset()) for name in node.input))
        for name in node.output:
            reached[name] = sources
        if sources <= {"context"}:
            kept.append(node)
            made |= set(node.output)
    context_only = [name for name in made if reached[name] == {"context"}]
    used = {name for node in model.graph.node if node not in kept for name in node.input}
    frontier = [name for name in context_only if name in used]
    part = onnx.helper.make_graph(
        kept, "context", [item for item in model.graph.input if item.name == "context"],
        [onnx.helper.make_empty_tensor_value_info(name) for name in frontier],
        [item for item in model.graph.initializer if item.name in constants],
    )  # fmt: skip
    small = onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    core = _openvino().Core()
    result: dict[str, Any] = {"context_only_nodes": len(kept), "tensors_to_hand_over": len(frontier)}
    for precision, hint in HINTS.items():
        encoder = core.read_model(small.SerializeToString())
        encoder.reshape({"context": [1, 256, 256]})
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        requests = [
            core.compile_model(encoder, "CPU", options).create_infer_request(),
            _compiled(core, precision).create_infer_request(),
        ]
        times: list[list[float]] = [[], []]
        for turn in range(55):
            for side, request in enumerate(requests):
                start = time.perf_counter()
                request.infer()
                if turn >= 5:
                    times[side].append(1e3 * (time.perf_counter() - start))
        encoder_ms, whole_ms = (statistics.median(found) for found in times)
        result[precision] = {"context_part_ms": encoder_ms, "whole_ms": whole_ms, "share": encoder_ms / whole_ms}
    return result


def _openvino() -> Any:
    import openvino

    return openvino


def _compiled(core: Any, precision: str) -> Any:
    model = core.read_model(find_bundle("msk-256") / "graphs" / "steps-1.onnx")
    model.reshape({"mask": [1, 256, 256], "context": [1, 256, 256], "noise": [1, 16, 64, 64]})
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
    return core.compile_model(model, "CPU", options)


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "memory": memory,
    "growth": growth,
    "cold": cold,
    "help": help_,
    "determinism": determinism,
    "split": split,
}

if __name__ == "__main__":
    main()

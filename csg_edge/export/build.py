"""Engines for a bundle: built from its graphs, checked, and put in whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from csg_edge.bundle.manifest import Bundle, Engine, Graph, Manifest, Target, check_replaceable, write_manifest
from csg_edge.errors import BundleError, EngineError, InputError
from csg_edge.export import openvino, tensorrt
from csg_edge.export.parity import graph_error
from csg_edge.export.precision import to_half
from csg_edge.export.targets import NVIDIA, TOLERANCES, check_target, preference
from csg_edge.export.tensorrt_process import build_engine_apart
from csg_edge.export.weights import read_graph, write_graph
from csg_edge.generation.verify import verify_engine
from csg_edge.storage import folder_replaced

ENGINES = "engines"
DEFAULT_OPTIONS = tensorrt.Options()
Say = Callable[[str], None]


def _silent(line: str) -> None:
    pass


@dataclass
class GrowingBundle:
    """A bundle that grows in a folder of its own."""

    path: Path
    manifest: Manifest
    converted: dict[str, str] = field(default_factory=dict)  # IR file -> what wrote it; one serves several targets
    added: dict[tuple[str, int], Engine] = field(default_factory=dict)  # by target and steps

    @property
    def bundle(self) -> Bundle:
        return Bundle(self.path, self.manifest)

    def graph(self, steps: int, precision: str, batch: int | None) -> Graph | None:
        wanted = (steps, precision, batch)
        return next((item for item in self.manifest.graphs if (item.steps, item.precision, item.batch) == wanted), None)

    def add(self, engine: Engine) -> None:
        """Put an engine in its place in the order of preference, instead of one for the same target and steps."""
        key = (engine.target, engine.steps)
        others = [item for item in self.manifest.engines if (item.target, item.steps) != key]
        engines = sorted([*others, engine], key=lambda item: (preference(item), item.steps))
        self.manifest = replace(self.manifest, engines=tuple(engines))
        self.added[key] = engine

    def add_graph(self, graph: Graph) -> None:
        """List a graph whose file is in the folder, instead of one for the same steps, precision and batch."""
        key = (graph.steps, graph.precision, graph.batch)
        others = [item for item in self.manifest.graphs if (item.steps, item.precision, item.batch) != key]
        self.manifest = replace(self.manifest, graphs=(*others, graph))


def build_bundle(
    source: Bundle,
    targets: Sequence[str],
    *,
    out: Path,
    steps: Sequence[int] = (),
    options: tensorrt.Options = DEFAULT_OPTIONS,
    say: Say = _silent,
) -> tuple[Manifest, list[Engine]]:
    """Add engines for `targets` and write the bundle to `out`, which may be its own folder.

    targets: `runtime:device:precision`. steps: numbers of steps to build for; all that the bundle has if empty. Golden
    cases are run on every new engine that this machine has the device for; the others are marked unverified. Returns
    the manifest and the new engines.

    Raises InputError for a target that is not offered, RuntimeUnavailableError for a builder that is not installed,
    BundleError for a graph that is missing, EngineError for an engine that a builder refuses or that misses its
    tolerance; the bundle is untouched then.
    """
    wanted = [check_target(text) for text in dict.fromkeys(targets)]
    for target in wanted:
        check_builder(target, options)
    if not any(target.runtime == "tensorrt" for target in wanted) and options != DEFAULT_OPTIONS:
        raise InputError("--version-compatible and --timing-cache are for tensorrt targets; leave them out")
    counts = tuple(steps) or source.manifest.steps
    if unknown := sorted(set(counts) - set(source.manifest.steps)):
        raise InputError(f"--steps {unknown[0]}: the bundle has {', '.join(map(str, source.manifest.steps))}")
    added = []
    with growing(source, out) as work:
        for target in wanted:
            for count in counts:
                engine = _build(work, target, count, options)
                added.append(engine)
                work.add(engine)
                say(f"built {engine.target}, steps {engine.steps}: {engine.file}")
    keys = {(engine.target, engine.steps) for engine in added}
    return work.manifest, [engine for engine in work.manifest.engines if (engine.target, engine.steps) in keys]


@contextmanager
def growing(source: Bundle, out: Path) -> Iterator[GrowingBundle]:
    """A copy of a bundle to add graphs and engines to; it becomes `out` when the block ends without an error.

    New engines are checked on the golden cases first. Raises EngineError for one that misses its tolerance, InputError
    if `out` cannot be written; nothing is changed then.
    """
    check_replaceable(out)
    with folder_replaced(out) as aside:
        _copy(source.path, aside)
        work = GrowingBundle(aside, source.manifest)
        yield work
        for engine in list(work.added.values()):
            work.add(_check(work.bundle, engine))
        _drop_unused_engines(work)
        work.manifest = write_manifest(aside, work.manifest)


def check_builder(target: Target, options: tensorrt.Options = DEFAULT_OPTIONS) -> None:
    """Raise RuntimeUnavailableError or InputError unless engines for a target can be built here."""
    if target.runtime in NVIDIA:
        relevant = options if target.runtime == "tensorrt" else DEFAULT_OPTIONS
        tensorrt.check_builder(target.runtime, target.device, relevant)
    elif target.runtime == "openvino":
        openvino.check_builder()


def _build(work: GrowingBundle, target: Target, steps: int, options: tensorrt.Options) -> Engine:
    if target.runtime in NVIDIA:
        return build_tensorrt(work, target, steps, options)
    if target.runtime == "openvino":
        return _build_openvino(work, target, steps)
    # TensorRT behind ONNX Runtime takes the int8 graph that TensorRT takes: the one for batch 1.
    batch = 1 if (target.device, target.precision) == ("TensorRT", "int8") else None
    graph = _graph(work, steps, target.precision, batch=batch)
    return _engine(target, graph, file=graph.file, batch=batch, report={"graph": graph.file})


def _build_openvino(work: GrowingBundle, target: Target, steps: int) -> Engine:
    # fp16 and bf16 are how a device computes the fp32 model; int8 is another model, which NNCF made from it.
    if target.precision == "int8":
        return _calibrated_openvino(work, target, steps)
    graph = _graph(work, steps, "fp32", batch=1)
    stem = Path(graph.file).stem
    file = f"{ENGINES}/openvino/{stem}.xml"
    if file not in work.converted:
        for suffix in (".xml", ".bin"):  # they may be links to files of the old bundle
            (work.path / file).with_suffix(suffix).unlink(missing_ok=True)
        work.converted[file] = openvino.write_ir(work.path / graph.file, work.path / file)
    report = {"graph": graph.file, "converted_with": work.converted[file], "reproducible": "yes"}
    return _engine(target, graph, file=file, batch=1, report=report)


def _calibrated_openvino(work: GrowingBundle, target: Target, steps: int) -> Engine:
    """The int8 IR of another OpenVINO device, which `csg-edge calibrate` put into the bundle."""
    for engine in work.manifest.engines:
        known = Target.parse(engine.target)
        if (known.runtime, known.precision, engine.steps) == ("openvino", "int8", steps):
            timed = ("speed_up", "over", "on")  # on another device
            about = {key: value for key, value in engine.report["calibration"].items() if key not in timed}
            report = {"converted_with": engine.report["converted_with"], "reproducible": "yes", "calibration": about}
            return replace(engine, target=str(target), state="unverified", report=report)
    raise BundleError(
        f"{work.manifest.name}: no int8 model of {steps} steps for OpenVINO; make one with `csg-edge calibrate`, or "
        "choose another precision"
    )


def build_tensorrt(
    work: GrowingBundle, target: Target, steps: int, options: tensorrt.Options = DEFAULT_OPTIONS
) -> Engine:
    """An engine from the bundle's graph for batch 1 in the target's precision; its file is put into the bundle."""
    graph = _graph(work, steps, target.precision, batch=1)
    relevant = options if target.runtime == "tensorrt" else DEFAULT_OPTIONS
    built = build_engine_apart(work.path / graph.file, runtime=target.runtime, device=target.device, options=relevant)
    promised = _promised_ports(work.manifest, batch=1)
    if dict(built.ports) != promised:
        raise EngineError(
            f"{target}, steps {steps}: the builder reports {dict(built.ports)}, the manifest promises {promised}; "
            "export the bundle again"
        )
    file = f"{ENGINES}/{target.runtime}-{target.device}/{Path(graph.file).stem}.engine"
    _write(work.path / file, built.data)
    report: dict[str, Any] = {
        "graph": graph.file,
        "layers": {kind: dict(count) for kind, count in built.layers.items()},
        "reproducible": built.reproducible,
    }
    if relevant.version_compatible:
        report["version_compatible"] = True
    return _engine(target, graph, file=file, batch=1, report=report, built_with=built.built_with)


def _promised_ports(manifest: Manifest, *, batch: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    ports = {**manifest.inputs, **manifest.outputs}
    return {name: (kind, (batch, *shape)) for name, (kind, shape) in ports.items()}


def _engine(
    target: Target, graph: Graph, *, file: str, batch: int | None, report: dict[str, Any], built_with: str = ""
) -> Engine:
    return Engine(
        target=str(target),
        steps=graph.steps,
        file=file,
        tolerance=TOLERANCES[target.precision],
        batch=batch,
        built_with=built_with,
        report=report,
    )


def _graph(work: GrowingBundle, steps: int, precision: str, *, batch: int | None) -> Graph:
    """The bundle's graph of a precision; fp16 is made from fp32 if it is not there yet."""
    if found := work.graph(steps, precision, batch):
        return found
    source = work.graph(steps, "fp32", batch)
    if precision == "fp16" and source is not None:
        return _add_half(work, source)
    remedy = "make one with `csg-edge calibrate`, or choose another precision"
    raise BundleError(
        f"{work.manifest.name}: no {precision} graph of {steps} steps for batch {batch or 'of any size'}; "
        + (remedy if precision == "int8" else "export the bundle again")
    )


def _add_half(work: GrowingBundle, source: Graph) -> Graph:
    file = f"{source.file.removesuffix('.onnx')}.fp16.onnx"
    write_graph(to_half(read_graph(work.path / source.file)), work.path / file)
    graph = Graph(source.steps, "fp16", source.batch, file, {})
    graph = replace(graph, error=graph_error(work.bundle, graph))
    work.manifest = replace(work.manifest, graphs=(*work.manifest.graphs, graph))
    return graph


def _check(bundle: Bundle, engine: Engine) -> Engine:
    """Run the golden cases where the device is here. Raises EngineError for an engine that misses its tolerance."""
    result = verify_engine(bundle, engine)
    if result.status == "failed":
        raise EngineError(f"{engine.target}, steps {engine.steps}: {result.reason}; nothing was added to the bundle")
    if result.status == "passed":
        worst = result.worst.to_json() if result.worst else {}
        return replace(engine, state="verified", report={**engine.report, "golden": worst})
    return replace(engine, state="unverified", report={**engine.report, "not_run": result.reason})


def _copy(source: Path, destination: Path) -> None:
    """Copy a bundle; its engines, which are large and never written to in place, by hard links where the disk has them.

    Graphs are copied in full: onnx refuses weights with a second link, which could lead out of their folder.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_dir():
            (destination / name).mkdir(exist_ok=True)
        elif name.parts[0] != ENGINES or not _linked(path, destination / name):
            shutil.copyfile(path, destination / name)


def _linked(path: Path, link: Path) -> bool:
    try:
        os.link(path, link)
    except OSError:  # another disk, or one without links
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be a link to the file in the old bundle
    path.write_bytes(data)


def _drop_unused_engines(work: GrowingBundle) -> None:
    """Remove engine files that rebuilt ones replaced."""
    used = {engine.file for engine in work.manifest.engines}
    used |= {str(Path(file).with_suffix(".bin")) for file in used if file.endswith(".xml")}
    for path in sorted((work.path / ENGINES).rglob("*")):
        if path.is_file() and path.relative_to(work.path).as_posix() not in used:
            path.unlink()

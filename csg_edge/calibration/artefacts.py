"""int8 models of a student, one per runtime family, made once and kept until the same is asked for again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from csg_edge.bundle.manifest import Bundle, Engine, Graph, Target
from csg_edge.cache import key_of
from csg_edge.calibration.onnx_qdq import ORT_CPU, TENSORRT, Ranges, load_ranges, measure_ranges, quantise, save_ranges
from csg_edge.calibration.openvino_int8 import check_quantiser, write_int8_ir
from csg_edge.calibration.recipes import Recipe
from csg_edge.calibration.samples import CalibrationSet
from csg_edge.errors import BundleError
from csg_edge.export.build import ENGINES, GrowingBundle, build_tensorrt
from csg_edge.export.parity import graph_error
from csg_edge.export.precision import simulate_half
from csg_edge.export.targets import EIGHT_BIT, NVIDIA
from csg_edge.export.weights import read_graph, write_graph
from csg_edge.generation.generator import Generator
from csg_edge.generation.selection import why_not
from csg_edge.progress import Progress
from csg_edge.runtimes import runtime_class
from csg_edge.runtimes.base import Runtime
from csg_edge.runtimes.ort import OnnxRuntime

FAMILIES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt"}


def family_of(target: Target) -> str:
    """Which kind of int8 model a target takes; TensorRT behind ONNX Runtime takes TensorRT's."""
    return "tensorrt" if target.device == "TensorRT" else FAMILIES[target.runtime]


def fp32_graph(bundle: Bundle, steps: int, batch: int | None) -> Graph:
    """The graph that int8 is made from. Raises BundleError if the bundle has none."""
    for graph in bundle.manifest.graphs:
        if (graph.steps, graph.precision, graph.batch) == (steps, "fp32", batch):
            return graph
    raise BundleError(
        f"{bundle.manifest.name}: no fp32 graph of {steps} steps for batch {batch or 'of any size'}, which int8 is "
        "made from; export the bundle again"
    )


@dataclass(frozen=True)
class Artefact:
    """An int8 model in the work folder: `file` is what goes into a bundle."""

    family: str
    steps: int
    file: Path
    made_with: str

    @property
    def size(self) -> int:
        """Bytes of the model with its weights."""
        return sum(path.stat().st_size for path in self.file.parent.glob(f"{self.file.stem}.*"))


@dataclass(frozen=True)
class Workshop:
    """Makes int8 models of one bundle from one calibration set; what it made stays in `folder`."""

    bundle: Bundle
    samples: CalibrationSet
    recipe: Recipe
    folder: Path

    def graph(self, steps: int, batch: int | None) -> Graph:
        """The fp32 graph. Raises BundleError if the bundle has none."""
        return fp32_graph(self.bundle, steps, batch)

    def model(self, steps: int, batch: int | None) -> onnx.ModelProto:
        """That graph, read with its weights."""
        return read_graph(self.bundle.file(self.graph(steps, batch).file))

    def key(self, steps: int, **more: object) -> str:
        """Stands for everything that an artefact depends on."""
        files = self.bundle.manifest.files
        graphs = {name: entry.sha256 for name, entry in files.items() if name.startswith("graphs/")}
        return key_of(
            graphs=graphs, steps=steps, samples=self.samples.fingerprint, recipe=repr(self.recipe),
            onnxruntime=onnxruntime.__version__, onnx=onnx.__version__, **more,
        )[:16]  # fmt: skip

    def ranges(self, steps: int) -> Ranges:
        """What the tensors of a graph span over the samples."""
        path = self.folder / f"ranges-steps-{steps}-{self.key(steps)}.json"
        if not path.is_file():
            progress = Progress(f"ranges, steps {steps}", len(self.samples), unit="samples")
            found = measure_ranges(self.model(steps, 1), self.samples, self.recipe, note=progress.advance)
            aside = path.with_name(f".{path.name}.partial")
            save_ranges(found, aside)
            os.replace(aside, path)
        return load_ranges(path)

    def make(self, family: str, steps: int, kept: Collection[str]) -> Artefact:
        """The int8 model of a runtime family with some nodes left in floating point.

        Raises EngineError if a quantiser refuses it.
        """
        versions = {"quantiser": _openvino_versions()} if family == "openvino" else {}
        folder = self.folder / f"{family}-steps-{steps}-{self.key(steps, family=family, kept=sorted(kept), **versions)}"
        with _made_once(folder) as aside:
            if aside is not None:
                made_with = self._write(family, steps, kept, aside)
                (aside / "made_with.txt").write_text(made_with, encoding="utf-8")
        file = folder / ("model.xml" if family == "openvino" else "model.onnx")
        return Artefact(family, steps, file, (folder / "made_with.txt").read_text(encoding="utf-8"))

    def _write(self, family: str, steps: int, kept: Collection[str], folder: Path) -> str:
        if family == "openvino":
            # NNCF reads every sample once to smooth and once to measure.
            progress = Progress(f"NNCF, steps {steps}", 2 * len(self.samples), unit="samples")
            graph = self.bundle.file(self.graph(steps, 1).file)
            return write_int8_ir(
                graph, folder / "model.xml", self.samples, self.recipe, kept=kept, note=progress.advance
            )
        tensorrt = family == "tensorrt"
        model = quantise(
            self.model(steps, 1 if tensorrt else None), self.ranges(steps), TENSORRT if tensorrt else ORT_CPU, kept=kept
        )
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
        if tensorrt:
            # What a CPU can run of it, with every rounding to fp16 made explicit.
            (folder / "simulated.onnx").write_bytes(simulate_half(model).SerializeToString(deterministic=True))
        return f"onnxruntime {onnxruntime.__version__}"

    @contextmanager
    def opened(self, artefact: Artefact, target: Target) -> Iterator[Generator]:
        """The model on its device or, where that is absent, as near to it as this machine's CPU comes."""
        engine = Engine(str(target), artefact.steps, artefact.file.as_posix(), EIGHT_BIT, batch=None)
        with Generator(self.bundle, engine, self._open(artefact, target)) as generator:
            yield generator

    def _open(self, artefact: Artefact, target: Target) -> Runtime:
        if artefact.family == "tensorrt":
            return OnnxRuntime.open(artefact.file.with_name("simulated.onnx"), device="CPU", precision="fp32")
        device = target.device if self.here(target) else "CPU"
        return runtime_class(target.runtime).open(artefact.file, device=device, precision="int8")

    def here(self, target: Target) -> bool:
        """Whether this machine can run and time an artefact for that target itself."""
        engine = Engine(str(target), 1, "", EIGHT_BIT)
        return family_of(target) != "tensorrt" and why_not(engine) is None


def install(work: GrowingBundle, artefact: Artefact, target: Target, calibration: dict[str, object]) -> None:
    """Put an int8 model into a bundle as the engine of a target."""
    if artefact.family == "openvino":
        name = f"{ENGINES}/openvino/steps-{artefact.steps}.batch-1.int8"
        for suffix in (".xml", ".bin"):
            path = (work.path / name).with_name(Path(name).name + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # it may be a link to the file in the old bundle
            shutil.copyfile(artefact.file.with_suffix(suffix), path)
        report = {"converted_with": artefact.made_with, "reproducible": "yes", "calibration": calibration}
        work.add(Engine(str(target), artefact.steps, f"{name}.xml", EIGHT_BIT, batch=1, report=report))
        return
    batch = 1 if artefact.family == "tensorrt" else None
    file = f"graphs/steps-{artefact.steps}{'.batch-1' if batch else ''}.int8.onnx"
    write_graph(onnx.load(artefact.file), work.path / file)
    graph = Graph(artefact.steps, "int8", batch, file, {})
    work.add_graph(Graph(artefact.steps, "int8", batch, file, graph_error(work.bundle, graph)))
    if target.runtime in NVIDIA:
        engine = build_tensorrt(work, target, artefact.steps)
        report = {**engine.report, "calibration": calibration}
        work.add(Engine(**{**vars(engine), "report": report}))
        return
    report = {"graph": file, "calibration": calibration}
    work.add(Engine(str(target), artefact.steps, file, EIGHT_BIT, batch=batch, report=report))


def check_quantisers(families: Collection[str]) -> None:
    """Raise RuntimeUnavailableError for a quantiser that is not installed."""
    if "openvino" in families:
        check_quantiser()


def _openvino_versions() -> str:
    from importlib.metadata import version

    return f"{version('nncf')} {version('openvino')}"


@contextmanager
def _made_once(folder: Path) -> Iterator[Path | None]:
    """Give a folder to fill that becomes `folder`, or None if that is there already."""
    if folder.is_dir():
        yield None
        return
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

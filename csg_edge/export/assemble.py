"""From a student to a whole bundle: graphs, engines, golden cases, card, manifest; written aside, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from csg_edge import __version__
from csg_edge.bundle.manifest import (
    FIBRE_SHAPE,
    FORMAT,
    Bundle,
    Engine,
    GoldenCase,
    Graph,
    Manifest,
    Target,
    check_replaceable,
    write_manifest,
)
from csg_edge.conditions.fibre_files import DIRECTION, read_field, write_field
from csg_edge.conditions.fibres import GIVEN, Wish, field_of_mask, nothing_given
from csg_edge.conditions.files import write_png
from csg_edge.datasets.phantom import SCENES, make_phantom
from csg_edge.errors import EngineError, InputError
from csg_edge.export.graph import OPSET, FewStepGraph, check_student, export_graphs
from csg_edge.export.parity import graph_error
from csg_edge.export.targets import TOLERANCES
from csg_edge.generation.verify import verify_engine
from csg_edge.labels import NO_MASK
from csg_edge.noise import noise_for
from csg_edge.storage import folder_replaced
from csg_edge.training.model import CsgModel

GOLDEN_SEED = 2024
GOLDEN_DIRECTIONS = -20, 20  # degrees, for the class with most pixels
EMPTY: Mapping[str, Path] = MappingProxyType({})

# In order of preference: what `auto` tries first. These open the ONNX graph itself; `build` adds others.
TARGETS = ("openvino:CPU:bf16", "openvino:CPU:fp32", "onnxruntime:CPU:fp32")


def export_bundle(
    model: CsgModel, out: Path, *, steps: Sequence[int], name: str, documents: Mapping[str, Path] = EMPTY
) -> Manifest:
    """Write a bundle; `documents` are files to copy into it (card, licence), by their name there.

    Every graph and engine is held against torch on the golden cases; a 16-bit engine that is too far from it is left
    out. Raises InputError if `out` holds something else, a document is missing or the model is no whole student,
    EngineError if a graph is not the model; `out` is whole or untouched.
    """
    check_replaceable(out)
    check_student(model)
    for path in documents.values():
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path of the {path.name} to put into the bundle")
    with folder_replaced(out) as aside:
        paths = export_graphs(model, steps, aside / "graphs")
        graphs = tuple(Graph(count, "fp32", batch, f"graphs/{path.name}", {}) for (count, batch), path in paths.items())
        engines = tuple(
            Engine(target, graph.steps, graph.file, TOLERANCES[Target.parse(target).precision])
            for target in TARGETS
            for graph in graphs
            if graph.batch is None
        )
        cases = _golden_cases(model.eval(), aside, steps)
        for document, path in documents.items():
            shutil.copyfile(path, aside / document)
        side = model.image_size
        manifest = Manifest(
            format=FORMAT,
            name=name,
            producer=__version__,
            image_size=(side, side),
            noise_shape=model.latent_shape(1)[1:],
            labels=model.schema.names,
            graphs=graphs,
            engines=engines,
            golden=cases,
            files={},
            export={"opset": OPSET, "torch": torch.__version__.split("+")[0]},
            fibre_shape=None if model.prior is None else FIBRE_SHAPE,
        )
        bundle = Bundle(aside, manifest)
        graphs = tuple(replace(graph, error=graph_error(bundle, graph)) for graph in graphs)
        kept, left_out = _sort_out(bundle, engines)
        export = {**manifest.export, "left_out": left_out}
        return write_manifest(aside, replace(manifest, graphs=graphs, engines=kept, export=export))


def _sort_out(bundle: Bundle, engines: Sequence[Engine]) -> tuple[tuple[Engine, ...], list[str]]:
    """Engines with their state, and why others are left out: 16 bits that miss their tolerance."""
    kept, left_out = [], []
    for engine in engines:
        result = verify_engine(bundle, engine)
        if result.status != "failed":
            kept.append(replace(engine, state="verified" if result.status == "passed" else "unverified"))
        elif Target.parse(engine.target).precision == "fp32":
            raise EngineError(f"{engine.target}, steps {engine.steps}: {result.reason}; the graph is not the model")
        else:
            left_out.append(f"{engine.target}, steps {engine.steps}: {result.reason}")
    return tuple(kept), left_out


def _golden_cases(model: CsgModel, directory: Path, steps: Sequence[int]) -> tuple[GoldenCase, ...]:
    """Write one case per phantom scene, with the fp32 torch image of each number of steps.

    Where the student takes a fibre field, the first case leaves it to the prior, every second one gives a direction.
    """
    references = {count: FewStepGraph(model, count).eval() for count in steps}
    cases = []
    (directory / "golden").mkdir()
    for index, scene in enumerate(SCENES):
        # Context and mask are two anatomies under one look, none of which training saw.
        look = GOLDEN_SEED + 100 + index
        mask = make_phantom(GOLDEN_SEED + index, size=model.image_size, scene=scene, appearance_seed=look).mask
        context = make_phantom(GOLDEN_SEED + 50 + index, size=model.image_size, scene=scene, appearance_seed=look).image
        given = used = None
        inputs = [mask[None], context[None], noise_for(index, model.latent_shape(1)[1:])[None]]
        if model.prior is not None:
            given = nothing_given()
            if index % 2:
                target = model.schema.names[int(np.bincount(mask[mask != NO_MASK]).argmax())]
                field = field_of_mask(mask, model.schema, [Wish(target, *GOLDEN_DIRECTIONS)], seed=index)
                field[GIVEN] = field[GIVEN] > 0.5  # the file says of a cell whether it is given or not
                given = read_field(write_field(directory / "golden", f"{scene}.fibre", field, kind="png")[0])
            inputs.append(given[None])
        expected = {}
        for count, reference in references.items():
            with torch.no_grad():
                made = reference(*(torch.from_numpy(values) for values in inputs))
            image, used = (made, None) if given is None else made
            expected[str(count)] = f"golden/{scene}.steps-{count}.png"
            write_png(directory / expected[str(count)], image.numpy()[0])
        case = GoldenCase(
            name=scene,
            mask=f"golden/{scene}.mask.png",
            context=f"golden/{scene}.context.png",
            seed=index,
            expected=expected,
            fibre=f"golden/{scene}.fibre{DIRECTION}" if given is not None and given.any() else None,
            fibre_used=None if used is None else f"golden/{scene}.fibre-used{DIRECTION}",
        )
        write_png(directory / case.mask, mask)
        write_png(directory / case.context, context)
        if used is not None:
            write_field(directory / "golden", f"{scene}.fibre-used", used.numpy()[0], kind="png")
        cases.append(case)
    return tuple(cases)

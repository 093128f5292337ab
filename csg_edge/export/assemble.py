"""From a student to a whole bundle: graphs, engines, golden cases, card, manifest; written aside, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from csg_edge import __version__
from csg_edge.bundle import FORMAT, Engine, GoldenCase, Manifest, Tolerance, write_manifest
from csg_edge.conditions import write_png
from csg_edge.errors import InputError
from csg_edge.export.graph import OPSET, FewStepGraph, export_graphs
from csg_edge.noise import noise_for
from csg_edge.phantom import SCENES, make_phantom
from csg_edge.runtimes.base import Feeds
from csg_edge.runtimes.ort import OnnxRuntime
from csg_edge.training.model import CsgModel
from csg_edge.training.process import STUDENT_TIMESTEPS
from csg_edge.verify import Difference

GOLDEN_SEED = 2024
EMPTY: Mapping[str, Path] = MappingProxyType({})
EXACT = Tolerance(levels=1, share=0.999, psnr=50.0)
SIXTEEN_BIT = Tolerance(levels=255, share=1.0, psnr=40.0)

# In order of preference: what `auto` tries first.
TARGETS = (
    ("openvino:CPU:bf16", SIXTEEN_BIT),
    ("openvino:CPU:fp32", EXACT),
    ("onnxruntime:CPU:fp32", EXACT),
)


def parse_steps(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4). Raises InputError for anything the sampler has no timesteps for."""
    known = ", ".join(map(str, STUDENT_TIMESTEPS))
    try:
        steps = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise InputError(f"--steps {text}: give numbers among {known}, separated by commas") from None
    if not set(steps) <= set(STUDENT_TIMESTEPS):
        raise InputError(f"--steps {text}: choose among {known}")
    return steps


def export_bundle(
    model: CsgModel, out: Path, *, steps: Sequence[int], name: str, documents: Mapping[str, Path] = EMPTY
) -> Manifest:
    """Write a bundle; `documents` are files to copy into it (card, licence), by their name there.

    Raises InputError if `out` holds something else or a document is missing; `out` is whole or untouched.
    """
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise InputError(f"--out {out}: not empty and not a bundle; choose another folder")
    for path in documents.values():
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path of the {path.name} to put into the bundle")
    aside = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        aside.mkdir(parents=True)
        paths = export_graphs(model, steps, aside / "graphs")
        cases, parity = _golden_cases(model.eval(), aside, paths)
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
            engines=tuple(
                Engine(target, count, f"graphs/{path.name}", tolerance)
                for target, tolerance in TARGETS
                for count, path in paths.items()
            ),
            golden=cases,
            files={},
            export={"opset": OPSET, "torch": torch.__version__.split("+")[0], "onnxruntime_against_torch": parity},
        )
        manifest = write_manifest(aside, manifest)
        if out.exists():
            shutil.rmtree(out)
        os.replace(aside, out)
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot write ({error.strerror or error}); free space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _golden_cases(
    model: CsgModel, directory: Path, paths: dict[int, Path]
) -> tuple[tuple[GoldenCase, ...], dict[str, Any]]:
    """Write one case per phantom scene, with the fp32 torch image of each number of steps.

    Returns the cases and, per number of steps, the worst difference of ONNX Runtime from torch.
    """
    graphs = {count: FewStepGraph(model, count).eval() for count in paths}
    sessions = {count: OnnxRuntime.open(path, device="CPU", precision="fp32") for count, path in paths.items()}
    differences: dict[int, list[Difference]] = {count: [] for count in paths}
    cases = []
    (directory / "golden").mkdir()
    for index, scene in enumerate(SCENES):
        # Context and mask are two anatomies under one look, none of which training saw.
        look = GOLDEN_SEED + 100 + index
        mask = make_phantom(GOLDEN_SEED + index, size=model.image_size, scene=scene, appearance_seed=look).mask
        context = make_phantom(GOLDEN_SEED + 50 + index, size=model.image_size, scene=scene, appearance_seed=look).image
        case = GoldenCase(
            name=scene,
            mask=f"golden/{scene}.mask.png",
            context=f"golden/{scene}.context.png",
            seed=index,
            expected={str(count): f"golden/{scene}.steps-{count}.png" for count in paths},
        )
        write_png(directory / case.mask, mask)
        write_png(directory / case.context, context)
        feeds: Feeds = {
            "mask": mask[None],
            "context": context[None],
            "noise": noise_for(index, model.latent_shape(1)[1:])[None],
        }
        for count, graph in graphs.items():
            with torch.no_grad():
                image = graph(*(torch.from_numpy(feeds[name]) for name in ("mask", "context", "noise"))).numpy()[0]
            write_png(directory / case.expected[str(count)], image)
            differences[count].append(Difference.between(sessions[count].run(feeds)["image"][0], image))
        cases.append(case)
    return tuple(cases), {f"steps_{count}": Difference.worst(found).to_json() for count, found in differences.items()}

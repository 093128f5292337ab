"""From a student to a bundle and its engines: `csg-edge export` and `csg-edge build`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from csg_edge.cli.options import (
    FOLDER,
    bundle_out_option,
    folder_to_change,
    json_option,
    need,
    need_training,
    out_option,
    parse_steps,
    print_json,
)


@click.command()
@click.argument("student", type=FOLDER)
@out_option
@click.option(
    "--steps",
    default=None,
    help="Numbers of denoiser evaluations, a graph each.  [default: all it was made for]",
)
@click.option(
    "--size", type=int, default=None, help="Side of the images; a multiple of 32 up to 512. As trained if not given."
)
@click.option("--name", default=None, help="Name of the bundle; the folder's name if not given.")
@click.option("--card", type=FOLDER, default=None, help="Model card (Markdown) to put into the bundle.")
@click.option("--license", "licence", type=FOLDER, default=None, help="Licence of the weights, to put into the bundle.")
def export(
    student: Path,
    out: Path,
    steps: str | None,
    size: int | None,
    name: str | None,
    card: Path | None,
    licence: Path | None,
) -> None:
    """Export a student as a bundle: one graph per number of steps, golden cases, manifest."""
    need_training()
    from csg_edge.export.assemble import export_bundle
    from csg_edge.training.model import CsgModel
    from csg_edge.training.process import parse_steps as student_steps

    documents = {"MODEL_CARD.md": card, "LICENSE": licence}
    model = CsgModel.load(student)
    model.image_size = size or model.image_size
    manifest = export_bundle(
        model,
        out,
        steps=model.steps if steps is None else student_steps(steps),
        name=name or out.resolve().name,
        documents={document: path for document, path in documents.items() if path is not None},
    )
    total = sum(entry.size for entry in manifest.files.values())
    click.echo(f"bundle {manifest.name} in {out}: steps {', '.join(map(str, manifest.steps))}, {total / 1e6:.1f} MB")
    for reason in manifest.export["left_out"]:
        click.echo(f"left out  {reason}")


@click.command()
@click.argument("bundle")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    help="runtime:device:precision, for example tensorrt-rtx:sm86:fp16 or openvino:GPU:fp16; may be repeated.",
)
@click.option("--steps", default=None, help="Numbers of steps to build for, for example 1,2; all if not given.")
@bundle_out_option
@click.option("--version-compatible", is_flag=True, help="tensorrt only: an engine that later versions open too.")
@click.option(
    "--timing-cache", type=FOLDER, default=None, help="tensorrt only: file in which kernel timings are kept for later."
)
@json_option
def build(
    bundle: str,
    targets: tuple[str, ...],
    steps: str | None,
    out: Path | None,
    version_compatible: bool,
    timing_cache: Path | None,
    as_json: bool,
) -> None:
    """Add engines for other runtimes and devices to a bundle; the bundle is changed whole or not at all."""
    need("onnx", extra="build")
    from csg_edge.bundle.manifest import find_bundle, read_bundle
    from csg_edge.export.build import build_bundle
    from csg_edge.export.tensorrt import Options

    source = read_bundle(find_bundle(bundle))
    folder = folder_to_change(source, out, named=bundle)
    manifest, added = build_bundle(
        source,
        targets,
        out=folder,
        steps=parse_steps(steps),
        options=Options(version_compatible=version_compatible, timing_cache=timing_cache),
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        rows = [asdict(engine) for engine in added]
        print_json({"bundle": str(folder), "engines": rows})
        return
    for engine in added:
        size = manifest.files[engine.file].size
        why = f": {engine.report['not_run']}" if "not_run" in engine.report else ""
        click.echo(f"{engine.state:<10} {engine.target}, steps {engine.steps}, {size / 1e6:.1f} MB{why}")


@click.command("serve-repository")
@click.argument("bundle")
@click.option("--for", "server", required=True, type=click.Choice(["triton", "ovms"]), help="Which server it is for.")
@out_option
@json_option
def serve_repository(bundle: str, server: str, out: Path, as_json: bool) -> None:
    """Write a model repository for Triton Inference Server or OpenVINO Model Server."""
    need("onnx", *(["tritonclient"] if server == "triton" else ["openvino"]), extra="serve")
    from csg_edge.bundle.manifest import find_bundle, read_bundle
    from csg_edge.export.serving import write_repository

    served = write_repository(read_bundle(find_bundle(bundle)), out, server=server)
    if as_json:
        print_json({"out": str(out), "models": {model.name: model.engine.target for model in served}})
        return
    for model in served:
        click.echo(f"{model.name}: {model.engine.target}, steps {model.engine.steps}, batch {model.batch or 'free'}")
    click.echo(f"{len(served)} models in {out}; the client makes noise from a seed: examples/serving_client.py")

"""The `csg-edge build` command."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


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
@click.option("--out", type=FOLDER, default=None, help="Folder for the bundle with its engines; BUNDLE if not given.")
@click.option("--version-compatible", is_flag=True, help="tensorrt only: an engine that later versions open too.")
@click.option(
    "--timing-cache", type=FOLDER, default=None, help="tensorrt only: file in which kernel timings are kept for later."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
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
    from csg_edge.bundle.manifest import MODELS, find_bundle, read_bundle
    from csg_edge.export.build import build_bundle
    from csg_edge.export.tensorrt import Options

    source = read_bundle(find_bundle(bundle))
    if out is None and source.path.resolve().is_relative_to(MODELS.resolve()):
        raise click.UsageError(
            f"{bundle} is the bundle inside the installed package; give --out FOLDER for a copy with the engines"
        )
    manifest, added = build_bundle(
        source,
        targets,
        out=out or source.path,
        steps=parse_steps(steps),
        options=Options(version_compatible=version_compatible, timing_cache=timing_cache),
        say=lambda line: click.echo(line, err=True),
    )
    if as_json:
        rows = [asdict(engine) for engine in added]
        click.echo(json.dumps({"bundle": str(out or source.path), "engines": rows}, allow_nan=False))
        return
    for engine in added:
        size = manifest.files[engine.file].size
        why = f": {engine.report['not_run']}" if "not_run" in engine.report else ""
        click.echo(f"{engine.state:<10} {engine.target}, steps {engine.steps}, {size / 1e6:.1f} MB{why}")


def need(*modules: str, extra: str) -> None:
    """Raise UsageError naming the extra to install unless all modules can be imported."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise click.UsageError(f"{', '.join(missing)} not installed; pip install 'csg-edge[{extra}]'")


def parse_steps(text: str | None) -> tuple[int, ...]:
    """`1,2` -> (1, 2), None -> (). Raises UsageError for anything else."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text is not None else ()
    except ValueError:
        raise click.UsageError(f"--steps {text}: give numbers separated by commas, for example 1,2") from None

"""The `csg-edge` command. Heavy imports stay inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from csg_edge import __version__
from csg_edge.cli.bench import bench
from csg_edge.cli.build import build, need
from csg_edge.cli.calibrate import calibrate
from csg_edge.cli.data import pack
from csg_edge.cli.options import seed_option
from csg_edge.cli.quality import fit_evaluators, validate
from csg_edge.cli.train import distill, export, train, train_autoencoder, tune_int8
from csg_edge.errors import CsgEdgeError

FOLDER = click.Path(path_type=Path)


WITHOUT = Path()  # what `none` becomes; click takes None for an option that was not given


class Condition(click.Path):
    """A file or folder, or `none`: go without. A folder of that name is given as ./none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return WITHOUT if value == "none" else super().convert(value, param, ctx)


CONDITION = Condition(path_type=Path)


class OneLineErrors(click.Group):
    """A group whose every error is one line on stderr and exit code 2, with no usage text and no traceback."""

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        try:
            code = super().main(args, *arguments, **options)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(0)
        except click.ClickException as error:
            _fail(error.format_message())
        except CsgEdgeError as error:
            _fail(str(error))
        except (click.Abort, KeyboardInterrupt):
            click.echo("csg-edge: stopped", err=True)
            sys.exit(130)
        except BrokenPipeError:  # the reader of our output has gone; nothing to tell it
            sys.stderr.close()
            sys.exit(141)
        except OSError as error:  # a folder that cannot be made, a disk that is full
            _fail(
                f"{error.filename or 'file'}: {error.strerror or error}; check the path, its permissions and free space"
            )
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    click.echo(f"csg-edge: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _print_json(values: Any) -> None:
    click.echo(json.dumps(values, allow_nan=False))


bundle_option = click.option(
    "--bundle", default="msk-256", show_default=True, help="Bundle folder, or the name of a shipped bundle."
)
bundle_argument = click.argument("bundle", default="msk-256")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
out_option = click.option("--out", required=True, type=FOLDER, help="Folder to write.")


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="csg-edge")
def main() -> None:
    """Labelled musculoskeletal ultrasound images from a mask and a context image."""


main.add_command(validate)
main.add_command(fit_evaluators)


@main.command()
@click.option(
    "--mask", required=True, type=CONDITION, help="Mask file or folder: 8-bit class indices. none: context alone."
)
@click.option(
    "--context",
    required=True,
    type=CONDITION,
    help="Context image or folder; a folder with the masks' names pairs by name. none: mask alone.",
)
@out_option
@bundle_option
@click.option(
    "--runtime", default="auto", show_default=True, help="auto, openvino, onnxruntime, tensorrt-rtx, tensorrt or torch."
)
@click.option("--device", default="auto", show_default=True, help="Device as the runtime names it, for example CPU.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16, fp16 or int8.")
@click.option("--steps", default=1, show_default=True, help="Denoiser evaluations per image: 1, 2 or 4.")
@seed_option
@click.option("--count", default=1, show_default=True, help="Images per mask, or per context with --mask none.")
@click.option(
    "--select",
    type=click.Choice(["nearest", "random", "diverse"]),
    help="How contexts are chosen from a folder: nearest in style to --like, drawn by the seed, or unlike each other. "
    "Default: by name, else drawn.",
)
@click.option("--like", type=FOLDER, help="Image whose style contexts shall have, or a folder with the masks' names.")
@click.option("--vary", help="Vary the masks first, for example deform:0.5,tilt:3deg; docs/conditions.md lists all.")
@click.option("--vary-count", default=1, show_default=True, help="Varied masks made of each mask.")
@click.option("--sheet", is_flag=True, help="Also write contact_sheet.png: mask | context | image.")
@click.option("--no-cache", is_flag=True, help="Neither use nor fill the cache of compiled engines and verdicts.")
@json_option
def generate(
    mask: Path, context: Path, out: Path, bundle: str, runtime: str, device: str, precision: str,
    steps: int, seed: int, count: int, select: str | None, like: Path | None, vary: str | None, vary_count: int,
    sheet: bool, no_cache: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make an image for each mask, with the appearance of a context."""
    from csg_edge.generation import folders
    from csg_edge.generation.loading import load

    given = (None if path is WITHOUT else path for path in (mask, context))
    jobs = folders.plan(*given, count=count, seed=seed, select=select, like=like, vary=vary, vary_count=vary_count)
    folders.check_output(out, jobs)
    with load(
        bundle, runtime=runtime, device=device, precision=precision, steps=steps, cache=not no_cache
    ) as generator:
        record = folders.run(jobs, generator, out, sheet=sheet)
        choice = str(generator.choice)
    if as_json:
        _print_json(record)
        return
    from csg_edge.machine import processor_name

    pace = record["ms_per_image"]
    click.echo(f"{len(jobs)} images in {out}" + (f", contact sheet {out / folders.SHEET_NAME}" if sheet else ""))
    click.echo(f"runtime: {choice}")
    click.echo(
        f"{record['target']} (computing in {record['effective_precision']}), {steps} step{'s' * (steps > 1)}: "
        f"median {pace['median']:.1f} ms, max {pace['max']:.1f} ms per image on {processor_name()}"
    )


@main.command()
@bundle_argument
@click.option(
    "--graph",
    "graph",
    is_flag=True,
    help="Parameters, MACs, activations and operators per stage; precision per engine.",
)
@json_option
def info(bundle: str, graph: bool, as_json: bool) -> None:
    """What a bundle holds."""
    from csg_edge.bundle.manifest import find_bundle, read_bundle

    checked = read_bundle(find_bundle(bundle))
    manifest = checked.manifest
    if graph:
        need("onnx", extra="build")
        from csg_edge.export.inspect import inspect_bundle, report_lines

        report = inspect_bundle(checked)
        if as_json:
            _print_json(report)
        else:
            click.echo("\n".join(report_lines(report)))
        return
    if as_json:
        _print_json({"path": str(checked.path), **asdict(manifest)})
        return
    height, width = manifest.image_size
    click.echo(f"{manifest.name} (made by csg-edge {manifest.producer}) in {checked.path}")
    click.echo(f"images    {height} x {width}, noise {' x '.join(map(str, manifest.noise_shape))}")
    click.echo("classes   " + ", ".join(f"{index} {name}" for index, name in enumerate(manifest.labels)))
    for engine in manifest.engines:
        built = f", {engine.built_with}" if engine.built_with else ""
        click.echo(
            f"engine    {engine.target}, {engine.steps} step{'s' * (engine.steps > 1)}: {engine.file} "
            f"({engine.state}{built})"
        )
    total = sum(entry.size for entry in manifest.files.values())
    click.echo(f"golden    {len(manifest.golden)} cases")
    click.echo(f"files     {len(manifest.files)}, {total / 1e6:.1f} MB, all hashes match")


@main.command()
@bundle_option
@json_option
def doctor(bundle: str, as_json: bool) -> None:
    """What this machine can run."""
    from csg_edge.generation.doctor import examine

    report = examine(bundle)
    if as_json:
        _print_json(report)
        return
    for key in ("csg_edge", "python", "system", "processor", "cores"):
        click.echo(f"{key:<10} {report[key]}")
    for name, runtime in report["runtimes"].items():
        if "missing" in runtime:
            click.echo(f"{name:<12} missing: {runtime['missing']}")
        else:
            click.echo(f"{name:<12} {runtime['version']}" + (f": {runtime['note']}" if "note" in runtime else ""))
            for device, about in runtime["devices"].items():
                click.echo(f"  {device}: {about['name']} {' '.join(about.get('precisions', []))}".rstrip())
    bundle_report = report["bundle"]
    if "error" in bundle_report:
        click.echo(f"bundle     {bundle_report['error']}")
    else:
        for engine, state in bundle_report["engines"].items():
            verdict = bundle_report["verdicts"].get(engine)
            click.echo(f"engine     {engine}: {state}" + (f", {verdict}" if verdict else ""))
        for steps, choice in bundle_report["auto"].items():
            click.echo(f"auto       steps {steps}: {choice}")
    cache = report["cache"]
    click.echo(f"cache      {cache['folder']}: {cache['entries']} entries, {cache['bytes'] / 1e6:.1f} MB")


@main.command()
@bundle_argument
@json_option
def verify(bundle: str, as_json: bool) -> None:
    """Run the golden cases of a bundle on this machine. Exits with 1 if an engine fails or none can run."""
    from csg_edge.bundle.manifest import find_bundle, read_bundle
    from csg_edge.generation.verify import verify_bundle

    results = verify_bundle(read_bundle(find_bundle(bundle)))
    good = all(result.status != "failed" for result in results) and any(result.status == "passed" for result in results)
    if as_json:
        rows = [{**asdict(result), "worst": result.worst and result.worst.to_json()} for result in results]
        _print_json({"bundle": bundle, "passed": good, "engines": rows})
    else:
        for result in results:
            line = f"{result.status:<8} {result.target}, {result.steps} step{'s' * (result.steps > 1)}"
            if result.worst:
                worst = result.worst
                line += (
                    f" (computing in {result.effective_precision}): worst difference {worst.max_levels} grey levels, "
                    f"mean {worst.mean_levels:.3f}, p99 {worst.p99_levels:g}, "
                    f"{100 * worst.share_within_1:.2f} % within 1, PSNR {worst.psnr:.1f} dB, SSIM {worst.ssim:.4f}"
                )
            click.echo(line + (f": {result.reason}" if result.reason else ""))
    sys.exit(0 if good else 1)


@main.command()
@out_option
@click.option("--count", default=20, show_default=True, help="Number of labelled images.")
@seed_option
@click.option("--size", default=256, show_default=True, help="Side of the images in pixels, a multiple of 32.")
@json_option
def phantom(out: Path, count: int, seed: int, size: int, as_json: bool) -> None:
    """Write a labelled musculoskeletal phantom: images, masks, contexts, label schema."""
    from csg_edge.datasets.phantom import write_phantoms

    write_phantoms(out, count=count, seed=seed, size=size)
    if as_json:
        _print_json({"out": str(out), "count": count, "seed": seed, "size": size})
    else:
        click.echo(f"{count} phantoms in {out}: images, masks, contexts, labels.json, manifest.csv")


main.add_command(pack)
main.add_command(train)
main.add_command(train_autoencoder)
main.add_command(distill)
main.add_command(tune_int8)
main.add_command(export)
main.add_command(build)
main.add_command(calibrate)
main.add_command(bench)

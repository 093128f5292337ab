"""The `csg-edge generate` command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csg_edge.cli.options import FOLDER, bundle_option, json_option, out_option, print_json, seed_option

WITHOUT = Path()  # what `none` becomes; click takes None for an option that was not given


class Condition(click.Path):
    """A file or folder, or `none`: go without. A folder of that name is given as ./none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return WITHOUT if value == "none" else super().convert(value, param, ctx)


CONDITION = Condition(path_type=Path)


@click.command()
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
@click.option("--frame", help="Which image of a clip, stack or volume: a number from 0, middle or all. Or name FILE#N.")
@click.option(
    "--colours",
    type=FOLDER,
    help="What the colours of masks mean: lines name:red,green,blue. Else labelmap.txt beside.",
)
@click.option("--vary", help="Vary the masks first, for example deform:0.5,tilt:3deg; docs/conditions.md lists all.")
@click.option("--vary-count", default=1, show_default=True, help="Varied masks made of each mask.")
@click.option(
    "--fibre",
    help="Direction of fibres: muscle=18deg (rising to the right is positive), muscle=-10..25deg, a file or folder of "
    "fibre fields, or like: as in the context. docs/fibres.md.",
)
@click.option(
    "--write-fibres",
    is_flag=False,
    flag_value="npz",
    type=click.Choice(["npz", "csv", "png"]),
    help="Also write OUT/fibres: the direction of fibres in each image.  [npz if no format is named]",
)
@click.option(
    "--streams", default="1", show_default=True, help="Images made side by side, for throughput: a number, or auto."
)
@click.option("--sheet", is_flag=True, help="Also write contact_sheet.png: mask | context | image.")
@click.option("--unproven", is_flag=True, help="Use an engine even if its golden image is wrong on this machine.")
@click.option("--no-cache", is_flag=True, help="Neither use nor fill the cache of compiled engines and verdicts.")
@json_option
def generate(
    mask: Path, context: Path, out: Path, bundle: str, runtime: str, device: str, precision: str,
    steps: int, seed: int, count: int, select: str | None, like: Path | None, frame: str | None, vary: str | None,
    vary_count: int, colours: Path | None, fibre: str | None, write_fibres: str | None, sheet: bool, no_cache: bool,
    streams: str, unproven: bool, as_json: bool,
) -> None:  # fmt: skip
    """Make an image for each mask, with the appearance of a context."""
    from csg_edge.generation import folders
    from csg_edge.generation.jobs import plan
    from csg_edge.generation.loading import load

    given = (None if path is WITHOUT else path for path in (mask, context))
    jobs = plan(*given, count=count, seed=seed, select=select, like=like, vary=vary, vary_count=vary_count,
                        frame=frame, fibre=fibre)  # fmt: skip
    folders.check_output(out, jobs)
    side_by_side: Any = int(streams) if streams.isdecimal() else streams  # `load` refuses any word but auto
    with load(
        bundle, runtime=runtime, device=device, precision=precision, steps=steps, streams=side_by_side,
        cache=not no_cache, proven=not unproven,
    ) as generator:  # fmt: skip
        record = folders.run(jobs, generator, out, sheet=sheet, colours=colours, write_fibres=write_fibres)
        choice = str(generator.choice)
    if unproven:
        click.echo("csg-edge: note: this engine was not proven; csg-edge verify says what is wrong with it", err=True)
    for note in record["notes"]:
        click.echo(f"csg-edge: note: {note}", err=True)
    if as_json:
        print_json(record)
        return
    from csg_edge.machine import processor_name

    pace = record["ms_per_image"]
    kept = f", {record['kept']} of them made before" if record["kept"] else ""
    click.echo(f"{len(jobs)} images in {out}{kept}" + (f", contact sheet {out / folders.SHEET_NAME}" if sheet else ""))
    click.echo(f"runtime: {choice}")
    if pace is None:
        return
    click.echo(
        f"{record['target']} (computing in {record['effective_precision']}), {steps} step{'s' * (steps > 1)}: "
        f"median {pace['median']:.1f} ms, max {pace['max']:.1f} ms per image on {processor_name()}"
    )

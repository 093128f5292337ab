"""The `csg-edge calibrate` command."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from csg_edge.cli.options import (
    FOLDER,
    SEED,
    bundle_out_option,
    folder_to_change,
    json_option,
    need,
    parse_steps,
    print_json,
)

NEEDED = ("onnx", "onnxruntime", "torch", "safetensors", "monai", "torchmetrics", "sklearn", "scipy", "matplotlib")


@click.command()
@click.argument("bundle")
@click.option(
    "--target", "targets", multiple=True, required=True,
    help="runtime:device:int8, for example openvino:CPU:int8 or tensorrt-rtx:sm86:int8; may be repeated.",
)  # fmt: skip
@click.option(
    "--data", multiple=True, required=True, type=FOLDER,
    help="Labelled set, or a folder of sets: train groups to calibrate on, held-out ones to judge; may be repeated.",
)  # fmt: skip
@click.option(
    "--calibrate-only", "extra", multiple=True, type=FOLDER,
    help="Further sets to calibrate on and not to judge by, a phantom for example; may be repeated.",
)  # fmt: skip
@click.option("--samples", default=300, show_default=True, help="Calibration samples.")
@click.option("--list", "sample_list", type=FOLDER, default=None, help="CSV naming the samples; drawn if not given.")
@click.option(
    "--seed", type=SEED, is_eager=True, default=0, show_default=True, help="Draws samples and the cases to judge."
)
@click.option("--steps", default="1", show_default=True, help="Numbers of steps, separated by commas.")
@click.option("--recipe", default="default", show_default=True, help="How ranges are found: docs/calibration.md.")
@click.option("--compare", is_flag=True, help="Try every recipe on a few images instead; changes no bundle.")
@click.option("--images", default=126, show_default=True, help="Images per engine to judge.")
@bundle_out_option
@click.option(
    "--report", type=FOLDER, default=None, help="Folder for tables and what a resumed run needs; NAME.calibration."
)
@json_option
def calibrate(
    bundle: str, targets: tuple[str, ...], data: tuple[Path, ...], extra: tuple[Path, ...], samples: int,
    sample_list: Path | None, seed: int, steps: str, recipe: str, compare: bool, images: int, out: Path | None,
    report: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make int8 engines and put those into the bundle that are faster and as good. Exits with 1 unless all are.

    An engine has to be 1.15 times as fast as the runtime's best one in 16 or 32 bits, in the same run, and its images
    as good as the fp32 student's. A bundle is changed whole or not at all; run the same command again to resume.
    """
    need(*NEEDED, extra="calibrate")
    from csg_edge.bundle.manifest import find_bundle, read_bundle
    from csg_edge.calibration.calibrate import calibrate as run
    from csg_edge.calibration.calibrate import compare as try_all
    from csg_edge.calibration.calibrate import parse_targets
    from csg_edge.calibration.compare import tried_line
    from csg_edge.calibration.outcome import Settings
    from csg_edge.calibration.recipes import find_recipe
    from csg_edge.calibration.report import gate_line, table, to_json

    source = read_bundle(find_bundle(bundle))
    folder = source.path if compare else folder_to_change(source, out, named=bundle)
    settings = Settings(
        data=data, targets=parse_targets(targets), steps=parse_steps(steps),
        report=report or Path(f"{source.manifest.name}.calibration"), recipe=find_recipe(recipe), extra=extra,
        samples=samples, list=sample_list, seed=seed, images=images,
    )  # fmt: skip
    if compare:
        rows = try_all(source, settings)
        if as_json:
            print_json([asdict(row) for row in rows])
        else:
            for row in rows:
                click.echo(tried_line(row))
        return
    found = run(source, settings, out=folder)
    if as_json:
        print_json(to_json(found, settings, source))
    else:
        for line in table(found.rows):
            click.echo(line)
        for attempt in found.chosen:
            for gate in attempt.gates:
                click.echo(gate_line(attempt.steps, gate))
        for attempt in found.chosen:
            verdict = f"added to {folder}" if attempt.passed else "not added"
            speed = "" if attempt.speed_up is not None or not attempt.passed else ", unverified: its device is absent"
            click.echo(f"{attempt.target}, steps {attempt.steps}: {verdict}{speed}")
        click.echo(f"report in {settings.report / 'report.md'}")
    sys.exit(0 if found.passed else 1)

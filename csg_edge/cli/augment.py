"""The `csg-edge augment` command."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from csg_edge.cli.options import FOLDER, QUALITY_EXTRA, SEED, bundle_option, json_option, need, out_option, print_json


@click.command()
@click.argument("dataset", type=FOLDER)
@out_option
@click.option("--multiply", type=float, help="Images of the output for each real training image, that one among them.")
@click.option("--plan", "plan_file", type=FOLDER, help="TOML file that says what is drawn; docs/augment.md has it all.")
@click.option("--seed", type=SEED, help="Seed of every draw.  [0, or the plan's]")
@click.option("--dry-run", is_flag=True, help="Print what would be made, and make nothing.")
@click.option(
    "--format", "kind", default="same", show_default=True, type=click.Choice(["same", "folder", "nnunet", "dicom"]),
    help="Layout of the output.",
)  # fmt: skip
@click.option(
    "--size", default="source", show_default=True, type=click.Choice(["source", "model"]),
    help="Size of made images: that of their mask's real image, or the model's.",
)  # fmt: skip
@click.option("--only-synthetic", is_flag=True, help="Leave real images out, and call groups by number.")
@click.option(
    "--burned-in", "text", default="skip", show_default=True, type=click.Choice(["skip", "crop"]),
    help="What becomes of contexts that show text.",
)  # fmt: skip
@click.option("--no-checks", is_flag=True, help="Keep every image, unchecked.")
@click.option("--segmenter", type=FOLDER, help="Folder of csg-edge fit-evaluators.  [the shipped evaluators]")
@click.option(
    "--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]), help="Who does the work."
)
@click.option("--workers", type=int, help="Workers of --engine ray.  [as many as processors]")
@click.option("--ray-address", "address", help="Cluster of --engine ray; its machines must see the same folders.")
@click.option("--remake", help="Make one image of OUT again from its provenance, and compare it.")
@bundle_option
@click.option("--runtime", default="auto", show_default=True, help="As for csg-edge generate.")
@click.option("--device", default="auto", show_default=True, help="As for csg-edge generate.")
@click.option("--precision", default="auto", show_default=True, help="As for csg-edge generate.")
@click.option("--steps", default=1, show_default=True, help="Denoiser evaluations per image: 1, 2 or 4.")
@json_option
def augment(
    dataset: Path, out: Path, multiply: float | None, plan_file: Path | None, seed: int | None, dry_run: bool,
    kind: str, size: str, only_synthetic: bool, text: str, no_checks: bool, segmenter: Path | None,
    engine: str, workers: int | None, address: str | None, remake: str | None, bundle: str, runtime: str, device: str,
    precision: str, steps: int, as_json: bool,
) -> None:  # fmt: skip
    """Multiply a labelled set by checked synthetic images; run the same command again to resume.

    DATASET is a folder with images and masks, or an nnU-Net v2 data set (docs/augment.md).
    """
    if not (no_checks or dry_run or remake):
        need(*QUALITY_EXTRA, extra="augment")
    from csg_edge.augment import run
    from csg_edge.augment.options import Options, Scale, open_sources
    from csg_edge.augment.plan import read_plan
    from csg_edge.generation.loading import load
    from csg_edge.machine import allowed_processors

    options = Options(kind, size, text, not only_synthetic, not no_checks, segmenter)
    scale = Scale(engine, allowed_processors() if workers is None else workers, address)
    plan = read_plan(plan_file, multiply=multiply, seed=seed)
    # One stream a core: more images a second, and the same bytes on any number of cores.
    with load(bundle, runtime=runtime, device=device, precision=precision, steps=steps, streams="auto") as generator:
        if dry_run:
            _say_preview(run.preview(open_sources(dataset, plan, generator, options), plan, options), as_json)
            return
        if remake is not None:
            facts = run.remake(dataset, out, remake, plan, generator)
            _say_remade(facts, as_json)
            sys.exit(0 if facts["same"] else 1)
        begun = time.monotonic()
        record = run.run(dataset, out, plan, generator, options, scale)
        seconds = time.monotonic() - begun
    record = {**record, "seconds": round(seconds, 3)}
    if as_json:
        print_json(record)
        return
    made, left_out = record["made"], len(record["left_out"])
    click.echo(f"{made} images in {out}, {record['real'] if not only_synthetic else 0} real training images beside them"
               + (f"; {left_out} left out by the checks" if left_out else ""))  # fmt: skip
    for name, rate in record["rejection_rates"].items() if record["limits"] else ():
        click.echo(f"  {name}: {100 * rate:.1f} % of {record['tried'][name]} attempts drawn again")
    if record["refused"]:
        click.echo(
            f"{len(record['refused'])} contexts show text and were not used; {out / 'augmented.json'} names them"
        )
    if record["made_now"]:
        click.echo(f"{record['engine']}: {record['made_now'] / seconds:.1f} images/s, all included")


def _say_preview(seen: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(seen)
        return
    click.echo(f"{seen['set']}: {seen['masks']} masks, {seen['images']} images to make, {seen['contexts']} contexts")
    if seen["refused"]:
        click.echo(f"{len(seen['refused'])} contexts show text and would not be used: {', '.join(seen['refused'])}")
    click.echo(f"{'class':<20} {'before':>15} {'after':>15}")
    for name, row in seen["classes"].items():
        cells = (f"{row[when]} ({100 * row[f'{when}_share']:.1f} %)" for when in ("before", "after"))
        click.echo(f"{name:<20} " + " ".join(f"{cell:>15}" for cell in cells))


def _say_remade(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    elif facts["same"]:
        click.echo(f"{facts['id']}: the same bytes" + ("; its files were missing and are written" * facts["written"]))
    else:
        click.echo(f"{facts['id']}: other bytes than before; another machine or version of the runtime?", err=True)

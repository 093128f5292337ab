"""Labelled sets: `csg-edge pack` and `csg-edge phantom`."""

from __future__ import annotations

from pathlib import Path

import click

from csg_edge.cli.options import FOLDER, data_option, json_option, need, out_option, print_json, seed_option
from csg_edge.errors import InputError


@click.command()
@data_option
@click.option("--size", default=256, show_default=True, help="Side of the packed images in pixels.")
@click.option("--out", required=True, type=FOLDER, help="File to write, NAME.safetensors.")
@click.option(
    "--split", "splits", multiple=True, default=("train", "val"), show_default=True, help="Split; may be repeated."
)
@click.option("--at-most", type=int, default=None, help="Images of each set, in whole groups; all if not given.")
@click.option("--limit-mb", default=60.0, show_default=True, help="Largest file to write, in MB of a million bytes.")
@json_option
def pack(
    data: tuple[Path, ...], size: int, out: Path, splits: tuple[str, ...], at_most: int | None, limit_mb: float,
    as_json: bool,
) -> None:  # fmt: skip
    """Pack labelled sets into one file, which commands take as --data on any machine."""
    need("safetensors", extra="train")
    from csg_edge.datasets.packing import pack_sets

    for option, value, least in (("--size", size, 8), ("--at-most", at_most, 1)):
        if value is not None and value < least:
            raise InputError(f"{option} {value}: give at least {least}")
    if not limit_mb > 0:
        raise InputError(f"--limit-mb {limit_mb:g}: give a number above 0")
    report = pack_sets(data, out, size=size, splits=splits, limit=int(limit_mb * 1e6), at_most=at_most)
    if as_json:
        print_json(report)
        return
    for item in report["sets"]:
        parts = ", ".join(
            f"{split} {part['images']} images in {part['groups']} groups" for split, part in item["splits"].items()
        )
        click.echo(f"{item['name']}: {parts}")
    click.echo(f"{out}: {report['bytes'] / 1e6:.1f} MB at {size} x {size}, SHA-256 {report['sha256']}")


@click.command()
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
        print_json({"out": str(out), "count": count, "seed": seed, "size": size})
    else:
        click.echo(f"{count} phantoms in {out}: images, masks, contexts, labels.json, manifest.csv")

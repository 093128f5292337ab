"""The `csg-edge studio` command."""

from __future__ import annotations

from pathlib import Path

import click

from csg_edge.cli.options import FOLDER, bundle_option, need


@click.command()
@bundle_option
@click.option("--contexts", type=FOLDER, help="Folder of images for the gallery of looks; its first 500 are shown.")
@click.option("--out", type=FOLDER, help="Folder that results can be saved into, beside downloads.")
@click.option("--port", default=8040, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; another opens the studio to others."
)
@click.option("--threads", type=click.IntRange(1), help="Processors for one image.  [default: all that are allowed]")
@click.option("--open/--no-open", "opens", default=False, help="Open the page in the browser.")
def studio(
    bundle: str, contexts: Path | None, out: Path | None, port: int, host: str, threads: int | None, opens: bool
) -> None:  # fmt: skip
    """Paint a mask, choose a look and see the image while painting: a page on this machine."""
    need("starlette", "uvicorn", extra="studio")
    import numpy as np

    from csg_edge.studio.desk import Desk, Wish
    from csg_edge.studio.server import serve

    desk = Desk(bundle, contexts, out, threads)

    def announce(address: str) -> None:
        click.echo(f"csg-edge studio: {address}")
        if host not in ("127.0.0.1", "localhost", "::1"):
            click.echo(
                "csg-edge: note: whoever reaches this machine and knows the address can use the studio", err=True
            )
        if opens:
            click.launch(address)

    try:
        empty = np.zeros(desk.size, np.uint8)
        desk.make(Wish(empty, empty))  # opens the engine, so that the first stroke does not wait
        serve(desk, host=host, port=port, announce=announce)
    finally:
        desk.close()

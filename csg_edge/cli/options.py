"""Types, options and helpers that several commands share."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csg_edge.noise import MAX_SEED

if TYPE_CHECKING:
    from csg_edge.bundle.manifest import Bundle

FOLDER = click.Path(path_type=Path)
QUALITY_EXTRA = ("torch", "safetensors", "monai", "torchmetrics", "sklearn", "scipy", "skimage", "matplotlib", "jinja2")


class Seed(click.types.IntParamType):
    """An integer from which every generator of random numbers here can start."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        seed = int(super().convert(value, param, ctx))
        if not 0 <= seed <= MAX_SEED:
            raise click.UsageError(f"--seed {seed}: give an integer from 0 to {MAX_SEED}")
        return seed


SEED = Seed()

seed_option = click.option(
    "--seed", default=0, type=SEED, show_default=True, help="First seed; the same seed gives the same result."
)
bundle_argument = click.argument("bundle", default="msk-256")
bundle_option = click.option(
    "--bundle", default="msk-256", show_default=True, help="Bundle folder, or the name of a shipped bundle."
)
data_option = click.option(
    "--data", multiple=True, required=True, type=FOLDER, help="Labelled set, or a folder of sets; may be repeated."
)
out_option = click.option("--out", required=True, type=FOLDER, help="Folder to write.")
bundle_out_option = click.option(
    "--out", type=FOLDER, default=None, help="Folder for the bundle with its engines; BUNDLE if not given."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")


def print_json(values: Any) -> None:
    """One line of JSON on stdout; NaN and infinities are errors."""
    click.echo(json.dumps(values, allow_nan=False))


def need(*modules: str, extra: str) -> None:
    """Raise UsageError naming the extra to install unless all modules can be imported."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise click.UsageError(f"{', '.join(missing)} not installed; pip install 'csg-edge[{extra}]'")


def need_training() -> None:
    """`need` for the commands that train or export a student."""
    need("torch", "safetensors", "onnx", "onnxscript", extra="train,export")


def parse_steps(text: str | None) -> tuple[int, ...]:
    """`1,2` -> (1, 2), None -> (). Raises UsageError for anything else."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text is not None else ()
    except ValueError:
        raise click.UsageError(f"--steps {text}: give numbers separated by commas, for example 1,2") from None


def folder_to_change(bundle: Bundle, out: Path | None, *, named: str) -> Path:
    """Where a bundle with further engines goes: `out`, or its own folder.

    named: as the user called it. Raises UsageError for one inside the installed package, which is not to be changed.
    """
    from csg_edge.bundle.manifest import MODELS

    if out is None and bundle.path.resolve().is_relative_to(MODELS.resolve()):
        raise click.UsageError(
            f"{named} is the bundle inside the installed package; give --out FOLDER for a copy with the engines"
        )
    return out or bundle.path

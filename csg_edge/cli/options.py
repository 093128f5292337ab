"""Types and options that several commands share."""

from __future__ import annotations

from typing import Any

import click

from csg_edge.noise import MAX_SEED


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

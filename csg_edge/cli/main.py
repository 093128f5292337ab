"""The `csg-edge` command. Heavy imports stay inside the commands, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from csg_edge import __version__
from csg_edge.cli.augment import augment
from csg_edge.cli.bench import bench
from csg_edge.cli.calibrate import calibrate
from csg_edge.cli.data import pack, phantom
from csg_edge.cli.export import build, export, serve_repository
from csg_edge.cli.generate import generate
from csg_edge.cli.inspect import doctor, info, verify
from csg_edge.cli.quality import fit_evaluators, validate
from csg_edge.cli.studio import studio
from csg_edge.cli.train import distill, train, train_autoencoder, tune_int8
from csg_edge.errors import CsgEdgeError


class OneLineErrors(click.Group):
    """A group whose every error is one line on stderr and exit code 2, with no usage text and no traceback."""

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        _open_closed_streams()
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


def _open_closed_streams() -> None:
    """Give what a service has closed to the null device; the next file opened would else take its number.

    A native library that writes to standard output would then write into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _fail(message: str) -> None:
    click.echo(f"csg-edge: {' '.join(message.split())}", err=True)
    sys.exit(2)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="csg-edge")
def main() -> None:
    """Labelled musculoskeletal ultrasound images from a mask and a context image."""


for command in (
    generate, augment, studio, info, doctor, verify, bench, train, train_autoencoder, distill, tune_int8, export,
    calibrate, build, serve_repository, validate, fit_evaluators, pack, phantom,
):  # fmt: skip
    main.add_command(command)

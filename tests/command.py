"""The command line inside the test's own process: no fresh interpreter, no second import of torch."""

from __future__ import annotations

from dataclasses import dataclass

from click.testing import CliRunner

from csg_edge.cli.main import main


@dataclass(frozen=True)
class Done:
    """What `subprocess.run` would say of the same command."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    """Run `csg-edge ARGUMENTS`. An exception that the command line does not turn into a line is raised here."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)

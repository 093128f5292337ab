"""The `csg-edge bench` command."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from csg_edge.cli.options import FOLDER, bundle_argument, json_option, need, parse_steps, print_json

STOPPED = 130


@click.command()
@bundle_argument
@click.option(
    "--target", "targets", multiple=True,
    help="Engine to measure, runtime:device:precision; may be repeated. Every engine of the bundle if not given.",
)  # fmt: skip
@click.option("--steps", default="1", show_default=True, help="Numbers of steps to measure, separated by commas.")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    help="single-stream, multi-stream or offline; may be repeated. All if not given.",
)
@click.option(
    "--mode", default="short", show_default=True,
    help="short (half a minute an engine), full (some four minutes), or a TOML file of scenarios.",
)  # fmt: skip
@click.option(
    "--out", type=FOLDER, default=None, help="Folder to write: bench.html, bench.md, bench.json, raw samples."
)
@click.option(
    "--threads", type=int, default=None, help="Threads of each engine on a CPU; the runtime's choice if not given."
)
@click.option(
    "--quality", type=FOLDER, default=None, help="report.json of `csg-edge validate`, quoted beside the speed."
)
@click.option("--no-cold", is_flag=True, help="Leave out cold starts.")
@click.option("--no-profile", is_flag=True, help="Leave out time per stage and operator.")
@click.option("--no-roofline", is_flag=True, help="Leave out the machine's peaks.")
@click.option(
    "--self-test", is_flag=True, help="Time systems of known latency instead; exits with 1 if they are not recovered."
)
@click.option(
    "--compare",
    nargs=2,
    type=FOLDER,
    default=None,
    help="Two bench.json: ratios of the second to the first, nothing is run.",
)
@click.option(
    "--fail-above", type=float, default=None,
    help="With --compare: exit with 1 if a median grew by more than this ratio and its interval lies above 1.",
)  # fmt: skip
@json_option
def bench(
    bundle: str, targets: tuple[str, ...], steps: str, scenarios: tuple[str, ...], mode: str, out: Path | None,
    threads: int | None, quality: Path | None, no_cold: bool, no_profile: bool, no_roofline: bool, self_test: bool,
    compare: tuple[Path, Path] | None, fail_above: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the latency of a bundle's engines, or compare two measurements.

    MLCommons LoadGen drives each engine in a process of its own. An engine that cannot run here, or that crashes, is a
    row with its reason. Ctrl-C keeps what was measured. Exits with 1 if an engine failed or none could run.
    """
    if compare is not None:
        sys.exit(_compare(*compare, fail_above=fail_above, as_json=as_json))
    if fail_above is not None:
        raise click.UsageError("--fail-above belongs to --compare A.json B.json")
    if out is None:
        raise click.UsageError("give --out FOLDER for the results")
    if threads is not None and threads < 1:
        raise click.UsageError(f"--threads {threads}: give at least 1")
    need("mlperf_loadgen", "psutil", "matplotlib", "jinja2", extra="bench")
    from csg_edge.benchmarks import report

    if self_test:
        from csg_edge.benchmarks import selftest

        record, checks = selftest.self_test(out)
        good = all(check.passed for check in checks)
        lines: list[str] = selftest.check_lines(checks)
        printed: dict[str, Any] = {"passed": good, "checks": [asdict(check) for check in checks]}
    else:
        from csg_edge.benchmarks.scenarios import read_plan
        from csg_edge.benchmarks.session import Settings, measure

        plan = read_plan(mode).only(scenarios)
        settings = Settings(
            bundle, plan, targets=targets, steps=parse_steps(steps), threads=threads, quality=quality,
            cold=not no_cold, profile=not no_profile, roofline=not no_roofline,
        )  # fmt: skip
        record = measure(settings, out)
        statuses = [row["status"] for row in record["engines"]]
        good = "failed" not in statuses and "ok" in statuses
        lines, printed = report.summary_lines(record), record
    report.write_report(record, out)
    if as_json:
        print_json(printed)
    else:
        click.echo("\n".join([*lines, f"report in {out / report.PAGE}"]))
    sys.exit(STOPPED if record["state"] == "partial" else 0 if good else 1)


def _compare(first: Path, second: Path, *, fail_above: float | None, as_json: bool) -> int:
    from csg_edge.benchmarks import compare
    from csg_edge.benchmarks.files import read_record

    records = read_record(first), read_record(second)
    ratios = compare.compare(*records, fail_above=fail_above)
    notes = compare.notes(*records)
    bad = fail_above is not None and compare.failed(ratios)
    if as_json:
        rows = [asdict(ratio) for ratio in ratios]
        print_json({"ratios": rows, "notes": notes, "failed": bad})
    else:
        click.echo("\n".join([*compare.ratio_lines(ratios), *(f"note: {note}" for note in notes)]))
    return int(bad)

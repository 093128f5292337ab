"""Build the shipped bundles from their recipe: phantom, train, distil, export, calibrate, each a `csg-edge` command.

Every stage resumes, so the same call goes on where it was stopped. Run by `make bundle`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the recipe and run its stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real sets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where checkpoints live")
    parser.add_argument("--bundles", type=Path, default=Path("csg_edge/models"), help="where the bundle is written")
    arguments = parser.parse_args()
    recipe = tomllib.loads(arguments.recipe.read_text())
    name = recipe["name"]
    run = arguments.runs / name
    phantom = run / "phantom"
    sets = ["--data", str(arguments.data), "--data", str(phantom)]

    if not phantom.exists():
        call("phantom", "--out", phantom, *flags(recipe["phantom"]))
    call("train", *sets, "--out", run / "teacher", *flags(recipe["train"]))
    kept = ["--trajectories-in", run / "trajectories", *flags(recipe["trajectories"])]
    for student, options in recipe["students"].items():
        out, bundle = run / student, arguments.bundles / student
        card, targets = arguments.recipe.parent / options.pop("card"), options.pop("calibrate", {})
        finish = options.pop("finish", {})
        distill = ["distill", run / "teacher" / "teacher", *sets, *kept]
        call(*distill, "--out", out, *flags(options))
        if finish:
            start, out = out, run / f"{student}-finished"
            call(*distill, "--out", out, "--init", start / "student", *flags(options | finish))
        documents = ["--card", card, "--license", Path(__file__).parents[1] / "LICENSE"]
        call("export", out / "student", "--out", bundle, *documents, "--name", student)
        for target, steps in targets.items():
            chosen = ["--target", target, "--steps", steps]
            report = ["--report", out / f"calibration-{target.split(':')[0]}", "--out", bundle]
            # An engine that does not earn its place is left out, and that is no failure of the recipe.
            call("calibrate", bundle, *sets[:2], "--calibrate-only", phantom, *chosen, *report, accepted=(0, 1))
        call("verify", bundle)


def flags(options: dict[str, Any]) -> list[str]:
    """{"learning_rate": 1e-4} -> ["--learning-rate", "0.0001"]."""
    return [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def call(*arguments: object, accepted: tuple[int, ...] = (0,)) -> None:
    """Run one `csg-edge` command; stop with its exit code unless that is accepted."""
    command = [sys.executable, "-m", "csg_edge", *map(str, arguments)]
    print("$ csg-edge", *arguments, flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode not in accepted:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()

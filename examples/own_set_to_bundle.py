"""From a labelled set of one's own to images, in small: pack, teacher, student, bundle, golden cases, images.

    python examples/own_set_to_bundle.py --data my_set/ --out my_run/ --iterations 3000

Every stage is a `csg-edge` command that goes on where it was stopped; so does this script. With a few iterations it
shows the way and makes noise; images worth looking at take hours on a CPU: docs/training.md, docs/student.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def csg_edge(*arguments: object) -> None:
    """Run one command, shown as it would be typed; stop here if it fails."""
    words = [str(argument) for argument in arguments]
    print("csg-edge", *words, flush=True)
    finished = subprocess.run([sys.executable, "-m", "csg_edge", *words], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="labelled set, see docs/data.md")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--trajectories", type=int, default=2048)
    arguments = parser.parse_args()

    out, packed = arguments.out, arguments.out / "set.safetensors"
    training = ["--iterations", arguments.iterations, "--batch", arguments.batch]
    out.mkdir(parents=True, exist_ok=True)
    if not packed.exists():
        csg_edge("pack", "--data", arguments.data, "--size", arguments.size, "--out", packed)
    csg_edge("train", "--data", packed, "--schema", "own", "--image-size", arguments.size, "--out", out / "teacher",
             "--prior-iterations", min(1500, arguments.iterations), *training)  # fmt: skip
    csg_edge("distill", out / "teacher" / "teacher", "--data", packed, "--out", out / "student", "--guidance", 1.5,
             "--steps", 1, "--trajectories", arguments.trajectories, *training)  # fmt: skip
    if not (out / "bundle").exists():
        csg_edge("export", out / "student" / "student", "--out", out / "bundle")
    csg_edge("verify", out / "bundle")
    if not (out / "images").exists():
        csg_edge("generate", "--bundle", out / "bundle", "--mask", arguments.data / "masks", "--context",
                 arguments.data / "images", "--out", out / "images", "--sheet")  # fmt: skip


if __name__ == "__main__":
    main()

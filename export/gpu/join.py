"""What `run.py` wrote, as folders: python export/gpu/join.py OUT --to runs/gpu gives runs/gpu/teacher and student."""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from pathlib import Path


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder that run.py filled")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    parts = sorted(arguments.out.glob("weights.[0-9][0-9]"))
    numbers = [int(path.suffix[1:]) for path in parts]
    if not parts or numbers != list(range(len(parts))):
        parser.error(f"{arguments.out}: parts {numbers} of the weights; bring back all, from weights.00 on")
    with tempfile.TemporaryFile() as archive:
        for path in parts:
            archive.write(path.read_bytes())
        archive.seek(0)
        with tarfile.open(fileobj=archive) as tar:
            tar.extractall(arguments.to, filter="data")
    print(*(arguments.to / name for name in ("teacher", "student")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

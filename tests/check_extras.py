"""Does pip find packages for every extra? `check_extras.py WHEEL [PYTHON ...]`; nothing is installed.

A Python that is not on this machine is said to be missing; if all are, the one that runs this is asked.

tensorrt is left out: its packages are sources that fetch NVIDIA's libraries from NVIDIA's own index while pip reads
them, which a machine without that index cannot do.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

LEFT_OUT = ("tensorrt",)


def resolves(wheel: Path, extra: str, python: str) -> str:
    """What pip says last if it cannot resolve an extra, else nothing."""
    command = [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--disable-pip-version-check"]
    run = subprocess.run([*command, "--quiet", f"{wheel}[{extra}]"], capture_output=True, text=True)
    return "" if run.returncode == 0 else (run.stderr.strip().splitlines() or ["no reason given"])[-1]


def version_of(python: str) -> str:
    """`Python 3.13.0`, or nothing if it does not run."""
    try:
        return subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def main(wheel: Path, pythons: list[str]) -> None:
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    present = [python for python in pythons if version_of(python)]
    for python in set(pythons) - set(present):
        print(f"{python}: not on this machine", flush=True)
    failed = 0
    for python in present or [sys.executable]:
        version = version_of(python)
        for extra in extras:
            reason = "" if extra in LEFT_OUT else resolves(wheel, extra, python)
            failed += bool(reason)
            print(f"{version}, {extra}: {'left out' if extra in LEFT_OUT else reason or 'resolves'}", flush=True)
    sys.exit(f"{failed} do not resolve" if failed else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or [sys.executable])

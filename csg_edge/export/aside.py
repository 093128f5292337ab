"""Where a bundle may be written."""

from __future__ import annotations

from pathlib import Path

from csg_edge.errors import InputError


def check_replaceable(out: Path) -> None:
    """Raise InputError if `out` is something other than a bundle, an empty folder or nothing yet."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file, not a folder; choose another folder")
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise InputError(f"--out {out}: not empty and not a bundle; choose another folder")

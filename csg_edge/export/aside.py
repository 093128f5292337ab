"""A folder is written aside and then takes the place of the old one: it is whole, or it is as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csg_edge.errors import InputError


@contextmanager
def replaced_whole(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out` to fill; when the block ends without an error it becomes `out`.

    Raises InputError if the disk refuses anything; `out` is untouched then and nothing is left beside it.
    """
    out = out.resolve()
    aside = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        aside.mkdir(parents=True)
        yield aside
        _swap(aside, out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot write ({error.strerror or error}); free space, mend the permissions or choose another "
            "folder; nothing was changed"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_replaceable(out: Path) -> None:
    """Raise InputError if `out` is something other than a bundle, an empty folder or nothing yet."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file, not a folder; choose another folder")
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").is_file():
        raise InputError(f"--out {out}: not empty and not a bundle; choose another folder")


def _swap(aside: Path, out: Path) -> None:
    if not out.exists():
        os.replace(aside, out)
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    os.replace(out, old)
    try:
        os.replace(aside, out)
    except OSError:
        os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)

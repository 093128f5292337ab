"""Files and folders that are whole or not there: written aside, then renamed. Needs the standard library alone."""

from __future__ import annotations

import errno
import glob
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from csg_edge.errors import InputError

ABANDONED = 24 * 3600.0
"""Seconds after which what lies aside is taken for the rest of a process that was killed."""


@contextmanager
def written_whole(path: Path, *, tidy: bool = True) -> Iterator[Path]:
    """Give a path beside `path` to write a file to; when the block ends without an error, the file becomes `path`.

    Whatever fails, `path` is as it was and nothing is left beside it. tidy: whether what killed processes left of this
    file is looked for first, which takes the longer the more files there are. Raises OSError if the disk refuses.
    """
    aside = _aside(path) if tidy else _beside(path, "partial")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        with suppress(OSError):  # there is none after the renaming
            aside.unlink()


LARGEST_TEXT = 64 << 20
"""Bytes: a table or description that is larger is refused unread."""


def read_text(path: Path) -> str:
    """Read a small text file, UTF-8 with or without a byte-order mark, whose line ends become line feeds.

    Raises OSError also for what is no file, such as a pipe, which would be waited for without end, or larger than
    LARGEST_TEXT; UnicodeDecodeError for other bytes.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    if found.st_size > LARGEST_TEXT:
        raise OSError(errno.EFBIG, f"{found.st_size} bytes", str(path))
    return path.read_text(encoding="utf-8-sig")


def write_whole(path: Path, content: str | bytes, *, tidy: bool = True) -> None:
    """Write a file, text as UTF-8; otherwise as `written_whole`."""
    with written_whole(path, tidy=tidy) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, values: Any, *, indent: int | None = 2) -> None:
    """Write JSON with a line feed at its end; otherwise as `written_whole`. Raises ValueError for NaN and infinity."""
    write_whole(path, json.dumps(values, indent=indent, allow_nan=False) + "\n")


@contextmanager
def folder_replaced(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends without an error it takes the place of `folder`.

    Whatever fails, `folder` is as it was and nothing is left beside it. A process killed between the two renamings
    leaves the old one beside it, whole, as `.NAME.old-*`. Raises InputError if the disk refuses anything.
    """
    folder = folder.resolve()
    aside = _aside(folder)
    try:
        aside.mkdir(parents=True)
        yield aside
        _swap(aside, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot write ({error.strerror or error}); free disk space, mend the permissions or choose "
            "another folder; nothing was changed"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _swap(aside: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(aside, folder)
        return
    old = _aside(folder, word="old")
    os.replace(folder, old)
    try:
        os.replace(aside, folder)
    except OSError:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(path: Path, *, word: str = "partial") -> Path:
    """A name of its own beside `path`. Others whose process is gone, or that were abandoned long ago, are removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with suppress(OSError):
            if _owner_is_gone(left.name) or time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return _beside(path, word)


def _beside(path: Path, word: str) -> Path:
    """A name beside `path` that no other process or call takes."""
    return path.with_name(f".{path.name}.{word}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _owner_is_gone(name: str) -> bool:
    """Whether what lies aside under a name was left by a process of this machine that runs no more."""
    found = re.search(r"\.partial-(\w+)-(\d+)-[0-9a-f]+$", name)
    if found is None or found[1] != _host() or os.name != "posix":
        return False
    try:
        os.kill(int(found[2]), 0)  # asks, and sends nothing
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _host() -> str:
    return re.sub(r"\W", "_", platform.node()) or "host"

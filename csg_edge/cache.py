"""Compiled blobs and verdicts in the user's cache folder, so that the second start is quick.

An entry is one file: the payload, then its SHA-256. It is written aside and renamed, so that a reader sees a whole
entry or none whatever process is killed when; an entry whose digest does not match counts as absent and is written
anew. The folder is bounded: the entries used longest ago go first. Nothing here is needed for a result: a cache that
cannot be read or written is a cache miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = "CSG_EDGE_CACHE"
LIMIT = 512 * 2**20  # bytes; some fifteen engines of the shipped size
SUFFIX, ASIDE = ".blob", ".partial"
STALE = 3600.0  # seconds; what a killed process left aside is removed after that
DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """The folder for this user and system, `CSG_EDGE_CACHE` if that is set. It need not exist."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "csg-edge"


def key_of(**parts: Any) -> str:
    """A key from JSON-ready parts: another value of any part is another key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class BlobCache:
    """Entries by key, shared between processes and threads."""

    def __init__(self, folder: Path | None = None, *, limit: int = LIMIT) -> None:
        """folder: where; the user's cache folder if not given. limit: bytes that all entries together may take."""
        self.folder = cache_folder() if folder is None else folder
        self.limit = limit

    def load(self, key: str) -> memoryview | None:
        """The payload, mapped copy-on-write from its file (changes stay in this process), or None.

        The mapping lives as long as the view.
        """
        path = self._path(key)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size <= DIGEST:
                    return None
                view = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))
            os.utime(path)  # for the order of removal
        except OSError:
            return None
        payload = view[: size - DIGEST]
        return payload if hashlib.sha256(payload).digest() == view[size - DIGEST :] else None

    def store(self, key: str, payload: bytes | memoryview) -> None:
        """Keep the payload. A folder that cannot be written is no error; nor is a payload above the limit."""
        size = len(payload) + DIGEST
        if size > self.limit:
            return
        path = self._path(key)
        aside = path.with_name(f"{key}.{os.getpid()}-{secrets.token_hex(4)}{ASIDE}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(size)
            with aside.open("xb") as file:
                file.write(payload)
                file.write(hashlib.sha256(payload).digest())
            os.replace(aside, path)
        except OSError:
            _remove(aside)

    def discard(self, key: str) -> None:
        """Drop an entry, if there is one."""
        _remove(self._path(key))

    def load_note(self, key: str) -> dict[str, Any] | None:
        """A small JSON object kept by `store_note`, or None."""
        payload = self.load(key)
        values = None if payload is None else json.loads(bytes(payload))
        return values if isinstance(values, dict) else None

    def store_note(self, key: str, values: dict[str, Any]) -> None:
        """Keep a small JSON object."""
        self.store(key, json.dumps(values).encode())

    def size(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""
        entries = self._entries()
        return len(entries), sum(size for _, size, _ in entries)

    def clear(self) -> None:
        """Remove every entry."""
        for _, _, path in self._entries():
            _remove(path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each entry, the one used longest ago first."""
        found = []
        with contextlib.suppress(OSError):
            for item in os.scandir(self.folder):
                with contextlib.suppress(OSError):  # another process removed it meanwhile
                    status = item.stat()
                    if item.name.endswith(SUFFIX):
                        found.append((status.st_mtime, status.st_size, Path(item.path)))
                    elif item.name.endswith(ASIDE) and time.time() - status.st_mtime > STALE:
                        _remove(Path(item.path))
        return sorted(found)

    def _make_room(self, size: int) -> None:
        entries = self._entries()
        total = size + sum(item for _, item, _ in entries)
        for _, item, path in entries:
            if total <= self.limit:
                break
            _remove(path)
            total -= item


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone already, or held open by another process (Windows)
        path.unlink()

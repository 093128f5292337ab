"""Ten seconds of mutated files for every reader; `make fuzz` does more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from readers import readers

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", readers())
def test_mutated_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [sys.executable, FUZZ, "--reader", name, "--seconds", "10", "--json", found, "--keep", tmp_path / "kept"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(found.read_text())["readers"][name]
    assert counts["read"] > 0 and counts["refused"] > 0, counts


def test_the_harness_sees_what_it_is_for(tmp_path: Path) -> None:
    """A reader that raises, hangs, eats memory or crashes is told from one that refuses."""
    code = (
        "from dataclasses import dataclass\n"
        "import ctypes, time\n"
        "@dataclass\nclass Reader:\n    suffix: str\n    seeds: list\n    read: object\n"
        "def read_as(kind):\n"
        "    def read(path):\n"
        "        if path.read_bytes() == b'0123456789':\n            return\n"
        "        if kind == 'a':\n            raise ValueError('x')\n"
        "        if kind == 'b':\n            time.sleep(60)\n"
        "        if kind == 'c':\n            bytearray(3 << 30)\n"
        "        if kind == 'd':\n            ctypes.string_at(0)\n"
        "    return read\n"
        "def readers():\n    return {kind: Reader('.x', [b'0123456789'], read_as(kind)) for kind in 'abcd'}\n"
    )
    for name in ("fuzz.py", "mutate.py"):
        (tmp_path / name).write_bytes((FUZZ.parent / name).read_bytes())
    (tmp_path / "readers.py").write_text(code)
    seen = {"a": "ValueError", "b": "TimeoutError", "c": "MemoryError", "d": "crash"}
    for kind, said in seen.items():
        command = [sys.executable, tmp_path / "fuzz.py", "--reader", kind, "--inputs", "2", "--keep", tmp_path / "kept"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert (done.returncode, said in done.stdout) == (1, True), (kind, done.stdout, done.stderr)
        assert list((tmp_path / "kept").glob(f"{kind}-*"))

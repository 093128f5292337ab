"""Files and folders that are whole or not there, whatever stops the writing."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csg_edge.errors import InputError
from csg_edge.storage import ABANDONED, folder_replaced, write_json, write_whole, written_whole

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from csg_edge.storage import folder_replaced, write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
out = Path(sys.argv[1])
try:
    write_whole(out / "file", bytes(5000))
except OSError as error:
    print(error.strerror)
with folder_replaced(out / "folder") as aside:
    (aside / "a").write_bytes(bytes(5000))
"""


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_file_is_replaced_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old ä")
    assert path.read_bytes() == "old ä".encode()
    with written_whole(path) as aside:
        aside.write_text("new")
        assert path.read_text(encoding="utf-8") == "old ä"
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError), written_whole(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "new"
    assert listing(tmp_path) == {"file"}


def test_json_ends_in_a_line_feed_and_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": [1, 2]}, indent=None)
    assert path.read_text() == '{"a": [1, 2]}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, 2]}


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with written_whole(tmp_path / "file") as first, written_whole(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"  # the last to end
    assert listing(tmp_path) == {"file"}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    for names in (("a", "b"), ("b", "c")):
        with folder_replaced(folder) as aside:
            for name in names:
                (aside / name).write_text(name)
    assert listing(tmp_path / "deep") == {"folder", "folder/b", "folder/c"}
    with pytest.raises(RuntimeError), folder_replaced(folder) as aside:
        (aside / "d").write_text("half")
        raise RuntimeError
    assert listing(tmp_path / "deep") == {"folder", "folder/b", "folder/c"}


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    with folder_replaced(folder) as aside:
        (aside / "old").write_text("old")
    real = os.replace

    def failing(source: Path, target: Path) -> None:
        if ".partial-" in source.name:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError, match=r"folder: cannot write .*nothing was changed"), folder_replaced(folder):
        pass
    assert listing(tmp_path) == {"folder", "folder/old"}


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder" / "a").write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "File too large\n"
    assert "InputError" in done.stderr and "free disk space" in done.stderr
    assert listing(tmp_path) == {"folder", "folder/a", "file"}
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "old"


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    abandoned, fresh, another = (
        tmp_path / name for name in (".file.partial-1-a", ".file.partial-2-b", ".other.partial-1-a")
    )
    for path in (abandoned, fresh, another):
        path.write_text("half")
    (tmp_path / ".folder.partial-1-a" / "sub").mkdir(parents=True)
    for path in (abandoned, another, tmp_path / ".folder.partial-1-a"):
        then = time.time() - ABANDONED - 60.0
        os.utime(path, (then, then))
    write_whole(tmp_path / "file", b"new")
    with folder_replaced(tmp_path / "folder"):
        pass
    assert listing(tmp_path) == {"file", "folder", fresh.name, another.name}


def test_what_a_killed_process_left_is_removed_at_once_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = re.sub(r"\W", "_", platform.node())
    left = tmp_path / f".folder.partial-{host}-{dead.pid}-0a1b"
    (left / "sub").mkdir(parents=True)
    living = tmp_path / f".folder.partial-{host}-{os.getpid()}-0a1b"
    elsewhere = tmp_path / f".folder.partial-other_{host}-{dead.pid}-0a1b"
    for path in (living, elsewhere):
        path.mkdir()
    with folder_replaced(tmp_path / "folder") as aside:
        (aside / "file").write_text("new")
    assert not left.exists() and living.exists() and elsewhere.exists()

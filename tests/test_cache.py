"""The cache of compiled engines: safe among processes, whatever is killed or damaged; bounded; never needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import csg_edge
from csg_edge.cache import SUFFIX, BlobCache, cache_folder, key_of
from csg_edge.runtimes.ov import OpenVinoRuntime

MASK = np.zeros((256, 256), np.uint8)


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "new" / "folder")
    assert cache.load("key") is None
    cache.store("key", b"payload")
    assert cache.load("key") == b"payload"
    cache.store("key", b"another")
    assert cache.load("key") == b"another"
    cache.store_note("note", {"failure": ""})
    assert cache.load_note("note") == {"failure": ""}
    assert cache.size()[0] == 2
    cache.discard("key")
    cache.discard("key")
    assert cache.load("key") is None
    cache.clear()
    assert cache.size() == (0, 0)


def test_a_loaded_blob_may_be_written_to_without_changing_the_file(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    cache.store("key", b"payload")
    view = cache.load("key")
    assert view is not None
    view[0] = 0
    assert cache.load("key") == b"payload"


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "grown"])
def test_a_damaged_entry_counts_as_absent_and_is_replaced(tmp_path: Path, damage: str) -> None:
    cache = BlobCache(tmp_path)
    cache.store("key", bytes(1000))
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    changed = {"cut": data[:-1], "flipped": b"\1" + data[1:], "emptied": b"", "grown": data + b"\0"}[damage]
    path.write_bytes(changed)
    assert cache.load("key") is None
    cache.store("key", bytes(1000))
    assert cache.load("key") == bytes(1000)


def test_the_entries_used_longest_ago_make_room(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, limit=4000)
    for age, key in enumerate(("newest", "newer", "old", "oldest")):
        cache.store(key, bytes(900))
        os.utime(tmp_path / f"{key}{SUFFIX}", (time.time() - 100 * (age + 1),) * 2)
    assert cache.load("oldest") is not None  # used just now
    cache.store("another", bytes(900))
    assert {path.name.removesuffix(SUFFIX) for path in tmp_path.iterdir()} == {"newest", "newer", "oldest", "another"}
    assert cache.size()[1] <= 4000
    cache.store("too large", bytes(5000))
    assert cache.load("too large") is None
    assert cache.size()[0] == 4


def test_what_a_killed_process_left_aside_is_removed_after_a_while(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    for name, age in (("old.partial", 7200), ("new.partial", 10)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    cache.store("key", b"payload")
    assert {path.name for path in tmp_path.iterdir()} == {"new.partial", f"key{SUFFIX}"}


def test_a_folder_that_cannot_be_used_is_a_miss_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    cache = BlobCache(tmp_path / "file")
    cache.store("key", b"payload")
    assert cache.load("key") is None
    assert cache.size() == (0, 0)
    with csg_edge.load(runtime="openvino", precision="fp32", cache=tmp_path / "file") as generator:
        assert generator.generate_one(MASK, MASK, 0).shape == (256, 256)


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CSG_EDGE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("CSG_EDGE_CACHE")
    monkeypatch.setattr(Path, "home", lambda: Path("home"))
    for platform, variable in (("linux", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA")):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv(variable, str(tmp_path))
        assert cache_folder() == tmp_path / "csg-edge"
        monkeypatch.delenv(variable)
        assert cache_folder().parts[0] == "home"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path("home/Library/Caches/csg-edge")


def test_every_part_of_a_key_counts() -> None:
    keys = [key_of(engine="a", runtime="1"), key_of(engine="b", runtime="1"), key_of(engine="a", runtime="2")]
    assert len({*keys, key_of(engine="a", runtime="1", threads=1)}) == 4
    assert key_of(runtime="1", engine="a") == keys[0]


class TestOpenVinoBlobs:
    def image(self, cache: Any, **options: Any) -> Any:
        options = {"runtime": "openvino", "precision": "fp32", **options}
        with csg_edge.load(cache=cache, proven=False, **options) as generator:  # no verdict beside the blob
            return generator.generate_one(MASK, MASK, 0)

    def test_off_on_request(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CSG_EDGE_CACHE", str(tmp_path))
        self.image(False)
        assert list(tmp_path.iterdir()) == []
        self.image(True)
        assert len(list(tmp_path.iterdir())) == 1

    def test_threads_precision_and_version_have_their_own_blobs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.image(tmp_path)
        self.image(tmp_path, threads=1)
        self.image(tmp_path, steps=2)
        monkeypatch.setattr(OpenVinoRuntime, "version", classmethod(lambda cls: "another"))
        self.image(tmp_path)
        assert len(list(tmp_path.iterdir())) == 4

    def test_a_damaged_blob_and_one_of_another_openvino_are_made_anew(self, tmp_path: Path) -> None:
        expected = self.image(tmp_path)
        (path,) = tmp_path.iterdir()
        whole = path.read_bytes()
        path.write_bytes(whole[:-40000] + bytes(40000))
        np.testing.assert_array_equal(self.image(tmp_path), expected)
        assert path.read_bytes()[-32:] != bytes(32)
        BlobCache(tmp_path).store(path.name.removesuffix(SUFFIX), b"whole, but no model")
        np.testing.assert_array_equal(self.image(tmp_path), expected)
        assert path.stat().st_size > 1000000


WRITER = """
import sys, csg_edge.cache as c
cache = c.BlobCache(__import__("pathlib").Path(sys.argv[1]), limit=40_000_000)
print("ready", flush=True)
while True:
    for name in ("a", "b", "c"):
        cache.store(name, name.encode() * 10_000_000)
        found = cache.load(name)
        assert found is None or found == name.encode() * 10_000_000
"""


def test_killing_writers_leaves_only_whole_entries(tmp_path: Path) -> None:
    """Two processes write the same entries and one is killed again and again at any moment."""
    start = [sys.executable, "-c", WRITER, str(tmp_path)]
    survivor = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for turn in range(6):
            victim = subprocess.Popen(start, stdout=subprocess.PIPE)
            assert victim.stdout is not None
            victim.stdout.readline()
            time.sleep(0.02 + 0.03 * turn)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            for name in ("a", "b", "c"):
                found = BlobCache(tmp_path).load(name)
                assert found is None or found == name.encode() * 10_000_000
        assert survivor.poll() is None, survivor.stderr and survivor.stderr.read()
    finally:
        survivor.kill()
        survivor.wait()


GENERATE = """
import sys, hashlib, numpy as np, csg_edge
blank = np.zeros((256, 256), np.uint8)
print("ready", flush=True)
with csg_edge.load(runtime="openvino", precision="fp32", cache=sys.argv[1]) as generator:
    print(hashlib.sha256(generator.generate_one(blank, blank, 0)).hexdigest())
"""


def test_killing_one_process_never_breaks_another(tmp_path: Path) -> None:
    """Processes that fill the same empty cache, two of them killed on the way: the others' images are right."""
    processes = [
        subprocess.Popen([sys.executable, "-c", GENERATE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process, wait in zip(processes[:2], (0.3, 0.5), strict=True):
        time.sleep(wait)
        process.kill()
    digests = [process.communicate(timeout=120)[0].strip() for process in processes]
    later = subprocess.run(
        [sys.executable, "-c", GENERATE, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    assert set(digests[2:]) == {later}

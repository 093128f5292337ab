"""What a process is granted: affinity, and the processor quota of its control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csg_edge import machine

CPU_GROUPS = Path("/sys/fs/cgroup/cpu")  # cgroup v1


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups of our own making."""
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "self")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "allowed_processors", lambda: 4)
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class TestQuota:
    def test_version_2_parents_count(self, tree: Path) -> None:
        put(tree / "self", "0::/user/job\n")
        put(tree / "groups/user/job/cpu.max", "max 100000\n")
        assert machine.processor_quota() is None and machine.default_threads() is None
        put(tree / "groups/user/cpu.max", "150000 100000\n")
        assert machine.processor_quota() == 1.5 and machine.default_threads() == 2
        put(tree / "groups/user/job/cpu.max", "50000 100000\n")
        assert machine.processor_quota() == 0.5 and machine.default_threads() == 1

    def test_version_2_in_a_container_that_sees_its_own_group_as_the_root(self, tree: Path) -> None:
        put(tree / "self", "0::/docker/0123\n")
        put(tree / "groups/cpu.max", "100000 100000\n")
        assert machine.default_threads() == 1

    def test_version_1(self, tree: Path) -> None:
        put(tree / "self", "5:memory:/m\n4:cpu,cpuacct:/job\n0::/\n")
        put(tree / "groups/cpu,cpuacct/job/cpu.cfs_quota_us", "300000\n")
        put(tree / "groups/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
        assert machine.processor_quota() == 3 and machine.default_threads() == 3
        put(tree / "groups/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n")
        assert machine.processor_quota() is None

    def test_more_than_affinity_is_no_limit(self, tree: Path) -> None:
        put(tree / "self", "0::/\n")
        put(tree / "groups/cpu.max", "800000 100000\n")
        assert machine.processor_quota() == 8 and machine.default_threads() is None

    @pytest.mark.parametrize("text", ["", "nonsense", "1", "a b", "100 0"])
    def test_what_cannot_be_read_is_no_limit(self, text: str, tree: Path) -> None:
        put(tree / "self", "0::/\n")
        put(tree / "groups/cpu.max", text)
        assert machine.processor_quota() is None

    def test_no_control_groups(self, tree: Path) -> None:
        assert machine.processor_quota() is None


@pytest.fixture
def group() -> Iterator[Path]:
    """A real control group; where it may not be made the test is skipped."""
    folder = CPU_GROUPS / f"csg-edge-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here ({error.strerror}); it needs root and cgroup v1")
    yield folder
    folder.rmdir()


@pytest.mark.parametrize(("quota", "threads"), [(0.5, "1"), (1.0, "1"), (1.5, "2")])
def test_a_real_quota_is_seen(quota: float, threads: str, group: Path) -> None:
    (group / "cpu.cfs_quota_us").write_text(str(int(quota * 100_000)))
    code = (
        "import os, pathlib, sys; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()));"
        "from csg_edge import machine; machine.allowed_processors = lambda: 4; print(machine.default_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(group)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == threads

"""What a cache or a report needs to know of this machine."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def processor_name() -> str:
    """The processor as the system names it."""
    return _cpuinfo().get("model name") or platform.processor() or "unknown"


def allowed_processors() -> int:
    """How many processors this process may run on, by its affinity."""
    with suppress(AttributeError, OSError):  # not every system has affinities
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_quota() -> float | None:
    """How many processors' time the control groups of this process grant it; None for no limit.

    Read as the kernel documents it: `cpu.max` (cgroup v2), `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1). A group's
    parents count, too. In a container the group's path is often not visible; then the root of the tree is the group's.
    """
    found = []
    for folder in _own_groups():
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(math.inf if quota == "max" else int(quota) / int(period))
        with suppress(OSError, ValueError, ZeroDivisionError):
            granted = int((folder / "cpu.cfs_quota_us").read_text())
            found.append(math.inf if granted < 0 else granted / int((folder / "cpu.cfs_period_us").read_text()))
    least = min(found, default=math.inf)
    return None if math.isinf(least) else least


def default_threads() -> int | None:
    """Threads for an engine where nobody says how many; None: as the runtime has it, which looks at affinity.

    Neither OpenVINO nor ONNX Runtime looks at quotas: with half a processor granted, two threads use it up in the first
    half of each period and wait for the next.
    """
    quota = processor_quota()
    if quota is None or quota >= allowed_processors():
        return None
    return max(1, math.ceil(quota))


def _own_groups() -> Iterator[Path]:
    """Folders of the control groups of this process that may hold a limit of processor time, and of their parents."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            roots = [GROUPS, GROUPS / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [GROUPS / name for name in (controllers, "cpu")]
        else:
            continue
        for root in roots:
            folder = root / path.lstrip("/")
            yield from (part for part in (folder, *folder.parents) if part.is_relative_to(root))


@lru_cache(maxsize=1)
def processor() -> str:
    """Name and instruction sets of the processor: what compiled code and its results may depend on."""
    flags = " ".join(sorted(_cpuinfo().get("flags", "").split()))
    return f"{platform.machine()} {processor_name()} {hashlib.sha256(flags.encode()).hexdigest()[:16]}"


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    """The lines of the first processor; empty where the system has no such file."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}

"""What a cache or a report needs to know of this machine."""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """The processor as the system names it."""
    return _cpuinfo().get("model name") or platform.processor() or "unknown"


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

"""The machine while it is measured: processor, clocks, heat, load, energy counters. What cannot be read is None."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from csg_edge import __version__
from csg_edge.benchmarks.roofline import available_cores
from csg_edge.machine import processor_name

ROOT = Path("/")
# Instruction sets that decide which number formats are fast.
FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
    "hypervisor",
)  # fmt: skip
PACKAGES = ("numpy", "openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "torch", "mlcommons-loadgen")
BUSY = 0.1  # share of the processor, taken by others, above which a machine is not quiet
STOLEN = 0.02  # the same of what a hypervisor gave to other guests meanwhile
POWERCAP = "sys/class/powercap"


def describe_machine(root: Path = ROOT) -> dict[str, Any]:
    """What stays the same during a run. root: where /proc and /sys are."""
    return {
        "csg_edge": __version__,
        "processor": processor_name(),
        "flags": cpu_flags(root),
        "cores": os.cpu_count(),
        "cores_available": available_cores(),
        "governor": _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_gb": memory_gb(root),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "environment": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
            if name in os.environ
        },
        "gpus": [gpu["name"] for gpu in gpus()],
    }  # fmt: skip


def snapshot(root: Path = ROOT) -> dict[str, Any]:
    """What may change: clock in MHz, temperatures in degrees Celsius, seconds of all cores in sum; per GPU too.

    `stolen_seconds`: of these, what a hypervisor gave to other guests; None where the system does not say.
    """
    times = psutil.cpu_times()
    return {
        "mhz": clock_mhz(root),
        "celsius": temperatures(root),
        "core_seconds": sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0),
        "stolen_seconds": getattr(times, "steal", None),
        "gpus": gpus(),
    }


def busy_share(seconds: float = 1.0) -> float:
    """Share of all cores, 0..1, that other processes and guests take while this one waits.

    Not the load average, which remembers for minutes what a benchmark itself has just done.
    """
    return 0.01 * float(psutil.cpu_percent(interval=seconds))


def stolen_share(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Share of all cores, 0..1, that a hypervisor gave to other guests between two snapshots; None: not known."""
    if before["stolen_seconds"] is None or after["core_seconds"] <= before["core_seconds"]:
        return None
    passed: float = after["core_seconds"] - before["core_seconds"]
    return float(after["stolen_seconds"] - before["stolen_seconds"]) / passed


def busy_warning(share: float) -> str | None:
    """One line if other work was running before the benchmark began."""
    if share <= BUSY:
        return None
    return (
        f"the machine was busy before the benchmark began ({100 * share:.0f} % of its processor): "
        "times are too long and scattered; quote none of them"
    )


def stolen_warning(share: float | None) -> str | None:
    """One line if other guests of the host took processor time meanwhile."""
    if share is None or share <= STOLEN:
        return None
    return f"the hypervisor gave {100 * share:.0f} % of the processor to other guests meanwhile; quote ratios only"


class Watch:
    """The machine from when this is made, a second after which other work is known, to `end`."""

    def __init__(self) -> None:
        self.busy = busy_share()
        self.before = snapshot()
        self.after: dict[str, Any] | None = None

    def end(self) -> None:
        """Stop watching."""
        self.after = snapshot()

    @property
    def stolen(self) -> float | None:
        """As `stolen_share`; None before the end."""
        return None if self.after is None else stolen_share(self.before, self.after)

    @property
    def warnings(self) -> list[str]:
        """What is known by now."""
        return [line for line in (busy_warning(self.busy), stolen_warning(self.stolen)) if line is not None]


def cpu_flags(root: Path = ROOT) -> list[str]:
    """Those of FLAGS that the processor has."""
    text = _read(root / "proc/cpuinfo") or ""
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    found = set(line.partition(":")[2].split())
    return [flag for flag in FLAGS if flag in found]


def clock_mhz(root: Path = ROOT) -> list[float] | None:
    """The present clock of each core, None where neither cpufreq nor /proc/cpuinfo tells."""
    paths = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    clocks = [1e-3 * float(text) for path in paths if (text := _read(path)) is not None]
    if not clocks:
        lines = (_read(root / "proc/cpuinfo") or "").splitlines()
        clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return clocks or None


def temperatures(root: Path = ROOT) -> dict[str, float]:
    """Sensor -> degrees Celsius, from thermal zones and hardware monitors; empty in most virtual machines."""
    found = {}
    for path in sorted(root.glob("sys/class/thermal/thermal_zone*/temp")):
        if (text := _read(path)) is not None:
            found[f"{path.parent.name} {_read(path.parent / 'type') or 'unnamed'}"] = 1e-3 * float(text)
    for path in sorted(root.glob("sys/class/hwmon/hwmon*/temp*_input")):
        if (text := _read(path)) is not None:
            label = _read(path.with_name(path.name.replace("_input", "_label"))) or path.stem
            found[f"{_read(path.parent / 'name') or path.parent.name} {label}"] = 1e-3 * float(text)
    return found


def memory_gb(root: Path = ROOT) -> float | None:
    """Main memory in GB (10^9 bytes)."""
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return 1.024e-6 * float(line.split()[1])
    return None


def energy_meter(root: Path = ROOT) -> Callable[[], dict[str, float] | None]:
    """Start counting; what is returned gives the joules since then by counter, None if there is no counter.

    RAPL counts whole processor packages and models rather than measures, and NVML whole boards: everything else that
    ran meanwhile is in it. Label these figures *estimated*.
    """
    zones = [path for path in sorted(root.glob(f"{POWERCAP}/*:*")) if path.name.count(":") == 1]
    before = {path: found for path in zones if (found := _energy_uj(path)) is not None}
    boards = {gpu["name"]: gpu["millijoules"] for gpu in gpus() if gpu["millijoules"] is not None}

    def joules() -> dict[str, float] | None:
        used = {}
        for path, start in before.items():
            now, most = _energy_uj(path), _read(path / "max_energy_range_uj")
            if now is not None:
                wrapped = float(most) if now < start and most else 0.0
                used[f"{_read(path / 'name') or path.name} ({path.name})"] = 1e-6 * (now - start + wrapped)
        for gpu in gpus():
            if gpu["name"] in boards:
                used[gpu["name"]] = 1e-3 * (gpu["millijoules"] - boards[gpu["name"]])
        return used or None

    return joules


def gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs: name, clock in MHz, degrees Celsius, energy counter in mJ; none without pynvml and a driver."""
    try:
        import pynvml
    except ImportError:
        return []
    found: list[dict[str, Any]] = []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            row: dict[str, Any] = {"name": f"GPU {index} {pynvml.nvmlDeviceGetName(handle)}"}
            for key, read in (
                ("mhz", lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM)),
                ("celsius", lambda h: pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU)),
                ("millijoules", pynvml.nvmlDeviceGetTotalEnergyConsumption),
            ):
                row[key] = None
                with suppress(pynvml.NVMLError):  # older boards lack some of these
                    row[key] = read(handle)
            found.append(row)
    finally:
        pynvml.nvmlShutdown()
    return found


def _energy_uj(zone: Path) -> float | None:
    text = _read(zone / "energy_uj")  # root's alone on many systems
    return None if text is None else float(text)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

"""What is read from the machine, and what of its peak an engine reaches."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csg_edge.benchmarks import roofline
from csg_edge.benchmarks.environment import (
    busy_share,
    busy_warning,
    clock_mhz,
    cpu_flags,
    energy_meter,
    memory_gb,
    stolen_share,
    stolen_warning,
    temperatures,
)
from csg_edge.benchmarks.roofline import achieved, measure_bandwidth

CPUINFO = (
    "processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni amx_tile\ncpu MHz : 2500.5\n\nprocessor : 1\ncpu MHz : 2600\n"
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_clocks_heat_and_memory_are_read_where_there_are_files(tmp_path: Path) -> None:
    assert (clock_mhz(tmp_path), temperatures(tmp_path), memory_gb(tmp_path), cpu_flags(tmp_path)) == (
        None,
        {},
        None,
        [],
    )
    write(tmp_path / "proc/cpuinfo", CPUINFO)
    write(tmp_path / "proc/meminfo", "MemTotal:       16000000 kB\n")
    assert cpu_flags(tmp_path) == ["avx2", "avx512_vnni", "amx_tile"]
    assert clock_mhz(tmp_path) == [2500.5, 2600.0]
    assert memory_gb(tmp_path) == pytest.approx(16.384)
    write(tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "3100000\n")
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", "47000\n")
    write(tmp_path / "sys/class/thermal/thermal_zone0/type", "x86_pkg_temp\n")
    assert clock_mhz(tmp_path) == [3100.0]
    assert temperatures(tmp_path) == {"thermal_zone0 x86_pkg_temp": 47.0}


def test_energy_counters_may_wrap(tmp_path: Path) -> None:
    assert energy_meter(tmp_path)() is None
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    write(zone / "name", "package-0")
    write(zone / "max_energy_range_uj", "10000000")
    write(zone / "energy_uj", "9000000")
    write(zone.with_name("intel-rapl:0:0") / "energy_uj", "5")  # a part of the package: not counted again
    meter = energy_meter(tmp_path)
    write(zone / "energy_uj", "1500000")
    assert meter() == {"package-0 (intel-rapl:0)": pytest.approx(2.5)}


def test_a_busy_machine_is_said() -> None:
    assert busy_warning(0.05) is None
    assert "30 % of its processor" in (busy_warning(0.3) or "")


def test_other_work_is_seen() -> None:
    def spin(seconds: float) -> subprocess.Popen[bytes]:
        code = f"import time; end = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"
        return subprocess.Popen([sys.executable, "-c", code])

    workers = [spin(30.0) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.5)  # they start
        assert busy_share() > 0.5
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_stolen_time_is_a_share_of_all_cores() -> None:
    before, after = ({"core_seconds": 10.0 * k, "stolen_seconds": 1.0 * k} for k in (1, 2))
    assert stolen_share(before, after) == pytest.approx(0.1)
    assert "10 % of the processor" in (stolen_warning(0.1) or "")
    assert stolen_warning(0.01) is None
    assert stolen_warning(None) is None
    assert stolen_share({**before, "stolen_seconds": None}, after) is None  # Windows, macOS
    assert stolen_share(before, before) is None


def test_bandwidth_is_that_of_some_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "STREAM_BYTES", 2**22)
    assert 0.01 < measure_bandwidth(2) < 5000


def test_roofline_of_known_work() -> None:
    peaks = {"gflops": {"fp32": 100.0, "int8": 400.0}, "bandwidth_gb_s": 10.0}
    compute = {"macs": 5e8, "parameters": 1e6, "activation_bytes": 1e6}  # 1 GFLOP: 10 ms at peak; 6 MB: 0.6 ms
    memory = {"macs": 5e6, "parameters": 0, "activation_bytes": 5e6}  # 0.01 GFLOP: 0.1 ms; 10 MB: 1 ms
    found = achieved(
        {"step_1": compute, "decode": memory}, milliseconds=25.0, precision="fp32", peaks=peaks,
        stages_ms={"step_1": 10.0, "decode": 2.5},
    )  # fmt: skip
    assert found is not None
    assert found["fraction"] == pytest.approx(10.1 / 25.0)
    assert found["stages"]["step_1"]["ms"] == pytest.approx(20.0)  # scaled to the whole
    assert found["stages"]["step_1"]["fraction"] == pytest.approx(0.5)
    assert found["stages"]["decode"]["roof_ms"] == pytest.approx(1.0)  # memory sets it
    assert achieved({"step_1": compute}, milliseconds=25.0, precision="bf16", peaks=peaks) is None
    # At int8 a quarter of the bytes move and the peak is four times as high.
    quarter = achieved({"decode": memory}, milliseconds=5.0, precision="int8", peaks=peaks)
    assert quarter is not None
    assert quarter["roof_ms"] == pytest.approx(0.25)

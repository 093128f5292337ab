"""The report says what is in the record, and nothing it does not."""

from __future__ import annotations

from pathlib import Path

from bench_records import record_of, row_of

from csg_edge.benchmarks.files import SAMPLES
from csg_edge.benchmarks.report import markdown, quality_line, summary_lines, write_report


def test_rows_with_and_without_figures(tmp_path: Path) -> None:
    row, lost = row_of("openvino:CPU:fp32, 1 step", 12.5), row_of("<b>, 1 step", 1.0, status="failed")
    lost["reason"] = "its process crashed (SIGSEGV)"
    record = record_of(row, lost)
    record["warnings"] = ["the machine was busy"]
    record["state"] = "partial"
    text = markdown(record)
    assert "12.50 [12.38, 12.62] ms" in text
    assert "13.75 (\N{EN DASH})" in text  # too few queries for a bound
    assert "failed: its process crashed (SIGSEGV)" in text
    assert "Partial" in text
    assert "Warning: the machine was busy" in text
    assert any(line.startswith("failed") and "SIGSEGV" in line for line in summary_lines(record))
    samples = tmp_path / SAMPLES / "openvino_CPU_fp32-1_step.csv"
    samples.parent.mkdir()
    samples.write_text(
        "scenario,round,query,images,issued_ms,latency_ms\n"
        + "".join(f"single-stream,{turn},{q},1,{12.0 * q},{12.0 + q % 3}\n" for turn in (1, 2) for q in range(30))
    )
    write_report(record, tmp_path)
    page = (tmp_path / "bench.html").read_text()
    assert "<b>, 1 step" not in page
    assert "&lt;b&gt;, 1 step" in page
    assert page.count("<svg") >= 3  # legend, distribution, course
    assert "Partial: stopped before the end" in page


def test_quality_is_quoted_or_said_to_be_missing() -> None:
    row = row_of("a", 1.0)
    assert quality_line(row) == "\N{EN DASH}"
    assert quality_line({**row, "quality": None}) == "not validated"
    quality = {"figures": {"kid": [0.58, -1.0, 3.6], "dice": [0.8, 0.6, 0.9]}, "gates_failed": ["kid"]}
    assert quality_line({**row, "quality": quality}) == "kid 0.58, dice 0.80; 1 gates failed"

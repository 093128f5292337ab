"""The files of a benchmark: its record, and the raw samples beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csg_edge.errors import InputError
from csg_edge.storage import written_whole

FORMAT = 1
RECORD, SAMPLES, LOGS = "bench.json", "samples", "loadgen"

Record = dict[str, Any]


def write_samples(path: Path, runs: Sequence[Record]) -> None:
    """Raw latencies of one engine as CSV, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("scenario", "round", "query", "images", "issued_ms", "latency_ms"))
        for turn, run in enumerate(runs, start=1):
            for name, found in run.get("scenarios", {}).items():
                samples = found["samples"]
                for query, (issued, finished, images) in enumerate(
                    zip(samples["issued"], samples["finished"], samples["samples"], strict=True)
                ):
                    rows.writerow(
                        (name, turn, query, images, f"{1e-6 * issued:.4f}", f"{1e-6 * (finished - issued):.4f}")
                    )


def read_record(path: Path) -> Record:
    """A `bench.json`. Raises InputError for anything else."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] != "csg-edge bench" or record["format"] != FORMAT:
            raise ValueError(f"kind {record['kind']}, format {record['format']}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a record of csg-edge bench ({error}); give a bench.json") from None
    return record


def file_name(label: str) -> str:
    """A label as part of a path on every system."""
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in label.replace(", ", "-"))

"""The record of a long job that grows with it, so that a job that was killed goes on where it was.

`generated.jsonl` lies in the output folder while the job runs: a line that says which job it is, then a line for each
image, or other piece of the work, whose files are whole. A line torn by a crash counts for nothing. At the end
`generated.json` takes its place.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from csg_edge.errors import InputError
from csg_edge.storage import write_json

GENERATED = "generated"  # of the record's files, the name before .jsonl and .json
GROWING, FINISHED = f"{GENERATED}.jsonl", f"{GENERATED}.json"


def job_digest(job: Mapping[str, Any]) -> str:
    """Stands for everything that decides the bytes of a job's files."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()


def cannot_write(out: Path, error: OSError) -> InputError:
    """What to tell of a disk that refuses; the job goes on where it was once that is mended."""
    return InputError(
        f"--out {out}: cannot write ({error.strerror or error}); free disk space or mend the permissions and run "
        "the same command again, or choose another folder"
    )


def finished_digest(out: Path, name: str = GENERATED) -> str:
    """Of the job whose whole record lies in a folder; empty where there is none, or a file that is something else."""
    return str(_finished(out, name).get("job", ""))


def finished_record(out: Path, name: str = GENERATED) -> dict[str, Any]:
    """The whole record that lies in a folder, without its digest; empty where there is none."""
    return {key: value for key, value in _finished(out, name).items() if key != "job"}


def _finished(out: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class Journal:
    """What an output folder holds of a job. Raises InputError where the folder belongs to another job."""

    def __init__(self, out: Path, digest: str, name: str = GENERATED) -> None:
        self.out, self.digest = out, digest
        self._growing, self._whole = out / f"{name}.jsonl", out / f"{name}.json"
        self.finished = finished_digest(out, name) == digest
        self.began = datetime.now(UTC).strftime("%Y%m%d")  # the day, which stays that of the first run
        self.done = self._read_done()

    @contextmanager
    def growing(self) -> Iterator[IO[str]]:
        """The growing record, opened to add lines; made with its first line if it is not there."""
        path = self._growing
        self.out.mkdir(parents=True, exist_ok=True)
        _remove_left_overs(self.out)
        lines = [
            {"job": self.digest, "began": self.began},
            *({**facts, "name": name} for name, facts in self.done.items()),
        ]
        # Written anew, so that a torn line does not stay.
        aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
        aside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(aside, path)
        with path.open("a", encoding="utf-8") as file:
            yield file

    @staticmethod
    def add(file: IO[str], name: str, facts: Mapping[str, Any]) -> None:
        """Say that the files of an image are whole, and what is to be known of it at the end."""
        file.write(json.dumps({**facts, "name": name}) + "\n")
        file.flush()

    def finish(self, record: Mapping[str, Any]) -> None:
        """Put the whole record in place of the growing one."""
        write_json(self._whole, {"job": self.digest, **record})
        with suppress(FileNotFoundError):
            self._growing.unlink()

    def _read_done(self) -> dict[str, dict[str, Any]]:
        """What an earlier run finished, in its order: names of images and what it said of them."""
        path = self._growing
        if not path.is_file():
            return {}
        lines = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                lines.append(json.loads(line))
        if not lines or not isinstance(lines[0], dict) or lines[0].get("job") != self.digest:
            raise InputError(
                f"--out {self.out}: an unfinished job with other arguments or files is there; run its command again to "
                f"finish it, choose another folder, or remove {path.name} and its images"
            )
        self.began = str(lines[0].get("began") or self.began)
        whole = [line for line in lines[1:] if isinstance(line, dict) and "name" in line]
        return {str(line["name"]): {key: line[key] for key in line if key != "name"} for line in whole}


def _remove_left_overs(out: Path) -> None:
    """Files that a killed run was writing; the folder is this job's own."""
    for folder in (out, *(path for path in out.iterdir() if path.is_dir())):
        for path in folder.glob(".*.partial-*"):
            with suppress(OSError):
                path.unlink()

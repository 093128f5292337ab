"""csg-edge beside what one would use instead, in one run: `make bench-peers`.

    python benchmarks/peers/run.py [--only NAME,...] [--resume] [--pairs 7] [--seconds 4] [--threads N] [--out FOLDER]

Two processes for each peer, ours and theirs, both ready before the clock starts, take turns: A B, B A, A B, ... The
ratio is taken pair by pair, so that a slow minute of the machine hits both sides alike; its median and quartiles are
reported. The record is written after every peer; `--resume` goes on after the last one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from csg_edge.benchmarks.environment import Watch, describe_machine
from csg_edge.benchmarks.roofline import available_cores
from csg_edge.benchmarks.session import manifest_hash
from csg_edge.benchmarks.systems import make_library
from csg_edge.bundle.manifest import Bundle, find_bundle, read_bundle
from csg_edge.generation.selection import why_not
from csg_edge.storage import write_json

HERE = Path(__file__).parent
REST_SECONDS = 0.3  # threads of the side that has ended its turn stop spinning
BEST = "best"  # the bundle's first engine that runs here


@dataclass(frozen=True)
class Pair:
    """A peer and the engine of ours it is held against. same: both make the same picture, within rounding."""

    name: str
    ours: str
    side: dict[str, Any] = field(hash=False)
    steps: int = 1
    same: bool = True


def _student(kind: str, precision: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "steps": 1, "precision": precision, **more}


BF16, FP32, ORT = "openvino:CPU:bf16", "openvino:CPU:fp32", "onnxruntime:CPU:fp32"
PAIRS = (
    Pair("benchmark_app bf16", BF16, _student("benchmark_app", "bf16")),
    Pair("benchmark_app fp32", FP32, _student("benchmark_app", "fp32")),
    Pair("ONNX Runtime alone, fp32", ORT, {"kind": "onnxruntime", "steps": 1}),
    Pair("ONNX Runtime alone, fp32, against the best engine", BEST, {"kind": "onnxruntime", "steps": 1}),
    Pair("torch eager fp32", FP32, _student("torch", "fp32", compiled=False)),
    Pair("torch eager bf16", BF16, _student("torch", "bf16", compiled=False)),
    Pair("torch.compile fp32", FP32, _student("torch", "fp32", compiled=True)),
    Pair("torch.compile bf16", BF16, _student("torch", "bf16", compiled=True)),
    Pair("step-by-step loop in OpenVINO bf16, 4 steps", BF16,
         {"kind": "step loop", "steps": 4, "precision": "bf16"}, steps=4),
    Pair("teacher, 11 evaluations, OpenVINO bf16", BEST,
         {"kind": "teacher in OpenVINO", "precision": "bf16"}, same=False),
    Pair("teacher, diffusers pipeline of 50 steps, torch eager fp32", BEST,
         {"kind": "diffusers", "evaluations": 50, "precision": "fp32"}, same=False),
    Pair("teacher, diffusers pipeline of 50 steps, torch eager bf16", BEST,
         {"kind": "diffusers", "evaluations": 50, "precision": "bf16"}, same=False),
)  # fmt: skip


class Side:
    """A process of serve.py."""

    def __init__(self, side: dict[str, Any], common: dict[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the side
        command = [sys.executable, str(HERE / "serve.py"), json.dumps({**common, "side": side})]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._answers = self._process.stdout

    def answer(self) -> Any:
        """The next line. Raises RuntimeError if the process ended instead."""
        assert self._answers is not None
        line = self._answers.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"ended with code {self._process.wait()}{': ' + said[-1] if said else ''}")
        found = json.loads(line)
        if isinstance(found, dict) and "failed" in found:
            raise RuntimeError(found["failed"])
        return found

    def turn(self, seconds: float) -> list[float]:
        """Latencies in ms of one turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"turn {seconds}\n")
        self._process.stdin.flush()
        times: list[float] = self.answer()
        time.sleep(REST_SECONDS)
        return times

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def main() -> None:
    """Measure the pairs asked for; record and table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="msk-256")
    parser.add_argument("--only", default="", help="names or beginnings of names of pairs, separated by commas")
    parser.add_argument("--resume", action="store_true", help="leave out pairs that the record of this bundle has")
    parser.add_argument("--pairs", type=int, default=7, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one turn; at least one image is made")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of every side")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results", help="folder of peers.json and peers.md")
    arguments = parser.parse_args()
    bundle = read_bundle(find_bundle(arguments.bundle))
    wanted = [name.strip() for name in arguments.only.split(",") if name.strip()]
    chosen = [pair for pair in PAIRS if not wanted or any(pair.name.startswith(name) for name in wanted)]
    if not chosen:
        raise SystemExit(f"--only {arguments.only}: no such pair; there are {'; '.join(pair.name for pair in PAIRS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = start_record(arguments.out / "peers.json", bundle, arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library.npz"
        masks, contexts = make_library(16, size=bundle.manifest.image_size[0], seed=0)
        np.savez(library, masks=masks, contexts=contexts)
        common = {
            "bundle": arguments.bundle, "library": str(library), "threads": arguments.threads,
            "noise_shape": bundle.manifest.noise_shape,
        }  # fmt: skip
        for pair in chosen:
            if arguments.resume and record["peers"].get(pair.name, {}).get("status") == "ok":
                continue
            print(f"{pair.name} ...", file=sys.stderr, flush=True)
            record["peers"][pair.name] = measure(pair, bundle, common, arguments.pairs, arguments.seconds)
            write_json(arguments.out / "peers.json", record, indent=1)
            (arguments.out / "peers.md").write_text(table(record), encoding="utf-8")
            print(line_of(pair.name, record["peers"][pair.name]), flush=True)


def start_record(path: Path, bundle: Bundle, threads: int) -> dict[str, Any]:
    """The record so far if it is of this bundle, this machine and this number of threads, else an empty one."""
    machine = describe_machine()
    fixed = {"bundle": bundle.manifest.name, "bundle_manifest_sha256": manifest_hash(bundle), "threads": threads}
    if path.is_file():
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(earlier.get(key) == value for key, value in fixed.items()) and earlier["machine"] == machine:
            return earlier
        print(f"{path}: of another bundle, machine, version or thread count; starting anew", file=sys.stderr)
    return {"kind": "csg-edge peers", "format": 1, **fixed, "machine": machine, "peers": {}}


def measure(pair: Pair, bundle: Bundle, common: dict[str, Any], pairs: int, seconds: float) -> dict[str, Any]:
    """One row: latencies of both sides turn by turn, the ratio of each pair, or why there is none."""
    ours = best_target(bundle, pair.steps) if pair.ours == BEST else pair.ours
    row: dict[str, Any] = {"status": "failed", "ours": ours, "steps": pair.steps, "peer": asdict(pair)["side"]}
    watch = Watch()
    row["warning"] = next(iter(watch.warnings), None)
    sides: list[Side] = []
    try:
        for side in ({"kind": "csg-edge", "target": ours, "steps": pair.steps}, pair.side):
            sides.append(Side(side, common))
            # One after the other: two that prepare themselves at once are in each other's way.
            image = sides[-1].answer()["image"]
            row.setdefault("images", []).append(image)
        mine, theirs = sides
        turns: list[tuple[list[float], list[float]]] = []
        for turn in range(pairs):
            if turn % 2 == 0:
                first = mine.turn(seconds)
                turns.append((first, theirs.turn(seconds)))
            else:
                second = theirs.turn(seconds)
                turns.append((mine.turn(seconds), second))
    except (RuntimeError, BrokenPipeError) as error:
        row["reason"] = str(error)
        row.pop("images", None)
        return row
    finally:
        for opened in sides:
            opened.close()
    watch.end()
    row["difference_levels"] = difference(*row.pop("images"), same=pair.same)
    medians = [(statistics.median(a), statistics.median(b)) for a, b in turns]
    ratios = [b / a for a, b in medians]
    row |= {
        "status": "ok",
        "ratio": quartiles(ratios),
        "ours_ms": quartiles([a for a, _ in medians]),
        "peer_ms": quartiles([b for _, b in medians]),
        "pairs": [{"ours_ms": a, "peer_ms": b, "ratio": b / a} for a, b in medians],
        "images": [sum(len(a) for a, _ in turns), sum(len(b) for _, b in turns)],
        "stolen": watch.stolen,
        "warning": next(iter(watch.warnings), None),
    }
    return row


def best_target(bundle: Bundle, steps: int) -> str:
    """The bundle's first engine that runs here."""
    return next(e.target for e in bundle.manifest.engines if e.steps == steps and why_not(e) is None)


def difference(mine: str | None, theirs: str | None, *, same: bool) -> dict[str, float] | None:
    """Mean and largest difference of the two first images in grey levels; None where they need not be alike."""
    if mine is None or theirs is None or not same:
        return None
    first, second = (np.frombuffer(bytes.fromhex(text), np.uint8).astype(int) for text in (mine, theirs))
    levels = np.abs(first - second)
    return {"mean": float(levels.mean()), "max": float(levels.max())}


def quartiles(values: list[float]) -> dict[str, float]:
    """Median, quartiles and range."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": median, "q1": low, "q3": high, "min": min(values), "max": max(values)}


def line_of(name: str, row: dict[str, Any]) -> str:
    """One row for a terminal."""
    if row["status"] != "ok":
        return f"{name}: failed: {row['reason']}"
    ratio = row["ratio"]
    text = f"{name}: {ratio['median']:.2f} times our {row['ours']} [{ratio['q1']:.2f}, {ratio['q3']:.2f}]"
    return text + (f" (warning: {row['warning']})" if row["warning"] else "")


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    machine = record["machine"]
    lines = [
        "# What one would use instead",
        "",
        f"{machine['processor']} ({', '.join(machine['flags'])}), {record['threads']} threads for every side; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items()) + ".",
        "",
        "Time of the peer over ours, pair by pair in turns: median and quartiles. Times hold for this machine alone.",
        "",
        "| peer | ours | ratio | peer, ms | ours, ms | pairs | pictures differ by, grey levels |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in record["peers"].items():
        ours = f"{row['ours']}, {row['steps']} step{'s' * (row['steps'] > 1)}"
        if row["status"] != "ok":
            lines.append(f"| {name} | {ours} | failed: {row['reason'].replace('|', '/')} | | | | |")
            continue
        ratio, levels = row["ratio"], row["difference_levels"]
        busy = " (busy machine)" if row["warning"] else ""
        lines.append(
            f"| {name} | {ours} | **{ratio['median']:.2f}** [{ratio['q1']:.2f}, {ratio['q3']:.2f}]{busy} "
            f"| {row['peer_ms']['median']:.1f} | {row['ours_ms']['median']:.1f} | {len(row['pairs'])} "
            f"| {'' if levels is None else format(levels['mean'], '.2f')} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()

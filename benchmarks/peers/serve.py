"""One side of a pair, in a process of its own: prepares itself, then takes turns when told to on standard input.

    python benchmarks/peers/serve.py '{"side": {"kind": "csg-edge", ...}, "library": ..., "threads": 2}'

Answers each line with one line of JSON: first {"image": its first image as hex of its bytes}, then, for `turn SECONDS`,
the latency in ms of every image made in that time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

WARM_UP_SECONDS = 2.0

Turn = Callable[[float], list[float]]


def main() -> None:
    """Serve until standard input ends."""
    # Whatever libraries print must not come between our answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.loads(sys.argv[1])
    try:
        turn, image = prepare(request)
        answer: dict[str, Any] = {"image": None if image is None else np.asarray(image, np.uint8).tobytes().hex()}
    except Exception as error:  # whatever a peer raises is the result of its row
        answer = {
            "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:300] if str(error) else ''}"
        }
    print(json.dumps(answer), file=answers, flush=True)
    if "failed" in answer:
        return
    for line in sys.stdin:
        print(json.dumps(turn(float(line.split()[1]))), file=answers, flush=True)


def prepare(request: dict[str, Any]) -> tuple[Turn, Any]:
    """What takes a turn, and the image of the first input (None where the tool gives none)."""
    from csg_edge.noise import noise_for

    side, threads, bundle = dict(request["side"]), request["threads"], request["bundle"]
    kind = side.pop("kind")
    if kind == "benchmark_app":
        from student import benchmark_app_ms

        return lambda seconds: [benchmark_app_ms(bundle, threads=threads, seconds=seconds, **side)], None
    with np.load(request["library"]) as library:
        masks, contexts = library["masks"], library["contexts"]
    make = maker(kind, side, bundle, threads)
    shape = tuple(request["noise_shape"])

    # Our call makes its noise from the seed; a peer is handed it, and not charged for it.
    last = (lambda index: index) if kind == "csg-edge" else lambda index: noise_for(index, shape)[None]

    def turn(seconds: float) -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            row = len(times) % len(masks)
            inputs = masks[row][None], contexts[row][None], last(len(times))
            start = time.perf_counter()
            make(*inputs)
            times.append(1e3 * (time.perf_counter() - start))
        return times

    # A copy: some peers write every image in one place.
    image = np.array(make(masks[0][None], contexts[0][None], last(0)))
    turn(WARM_UP_SECONDS)
    return turn, image


def maker(kind: str, side: dict[str, Any], bundle: str, threads: int) -> Callable[[Any, Any, Any], Any]:
    """The call that makes one image."""
    if kind == "csg-edge":
        import csg_edge

        runtime, device, precision = side["target"].split(":")
        generator = csg_edge.load(
            bundle, runtime=runtime, device=device, precision=precision, steps=side["steps"], threads=threads
        )
        return lambda mask, context, seed: generator.generate(mask, context, [seed])
    module, name = PEERS[kind].split(":")
    more = {"bundle": bundle} if kind == "onnxruntime" else {}
    made: Callable[[Any, Any, Any], Any] = getattr(import_module(module), name)(threads=threads, **side, **more)
    return made


PEERS = {
    "onnxruntime": "student:bare_onnxruntime",
    "torch": "student:torch_student",
    "step loop": "student:step_loop",
    "diffusers": "teacher:diffusers_pipeline",
    "teacher in OpenVINO": "teacher:openvino_unrolled",
}

if __name__ == "__main__":
    main()

"""Units made and written, one after the other in this process, or by workers of Ray.

A unit's files follow from the unit alone, are written whole, and may be written twice: so it does not matter who makes
it, nor how often, and what comes out is the same whatever the number of workers.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csg_edge.augment.make import Maker, Outcome, Unit
from csg_edge.augment.options import Options, open_sources, open_writer
from csg_edge.augment.plan import Plan
from csg_edge.augment.sources import Sources
from csg_edge.augment.writers import SYNTHETIC, Writer, at_size
from csg_edge.errors import InputError
from csg_edge.generation.loading import load

BEHIND = 16  # units that may wait to be written
SIDE_BY_SIDE = 64  # images that a worker of Ray is given at once, or those of one mask; a kill costs as many

Facts = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What a worker needs: what makes, what writes, and the options of the run."""

    maker: Maker
    sources: Sources
    writer: Writer
    options: Options

    def work(self, units: Sequence[Unit]) -> list[tuple[Unit, Facts]]:
        """Make and write the images of units; each with what the journal keeps of it."""
        return [self.write(outcome) for outcome in self.maker.make(units)]

    def write(self, outcome: Outcome) -> tuple[Unit, Facts]:
        """Write what was made."""
        for made in outcome.made:
            pair = at_size(made, self.sources, self.options.size)
            self.writer.write(made.name, made.position, *pair, SYNTHETIC)
        return outcome.unit, facts_of(outcome)


def work_here(bench: Bench, units: Sequence[Unit]) -> Iterator[tuple[Unit, Facts]]:
    """In this process; a thread writes while the next images are made."""
    with ThreadPoolExecutor(1) as thread:
        writing: deque[Future[tuple[Unit, Facts]]] = deque()
        for outcome in bench.maker.make(units):
            writing.append(thread.submit(bench.write, outcome))
            while writing and (len(writing) > BEHIND or writing[0].done()):
                yield writing.popleft().result()
        for written in writing:
            yield written.result()


def portions(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """The units in turn, as many together as have SIDE_BY_SIDE images, and at least one."""
    portion: list[Unit] = []
    for unit in units:
        portion.append(unit)
        if sum(item.count for item in portion) >= SIDE_BY_SIDE:
            yield portion
            portion = []
    if portion:
        yield portion


@dataclass(frozen=True)
class Recipe:
    """What a worker of another process makes its bench of. Everything in it can be pickled."""

    directory: Path
    out: Path
    job: str
    began: str
    plan: Plan
    options: Options
    bundle: Path
    target: str
    steps: int
    limits: dict[str, Any] | None  # of the checks, None without

    def bench(self) -> Bench:
        """Open set and engine here; one thread, as every stream of the local engine has."""
        runtime, device, precision = self.target.split(":")
        generator = load(
            self.bundle, runtime=runtime, device=device, precision=precision, steps=self.steps, threads=1, proven=False
        )
        sources = open_sources(self.directory, self.plan, generator, self.options)
        writer = open_writer(sources, self.out, self.options, job=self.job, began=self.began)
        checks = None
        if self.limits is not None:
            from csg_edge.augment.checks import Checks

            plan, segmenter = self.plan, self.options.segmenter
            checks = Checks(sources, least=plan.dice, segmenter=segmenter, known=self.limits)
        return Bench(Maker(self.plan, sources, generator, checks), sources, writer, self.options)


class Worker:
    """An actor of Ray Data: units in, what is known of them out, both as JSON."""

    def __init__(self, recipe: Recipe) -> None:
        self._bench = recipe.bench()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = [
            json.dumps([asdict(unit), facts])
            for text in batch["units"]
            for unit, facts in self._bench.work([Unit(**item) for item in json.loads(text)])
        ]
        return {"done": np.array(found, object)}


def work_by_ray(
    recipe: Recipe, units: Sequence[Unit], *, workers: int, address: str | None
) -> Iterator[tuple[Unit, Facts]]:  # fmt: skip
    """By actors of Ray Data, here or on a cluster whose machines see the same folders.

    workers: actors, at most; a processor is left for what feeds them, for which they would otherwise wait without end.
    A worker that is killed is started again, as Ray Data does by itself, and its units are made anew. Raises InputError
    without Ray, or where the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("--engine ray: Ray is not installed; pip install 'csg-edge[ray]'") from None
    library: Any = ray  # whose functions have types in part
    started = not library.is_initialized()
    if started:
        where: dict[str, Any] = {"address": address} if address else {"num_cpus": workers + 1}
        try:
            ray.init(**where, include_dashboard=False if not address else None, log_to_driver=False,
                     logging_level=logging.ERROR)  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:120]
            raise InputError(f"--ray-address {address}: cannot reach it ({said}); check address and port") from None
    try:
        processors = int(library.cluster_resources().get("CPU", 1))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # progress and the end are ours to tell
        rows = [{"units": json.dumps([asdict(unit) for unit in portion])} for portion in portions(units)]
        number = max(1, min(workers, processors - 1))
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker, fn_constructor_args=(recipe,), batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=number), num_cpus=1 if processors > 1 else 0.5,
        )  # fmt: skip
        for row in made.iter_rows():
            unit, facts = json.loads(row["done"])
            yield Unit(**unit), facts
    finally:
        if started:
            ray.shutdown()


def facts_of(outcome: Outcome) -> Facts:
    """What the journal keeps of a unit. JSON-ready."""
    return {
        "provenance": [made.facts for made in outcome.made], "tried": outcome.tried, "faults": outcome.faults,
        "left_out": list(outcome.left_out),
    }  # fmt: skip

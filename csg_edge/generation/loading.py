"""Opening a bundle: the first of its engines that runs here and is proven here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from csg_edge.bundle.manifest import find_bundle, read_bundle
from csg_edge.cache import BlobCache
from csg_edge.errors import EngineError, InputError, RuntimeUnavailableError
from csg_edge.generation.generator import Generator, open_engine
from csg_edge.generation.proof import failure_here, remembered
from csg_edge.generation.selection import Choice, candidates, rival_of, runnable


def load(
    bundle: str | Path = "msk-256",
    *,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    steps: int = 1,
    threads: int | None = None,
    cache: bool | str | Path = True,
) -> Generator:
    """Open a bundle (a folder, or the name of a shipped one) on this machine.

    Among several engines that fit the options, the first in the bundle's order of preference is taken that this machine
    can run and that makes its golden image here, int8 only if it is faster here than the next in 16 or 32 bits;
    `Generator.choice` says which and why. threads: a hint for CPUs.
    cache: whether compiled engines and verdicts are kept for the next start, or the folder to keep them in.

    Raises BundleError for a missing or damaged bundle, InputError for an option the bundle does not offer,
    RuntimeUnavailableError if nothing that fits can run here, EngineError if the runtime refuses the engine.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads {threads!r}: give at least 1")
    blobs = (BlobCache() if cache else None) if isinstance(cache, bool) else BlobCache(Path(cache))
    checked = read_bundle(find_bundle(str(bundle)))
    found = candidates(checked, runtime=runtime, device=device, precision=precision, steps=steps)
    chosen_by_us = runtime == "auto" or len(found) > 1
    passed_over: list[str] = []
    for candidate in runnable(found, passed_over):
        engine = candidate.engine
        if candidate.listed and not chosen_by_us:
            return open_engine(checked, engine, threads=threads, cache=blobs)
        failure = remembered(checked, engine, blobs)
        known = failure is not None
        if not failure:
            try:
                opened = open_engine(checked, engine, threads=threads, cache=blobs)
            except (EngineError, RuntimeUnavailableError) as error:
                passed_over.append(f"{engine.target}: {error}")
                continue
            if not known:
                rival = rival_of(engine, found)
                opener = None if rival is None else partial(open_engine, checked, rival, threads=threads, cache=blobs)
                failure = failure_here(opened, blobs, opener)
            if not failure:
                first = "the first in the bundle's order that runs here" if candidate.listed else "the portable graph"
                when = "before" if known else "just now"
                reason = f"{first}, golden case passed {when}"
                opened.choice = Choice(engine.target, reason, tuple(passed_over))
                return opened
            opened.close()
        passed_over.append(f"{engine.target}: {failure}")
    raise RuntimeUnavailableError("no engine can run here. " + "; ".join(passed_over))

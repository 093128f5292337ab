"""Opening a bundle: the first of its engines that runs here and is proven here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from csg_edge.bundle.manifest import find_bundle, read_bundle
from csg_edge.cache import BlobCache
from csg_edge.errors import CsgEdgeError, EngineError, InputError, RuntimeUnavailableError
from csg_edge.generation.generator import Generator, open_engine
from csg_edge.generation.proof import Verdict, prove, remembered
from csg_edge.generation.selection import Candidate, Choice, candidates, rival_of, runnable
from csg_edge.machine import allowed_processors, default_threads


def load(
    bundle: str | Path = "msk-256",
    *,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    steps: int = 1,
    threads: int | None = None,
    streams: int | Literal["auto"] = 1,
    cache: bool | str | Path = True,
    proven: bool = True,
) -> Generator:
    """Open a bundle (a folder, or the name of a shipped one) on this machine.

    Among several engines that fit the options, the first in the bundle's order of preference is taken that this machine
    can run and that makes its golden image here, int8 only if it is faster here than the next in 16 or 32 bits;
    `Generator.choice` says which and why. threads: a hint for CPUs; if not given, what affinity and the container's
    processor quota allow. streams: images made side by side, for throughput (`auto`: one a thread): `stream`, and
    `generate` of many images, then keep all of them busy, and give the same bytes; one image alone takes longer. cache:
    whether compiled engines and verdicts are kept for the next start, or the folder to keep them in. proven: whether an
    engine must have made its golden image here before it is used; only to look into one that does not.

    Raises BundleError for a missing or damaged bundle, InputError for an option the bundle does not offer,
    RuntimeUnavailableError if nothing that fits can run here, EngineError if the runtime refuses an engine that was
    asked for by name, or its golden image is wrong here.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads {threads!r}: give at least 1")
    if streams != "auto" and (isinstance(streams, bool) or not isinstance(streams, int) or streams < 1):
        raise InputError(f"streams {streams!r}: give at least 1, or auto")
    side_by_side = (threads or default_threads() or allowed_processors()) if streams == "auto" else streams
    tuning: dict[str, Any] = {"threads": threads, "streams": side_by_side}
    blobs = (BlobCache() if cache else None) if isinstance(cache, bool) else BlobCache(Path(cache))
    checked = read_bundle(find_bundle(str(bundle)))
    found = candidates(checked, runtime=runtime, device=device, precision=precision, steps=steps)
    # What was asked for by name is taken even if another engine is faster, but not if its images are wrong.
    by_name = runtime != "auto" and len(found) == 1
    passed_over: list[str] = []
    for candidate in runnable(found, passed_over):
        engine = candidate.engine
        rival = None if by_name else rival_of(engine, found)
        verdict = remembered(checked, engine, blobs) if proven else None
        known = verdict is not None and (rival is None or bool(verdict.failure) or verdict.slower is not None)
        wrong = _wrong(verdict, by_name) if known else ""
        if not wrong:
            try:
                opened = open_engine(checked, engine, **tuning, cache=blobs)
            except (EngineError, RuntimeUnavailableError) as error:
                if by_name and candidate.listed:
                    raise
                passed_over.append(f"{engine.target}: {error}")
                continue
            if not proven:
                opened.choice = Choice(engine.target, "as asked for, not proven", tuple(passed_over))
                return opened
            if not known:
                opener = None if rival is None else partial(open_engine, checked, rival, **tuning, cache=blobs)
                try:
                    wrong = _wrong(prove(opened, blobs, opener), by_name)
                except CsgEdgeError:
                    opened.close()
                    raise
            if not wrong:
                when = "before" if known else "just now"
                opened.choice = Choice(engine.target, _reason(candidate, by_name), tuple(passed_over), when)
                return opened
            opened.close()
        if by_name and candidate.listed:
            raise EngineError(f"{engine.target}: {wrong}; choose another engine, or use it as it is with --unproven")
        passed_over.append(f"{engine.target}: {wrong}")
    raise RuntimeUnavailableError("no engine can run here. " + "; ".join(passed_over))


def _wrong(verdict: Verdict | None, by_name: bool) -> str:
    """Why an engine is not taken, empty if it is."""
    if verdict is None:
        return ""
    return verdict.failure or ("" if by_name else verdict.slower or "")


def _reason(candidate: Candidate, by_name: bool) -> str:
    if not candidate.listed:
        return "the portable graph"
    return "as asked for" if by_name else "the first in the bundle's order that runs here"

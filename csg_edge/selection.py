"""Which engine of a bundle: what was asked for, what this machine can run, what passed its golden case here.

`auto` takes the first engine, in the bundle's order of preference, that runs here and makes the golden image. The
order, not a stopwatch, decides between 16 and 32 bits: a noisy measurement would give other bytes on the next start. An
int8 engine, which stands where it does for its speed alone and has it on some processors only, is raced against the
engine it would replace. This runs once for each engine, runtime version and machine, and the verdict is remembered in
the user's cache folder.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from csg_edge.bundle import PRECISIONS, Bundle, Engine, Target
from csg_edge.cache import BlobCache, key_of
from csg_edge.errors import EngineError, InputError, RuntimeUnavailableError
from csg_edge.machine import processor
from csg_edge.runtimes import RUNTIMES, runtime_class

if TYPE_CHECKING:
    from csg_edge.generator import Generator

RACE_ROUNDS = 9


@dataclass(frozen=True)
class Choice:
    """What was taken and why; `passed_over` says for each engine tried before why not that one."""

    target: str
    reason: str
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([f"{self.target}: {self.reason}", *(f"not {text}" for text in self.passed_over)])


@dataclass(frozen=True)
class Candidate:
    """An engine that fits the options; `listed` says whether the bundle lists it for that target."""

    engine: Engine
    listed: bool = True


def candidates(bundle: Bundle, *, runtime: str, device: str, precision: str, steps: int) -> list[Candidate]:
    """The engines that fit the options, in the bundle's order of preference.

    A runtime named explicitly that the bundle has no engine for runs the bundle's portable graph, if it can. Raises
    InputError for an option that is unknown or that the bundle does not offer.
    """
    if runtime != "auto" and runtime not in RUNTIMES:
        raise InputError(f"runtime {runtime!r} is unknown; choose auto, {', '.join(RUNTIMES)}")
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision {precision!r} is unknown; choose auto, {', '.join(PRECISIONS)}")
    manifest = bundle.manifest
    if steps not in manifest.steps:
        raise InputError(f"steps {steps}: bundle {manifest.name} has steps {', '.join(map(str, manifest.steps))}")
    wanted = {"runtime": runtime, "device": device, "precision": precision}
    at_steps = [engine for engine in manifest.engines if engine.steps == steps]
    fitting = [
        Candidate(engine)
        for engine in at_steps
        if all(value in ("auto", getattr(Target.parse(engine.target), key)) for key, value in wanted.items())
    ]
    if fitting:
        return fitting
    reason = ""
    if runtime != "auto":
        arithmetic = "fp32" if precision == "auto" else precision
        place = "CPU" if device == "auto" else device
        kind = runtime_class(runtime)
        for engine in at_steps:
            portable = not engine.built_with and PurePosixPath(engine.file).suffix in kind.portable
            if portable and Target.parse(engine.target).precision == arithmetic:
                reason = kind.why_not(place, arithmetic) or ""
                if not reason:
                    return [Candidate(replace(engine, target=f"{runtime}:{place}:{arithmetic}"), listed=False)]
                break
    offered = ", ".join(dict.fromkeys(engine.target for engine in manifest.engines))
    asked = ":".join(wanted.values())
    why = f", and its portable graph cannot run there ({reason})" if reason else ""
    raise InputError(f"bundle {manifest.name} has no engine for {asked}; it has {offered}{why}")


def runnable(found: list[Candidate], passed_over: list[str]) -> Iterator[Candidate]:
    """Those that this machine can run; the others' reasons are added to `passed_over`."""
    for candidate in found:
        if reason := why_not(candidate.engine):
            passed_over.append(f"{candidate.engine.target}: {reason}")
        else:
            yield candidate


def why_not(engine: Engine) -> str | None:
    """None if this machine can run the engine, else the reason with the remedy."""
    target = Target.parse(engine.target)
    if target.runtime not in RUNTIMES:
        return f"runtime {target.runtime} is unknown to this csg-edge; update it"
    kind = runtime_class(target.runtime)
    if reason := kind.why_not(target.device, target.precision):
        return reason
    if reason := kind.takes(engine.built_with):
        return f"{reason}; csg-edge build BUNDLE --target {engine.target}"
    return None


def identity(bundle: Bundle, engine: Engine) -> str:
    """What stands for the content of an engine: the hashes of its file and of the files beside it (its weights)."""
    folder = PurePosixPath(engine.file).parent
    beside = {
        name: entry.sha256 for name, entry in bundle.manifest.files.items() if PurePosixPath(name).parent == folder
    }
    return key_of(file=engine.file, files=beside)


def remembered(bundle: Bundle, engine: Engine, cache: BlobCache | None) -> str | None:
    """The verdict of an earlier golden case of this engine on this machine: empty if it passed, the reason if not.

    None if there was none.
    """
    note = None if cache is None else cache.load_note(_verdict_key(bundle, engine))
    return None if note is None else str(note["failure"])


def rival_of(engine: Engine, found: list[Candidate]) -> Engine | None:
    """For an int8 engine: the next one in 16 or 32 bits for the same runtime and device that runs here."""
    target = Target.parse(engine.target)
    if target.precision != "int8":
        return None
    for candidate in found:
        other = Target.parse(candidate.engine.target)
        same_place = (other.runtime, other.device) == (target.runtime, target.device)
        if same_place and other.precision != "int8" and why_not(candidate.engine) is None:
            return candidate.engine
    return None


def failure_here(generator: Generator, cache: BlobCache | None, rival: Callable[[], Generator] | None = None) -> str:
    """Why an engine is not to be trusted here, remembered: empty if it makes the first golden image and beats `rival`.

    rival: opens the engine that an int8 engine has to be faster than.
    """
    failure = golden_failure(generator)
    if not failure and rival is not None:
        with suppress(EngineError, RuntimeUnavailableError), rival() as other:  # one that does not open is no rival
            failure = slower_here(generator, other)
    if cache is not None:
        key = _verdict_key(generator.bundle, generator.engine)
        cache.store_note(key, {"target": generator.engine.target, "failure": failure})
    return failure


def slower_here(generator: Generator, rival: Generator) -> str:
    """Empty if an engine's quickest image of RACE_ROUNDS, made in turns with a rival, is quicker than the rival's."""
    from csg_edge.verify import read_case

    case = generator.bundle.manifest.golden[0]
    mask, context, _ = read_case(generator.bundle, case, generator.engine.steps)
    quickest = {generator: float("inf"), rival: float("inf")}
    for lap in range(RACE_ROUNDS + 1):
        for one in quickest:
            start = time.perf_counter()
            one.generate_one(mask, context, case.seed)
            if lap:  # the first warms up
                quickest[one] = min(quickest[one], 1e3 * (time.perf_counter() - start))
    mine, theirs = quickest.values()
    if mine < theirs:
        return ""
    return f"no faster here than {rival.engine.target} ({mine:.1f} ms against {theirs:.1f} ms)"


def golden_failure(generator: Generator) -> str:
    """Run the first golden case: empty if it passed, else what was wrong."""
    from csg_edge.verify import Difference, read_case, within

    bundle, engine = generator.bundle, generator.engine
    if not bundle.manifest.golden:
        return "the bundle has no golden cases; export it again"
    case = bundle.manifest.golden[0]
    mask, context, expected = read_case(bundle, case, engine.steps)
    image = generator.generate_one(mask, context, case.seed)
    found = Difference.between(image, expected)
    if within(image, expected, engine.tolerance, psnr=found.psnr):
        return ""
    return (
        f"fails golden case {case.name} here ({found.max_levels} grey levels off, PSNR {found.psnr:.1f} dB); "
        "see csg-edge verify"
    )


def _verdict_key(bundle: Bundle, engine: Engine) -> str:
    tolerance = engine.tolerance
    golden = sorted(entry.sha256 for name, entry in bundle.manifest.files.items() if name.startswith("golden/"))
    return key_of(
        kind="verdict", engine=identity(bundle, engine), target=engine.target, steps=engine.steps, golden=golden,
        tolerance=[tolerance.levels, tolerance.share, tolerance.psnr],
        runtime=runtime_class(Target.parse(engine.target).runtime).version(), machine=[platform.node(), processor()],
    )  # fmt: skip

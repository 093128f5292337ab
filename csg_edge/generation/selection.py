"""Which engines of a bundle fit what was asked for and can run on this machine, in the bundle's order of preference.

The order, not a stopwatch, decides between 16 and 32 bits: a noisy measurement would give other bytes on the next
start. `proof` says which of them are to be trusted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from csg_edge.bundle.manifest import PRECISIONS, Bundle, Engine, Target
from csg_edge.cache import key_of
from csg_edge.errors import InputError
from csg_edge.runtimes import RUNTIMES, runtime_class


@dataclass(frozen=True)
class Choice:
    """What was taken and why; `passed_over` says for each engine tried before why not that one.

    proven: when its golden case passed here, `just now` or `before`; empty if it was not asked for.
    """

    target: str
    reason: str
    passed_over: tuple[str, ...] = ()
    proven: str = ""

    def __str__(self) -> str:
        proof = f", golden case passed {self.proven}" if self.proven else ""
        return "; ".join([f"{self.target}: {self.reason}{proof}", *(f"not {text}" for text in self.passed_over)])

    def to_json(self) -> dict[str, Any]:
        """As records have it: without what differs from one run of the same job to the next."""
        return {"target": self.target, "reason": self.reason, "passed_over": list(self.passed_over)}


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

"""Golden cases: does every engine of a bundle make, on this machine, the images it should?"""

from __future__ import annotations

from dataclasses import dataclass

from csg_edge.bundle.golden import Difference
from csg_edge.bundle.manifest import Bundle, Engine
from csg_edge.errors import CsgEdgeError
from csg_edge.generation.generator import open_engine
from csg_edge.generation.proof import run_case
from csg_edge.generation.selection import why_not


@dataclass(frozen=True)
class EngineResult:
    """What became of one engine: `status` is passed, failed or not run; the worst case counts."""

    target: str
    steps: int
    status: str
    reason: str
    effective_precision: str | None = None
    worst: Difference | None = None


def verify_bundle(bundle: Bundle) -> list[EngineResult]:
    """Run the golden cases on every engine; an engine that cannot run here is reported as not run, never as passed."""
    return [verify_engine(bundle, engine) for engine in bundle.manifest.engines]


def verify_engine(bundle: Bundle, engine: Engine) -> EngineResult:
    """Run the golden cases on one engine. What goes wrong is in the result; nothing is raised for it."""
    if reason := why_not(engine):
        return EngineResult(engine.target, engine.steps, "not run", reason)
    if not bundle.manifest.golden:
        return EngineResult(engine.target, engine.steps, "failed", "the bundle has no golden cases; export it again")
    failed, differences = [], []
    try:
        with open_engine(bundle, engine) as generator:
            precision = generator.runtime.effective_precision
            for case in bundle.manifest.golden:
                difference, passed = run_case(generator, case)
                differences.append(difference)
                if not passed:
                    failed.append(case.name)
    except CsgEdgeError as error:
        return EngineResult(engine.target, engine.steps, "failed", str(error))
    worst = Difference.worst(differences)
    reason = f"beyond tolerance: {', '.join(failed)}" if failed else ""
    return EngineResult(engine.target, engine.steps, "failed" if failed else "passed", reason, precision, worst)

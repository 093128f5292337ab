"""Whether an engine is to be trusted on this machine: its golden image, and for int8 its speed, with the verdict kept.

An int8 engine, which stands where it does for its speed alone and has it on some processors only, is raced against the
engine it would replace, unless it was asked for by name. All this runs once for each engine, runtime version and
machine, and the verdict is remembered in the user's cache folder.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from csg_edge.bundle.golden import FIELD_TOLERANCE, Difference, field_difference, read_case, within
from csg_edge.bundle.manifest import Bundle, Engine, GoldenCase, Target
from csg_edge.cache import BlobCache, key_of
from csg_edge.errors import EngineError, RuntimeUnavailableError
from csg_edge.generation.generator import Generator
from csg_edge.generation.selection import identity
from csg_edge.machine import processor
from csg_edge.runtimes import runtime_class

RACE_ROUNDS = 9


class Verdict(NamedTuple):
    """What is known of an engine here: what is wrong with its golden image, and why it is not the faster one.

    Either is empty if nothing is; slower is None where it was not raced.
    """

    failure: str
    slower: str | None = None


def remembered(bundle: Bundle, engine: Engine, cache: BlobCache | None) -> Verdict | None:
    """The verdict of an earlier run on this machine, None if there was none."""
    note = None if cache is None else cache.load_note(_verdict_key(bundle, engine))
    if note is None:
        return None
    slower = note.get("slower")
    return Verdict(str(note["failure"]), None if slower is None else str(slower))


def prove(generator: Generator, cache: BlobCache | None, rival: Callable[[], Generator] | None = None) -> Verdict:
    """Make the first golden image and, if it is right, race `rival`; the verdict is remembered.

    rival: opens the engine that an int8 engine has to be faster than.
    """
    failure, slower = golden_failure(generator), None
    if not failure and rival is not None:
        slower = ""
        with suppress(EngineError, RuntimeUnavailableError), rival() as other:  # one that does not open is no rival
            slower = slower_here(generator, other)
    if cache is not None:
        note = {"target": generator.engine.target, "failure": failure}
        key = _verdict_key(generator.bundle, generator.engine)
        cache.store_note(key, note if slower is None else {**note, "slower": slower})
    return Verdict(failure, slower)


def slower_here(generator: Generator, rival: Generator) -> str:
    """Empty if an engine's quickest image of RACE_ROUNDS, made in turns with a rival, is quicker than the rival's."""
    case = generator.bundle.manifest.golden[0]
    mask, context, *_ = read_case(generator.bundle, case, generator.engine.steps)
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


def run_case(generator: Generator, case: GoldenCase) -> tuple[Difference, bool]:
    """Make the image of a golden case: how far it is from the expected one, and whether the engine passes.

    Where the bundle takes fibre fields, the field that was used must be the reference's, too.
    """
    bundle, engine = generator.bundle, generator.engine
    data = read_case(bundle, case, engine.steps)
    close = True
    if data.used is None:
        image = generator.generate_one(data.mask, data.context, case.seed)
    else:
        (image,), (used,) = generator.generate(
            [data.mask], [data.context], [case.seed], fibres=[data.field], return_fibres=True
        )
        close = field_difference(used, data.used) <= FIELD_TOLERANCE
    found = Difference.between(image, data.expected)
    return found, close and within(image, data.expected, engine.tolerance, psnr=found.psnr)


def golden_failure(generator: Generator) -> str:
    """Run the first golden case: empty if it passed, else what was wrong."""
    if not generator.bundle.manifest.golden:
        return "the bundle has no golden cases; export it again"
    case = generator.bundle.manifest.golden[0]
    found, passed = run_case(generator, case)
    if passed:
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

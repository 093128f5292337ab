"""What is measured and for how long, fixed before anything runs: a TOML file, `short` and `full` of this package.

    rounds = 2          # visits to each engine, a fresh process each, engines taking turns
    warm_up = 5         # images before the clock starts, in every process
    cold_starts = 3     # fresh processes from nothing to the first image, with and without a cache
    profiled_images = 10
    library = 32        # different masks and contexts
    seed = 0

    [single-stream]     # also [multi-stream], [offline]
    min_seconds = 3.0
    max_seconds = 6.0
    min_queries = 64
    percentile = 0.9    # the one that LoadGen judges

Scenarios are those of MLPerf Inference (Reddi et al., arXiv 1911.02549): single-stream asks for one image after
another, multi-stream for `samples_per_query` images at once, offline for all images at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from csg_edge.errors import InputError

SCENARIOS = ("single-stream", "multi-stream", "offline")
MODES = Path(__file__).parent / "scenarios"
MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Scenario:
    """One LoadGen test. It lasts at least `min_seconds` and `min_queries`, and ends at `max_seconds` even so."""

    name: str
    min_seconds: float
    max_seconds: float
    min_queries: int = 1
    percentile: float = 0.9
    samples_per_query: int = 1  # of offline: chosen so that the test takes min_seconds


@dataclass(frozen=True)
class Plan:
    """A whole run. `mode` is the name of its file."""

    mode: str
    scenarios: tuple[Scenario, ...]
    rounds: int = 1
    warm_up: int = 5
    cold_starts: int = 3
    profiled_images: int = 10
    library: int = 32
    seed: int = 0

    def only(self, names: Sequence[str]) -> Plan:
        """The same with these scenarios alone; all if none is named. Raises InputError for one it does not have."""
        known = {scenario.name: scenario for scenario in self.scenarios}
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"--scenario {unknown[0]}: mode {self.mode} has {', '.join(known)}")
        return replace(self, scenarios=tuple(known[name] for name in known if not names or name in names))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def read_plan(mode: str) -> Plan:
    """A mode of this package (`short`, `full`) or a TOML file. Raises InputError naming the key that is wrong."""
    path = next((path for path in (MODES / f"{mode}.toml", Path(mode)) if path.is_file()), None)
    if path is None:
        shipped = ", ".join(sorted(item.stem for item in MODES.glob("*.toml")))
        raise InputError(f"--mode {mode}: no such file; give {shipped} or a TOML file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not TOML ({error}); see csg_edge/benchmarks/scenarios.py for an example") from None
    return parse_plan(values, mode=path.stem, where=str(path))


def parse_plan(values: Mapping[str, Any], *, mode: str, where: str) -> Plan:
    """A plan from the keys of a file. Raises InputError naming the key that is wrong."""
    scenarios = []
    for name in SCENARIOS:
        if name in values:
            table = values[name]
            if not isinstance(table, dict):
                raise InputError(f"{where}: {name} is no table; write [{name}]")
            scenarios.append(_fill(Scenario, {"name": name, **table}, f"{where}: {name}"))
    if not scenarios:
        raise InputError(f"{where}: no scenario; give at least one of {', '.join(f'[{name}]' for name in SCENARIOS)}")
    rest = {key: value for key, value in values.items() if key not in SCENARIOS}
    plan: Plan = _fill(Plan, {"mode": mode, "scenarios": tuple(scenarios), **rest}, where)
    for name, right, remedy in (
        ("rounds", plan.rounds >= 1, "1 or more"),
        ("warm_up", plan.warm_up >= 1, "1 or more"),
        ("cold_starts", plan.cold_starts >= 0, "0 or more"),
        ("profiled_images", plan.profiled_images >= 0, "0 or more"),
        ("library", plan.library >= 1, "1 or more"),
        ("seed", 0 <= plan.seed <= MAX_SEED, f"0 to {MAX_SEED}"),
    ):
        if not right:
            raise InputError(f"{where}: {name} = {getattr(plan, name)}; give {remedy}")
    for scenario in plan.scenarios:
        for name, right, remedy in (
            ("min_seconds", scenario.min_seconds > 0, "more than 0"),
            ("max_seconds", scenario.max_seconds >= scenario.min_seconds, "min_seconds or more"),
            ("min_queries", scenario.min_queries >= 1, "1 or more"),
            ("percentile", 0 < scenario.percentile < 1, "a share between 0 and 1"),
            ("samples_per_query", scenario.samples_per_query >= 1, "1 or more"),
        ):
            if not right:
                raise InputError(f"{where}: {scenario.name}.{name} = {getattr(scenario, name)}; give {remedy}")
    return plan


def _fill(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    known = {item.name: str(item.type) for item in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise InputError(
            f"{where}: unknown key {unknown[0]}; known are {', '.join(sorted(set(known) - {'scenarios'}))}"
        )
    checked = dict(values)
    for name, value in values.items():
        if known[name] == "float" and isinstance(value, int) and not isinstance(value, bool):
            checked[name] = float(value)
        right = {"float": float, "int": int, "str": str}.get(known[name])
        if right is not None and type(checked[name]) is not right:
            raise InputError(f"{where}: {name} = {value!r}; give {'an integer' if right is int else 'a number'}")
    try:
        return kind(**checked)
    except TypeError:
        missing = next(item for item in ("min_seconds", "max_seconds") if item not in values)
        raise InputError(f"{where}: {missing} is missing") from None

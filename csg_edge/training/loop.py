"""The optimisation loop that teacher and student share: AdamW, EMA, atomic checkpoints, exact resume."""

from __future__ import annotations

import csv
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from csg_edge.datasets.batches import BatchSource
from csg_edge.errors import TrainingError
from csg_edge.noise import MAX_SEED
from csg_edge.progress import Progress
from csg_edge.storage import written_whole
from csg_edge.training.device import Tensors
from csg_edge.training.device_batches import batches_on

LOG_EVERY = 20
CHECKPOINT = "checkpoint.safetensors"
ENDLESS = 1 << 40  # batches of a run that ends by the clock


@dataclass(frozen=True)
class LoopConfig:
    """Everything that decides the outcome of a run, given its data; stored in every checkpoint."""

    iterations: int  # of the whole run; where `minutes` is not 0, it counts instead
    batch: int = 16
    learning_rate: float = 4e-4
    warmup: int = 200
    decay: float = 0.35  # share of the run in which the learning rate falls to zero
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    precision: str = "fp32"  # or bf16
    minutes: float = 0.0  # of training, interruptions left out; then the learning rate follows the clock

    def __post_init__(self) -> None:
        for name, right in (
            ("iterations", self.iterations >= 1),
            ("batch", self.batch >= 1),
            ("learning_rate", 0.0 < self.learning_rate < math.inf),
            ("warmup", self.warmup >= 1),
            ("decay", 0.0 <= self.decay <= 1.0),
            ("ema", 0.0 <= self.ema < 1.0),
            ("clip", self.clip > 0.0),
            ("seed", 0 <= self.seed <= MAX_SEED),
            ("precision", self.precision in ("fp32", "bf16")),
            ("minutes", 0.0 <= self.minutes < math.inf),
        ):
            if not right:
                raise TrainingError(f"{name} = {getattr(self, name)}: out of range; see docs/training.md")

    def rate(self, iteration: int, seconds: float = 0.0) -> float:
        """Warm-up, constant, cosine fall; by iterations, or by the seconds of training where `minutes` are given.

        The constant part lets a resumed run be made longer (Haegele et al., arXiv 2405.18392).
        """
        done, end = (seconds, 60.0 * self.minutes) if self.minutes else (float(iteration), float(self.iterations))
        start = end * (1.0 - self.decay)
        fall = min(max((done - start) / max(end - start, 1.0), 0.0), 1.0)
        return self.learning_rate * min((iteration + 1) / self.warmup, 1.0) * 0.5 * (1.0 + math.cos(math.pi * fall))

    def over(self, iteration: int, seconds: float) -> bool:
        """Whether the run has come to its end."""
        return seconds >= 60.0 * self.minutes if self.minutes else iteration >= self.iterations


@dataclass
class TrainingState:
    """What a checkpoint holds."""

    network: nn.Module
    ema: dict[str, Tensor]
    optimizer: torch.optim.AdamW
    iteration: int = 0
    recent: list[float] = field(default_factory=list)  # losses since the last row of losses.csv
    seconds: float = 0.0  # of training


def start(network: nn.Module, config: LoopConfig) -> TrainingState:
    """The state before the first iteration; the EMA starts at the weights."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    return TrainingState(
        network, {name: value.detach().clone() for name, value in network.state_dict().items()}, optimizer
    )


def start_or_resume(network: nn.Module, config: LoopConfig, directory: Path) -> TrainingState:
    """The state in `directory`, or that before the first iteration. Raises TrainingError as `load_checkpoint` does."""
    state = start(network, config)
    checkpoint = directory / CHECKPOINT
    if checkpoint.exists():
        load_checkpoint(checkpoint, state, config)
    return state


def fit(
    state: TrainingState,
    loss: Callable[[int], Tensor],
    config: LoopConfig,
    *,
    directory: Path,
    label: str,
    checkpoint_seconds: float = 120.0,
    after: Callable[[int], None] = lambda iteration: None,
) -> bool:
    """Run `loss(iteration)` to the configured end; returns False when stopped early by Ctrl-C or SIGTERM.

    Where `config.minutes` are given, the end is theirs: what an earlier run of the same directory took counts.

    `after` is called with the number of iterations done, after each; it may look at the state but not change it.

    The last checkpoint is always a whole file. Raises TrainingError when the loss is not finite; the last good
    checkpoint stays.
    """
    checkpoint = directory / CHECKPOINT
    log = LossLog(directory, state, config.batch)
    progress = Progress(label, 0 if config.minutes else config.iterations, done=state.iteration, unit="iterations")
    saved = begun = time.monotonic()
    earlier = state.seconds
    with stop_requested() as stopped:
        while not config.over(state.iteration, state.seconds) and not stopped():
            rate = config.rate(state.iteration, state.seconds)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            value = loss(state.iteration)
            if not torch.isfinite(value):
                raise TrainingError(
                    f"loss is {value.item()} at iteration {state.iteration}; {checkpoint} holds the last good state: "
                    "lower --learning-rate and run the same command again"
                )
            state.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
            state.optimizer.step()
            _average(state, config.ema)
            state.iteration += 1
            log.add(state.iteration, value.item(), rate)
            after(state.iteration)
            state.seconds = earlier + time.monotonic() - begun
            left = 60.0 * config.minutes - state.seconds if config.minutes else None
            progress.advance(left=left, note=log.note())
            if time.monotonic() - saved > checkpoint_seconds:
                save_checkpoint(checkpoint, state, config)
                saved = time.monotonic()
    save_checkpoint(checkpoint, state, config)
    log.close()
    if config.minutes:
        progress.say(f"{state.iteration} iterations, {state.iteration * config.batch} images in "
                     f"{state.seconds / 60:.1f} of {config.minutes:g} minutes")  # fmt: skip
    return config.over(state.iteration, state.seconds)


def fit_on_batches(
    state: TrainingState,
    source: BatchSource,
    loss: Callable[[int, Tensors], Tensor],
    config: LoopConfig,
    *,
    device: torch.device,
    directory: Path,
    label: str,
    after: Callable[[int], None] = lambda iteration: None,
) -> bool:
    """`fit` on batches of labelled sets, prepared ahead; at the end the network holds the averaged weights.

    Returns and raises as `fit` does.
    """
    batches = batches_on(device, source).stream(state.iteration, ENDLESS if config.minutes else config.iterations)

    def of_batch(iteration: int) -> Tensor:
        index, batch = next(batches)
        if index != iteration:
            raise RuntimeError(f"batch {index} at iteration {iteration}")
        return loss(iteration, batch)

    finished = fit(state, of_batch, config, directory=directory, label=label, after=after)
    state.network.load_state_dict(state.ema)
    return finished


@torch.no_grad()
def _average(state: TrainingState, decay: float) -> None:
    # A short memory at first: early weights would otherwise linger in a short run.
    decay = min(decay, (1.0 + state.iteration) / (10.0 + state.iteration))
    values = state.network.state_dict()
    numbers = [name for name, value in values.items() if value.is_floating_point()]
    # All at once: on a GPU some hundred small kernels would take longer than what they do.
    torch._foreach_lerp_([state.ema[name] for name in numbers], [values[name] for name in numbers], 1.0 - decay)
    for name in values.keys() - set(numbers):  # a batch norm's counter
        state.ema[name].copy_(values[name])


def save_checkpoint(path: Path, state: TrainingState, config: LoopConfig) -> None:
    """Write weights, EMA and optimiser moments to one file, aside first, then renamed."""
    tensors = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in state.ema.items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # One key: safetensors writes several in no fixed order, and equal states should be equal files.
    run = {"iteration": state.iteration, "recent": state.recent, **_elapsed(state, config), "config": _stored(config)}
    metadata = {"run": json.dumps(run)}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with written_whole(path) as aside:
            save_file(tensors, aside, metadata)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: cannot save ({error}); free disk space and run the same command again") from None


def _elapsed(state: TrainingState, config: LoopConfig) -> dict[str, float]:
    """The time a run has taken, where it counts; equal states of other runs should be equal files."""
    return {"seconds": state.seconds} if config.minutes else {}


def _stored(config: LoopConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name != "minutes" or value}


def load_checkpoint(path: Path, state: TrainingState, config: LoopConfig) -> None:
    """Restore a state in place. Only the length of the run may differ from that of the run that wrote it.

    Raises TrainingError for an unreadable file or another configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            run = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path}: unreadable checkpoint ({error}); delete it to start afresh") from None
    stored = LoopConfig(**run["config"])
    if bool(stored.minutes) != bool(config.minutes):
        raise TrainingError(
            f"{path}: of a run by the {'clock' if stored.minutes else 'number of iterations'}; end it so, or use "
            "another --out"
        )
    if replace(stored, iterations=config.iterations, minutes=config.minutes) != config:
        changed = [
            name
            for name, value in asdict(config).items()
            if value != asdict(stored)[name] and name not in ("iterations", "minutes")
        ]
        raise TrainingError(f"{path}: made with other {', '.join(changed)}; use the same options or another --out")
    try:
        state.network.load_state_dict(_under(tensors, "network."))
    except RuntimeError:
        raise TrainingError(f"{path}: a network of another shape; use the same options or another --out") from None
    state.ema = {name: value.to(state.ema[name].device) for name, value in _under(tensors, "ema.").items()}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        index, field = name.split(".", 1)
        moments.setdefault(int(index), {})[field] = value
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    state.iteration, state.recent = run["iteration"], run.get("recent", [])
    state.seconds = run.get("seconds", 0.0)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop can honour between two iterations."""
    asked = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    previous = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


class LossLog:
    """`losses.csv`: iteration, mean loss of the last LOG_EVERY iterations, learning rate, images a second.

    The same goes to TensorBoard. The pace of a window that another process began is not known and left empty.
    """

    COLUMNS = ("iteration", "loss", "learning_rate", "images_per_second")

    def __init__(self, directory: Path, state: TrainingState, batch: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path, self.mean = directory / "losses.csv", math.nan  # no mean before the first LOG_EVERY iterations
        self._recent, self._batch, self._pace = state.recent, batch, math.nan
        self._begun = math.nan if state.recent else time.monotonic()
        rows = list(csv.reader(self.path.open(newline="")))[1:] if self.path.exists() and state.iteration else []
        with self.path.open("w", newline="") as file:
            # Rows written after the last checkpoint will be written again.
            csv.writer(file).writerows([self.COLUMNS, *(row for row in rows if int(row[0]) <= state.iteration)])
        self._board = _summary_writer(directory / "tensorboard", state.iteration)

    def add(self, iteration: int, loss: float, rate: float) -> None:
        self._recent.append(loss)
        if iteration % LOG_EVERY == 0:
            now = time.monotonic()
            self._pace = len(self._recent) * self._batch / max(now - self._begun, 1e-9)
            self._begun = now
            self.mean = sum(self._recent) / len(self._recent)
            self._recent.clear()
            pace = "" if math.isnan(self._pace) else f"{self._pace:.1f}"
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerow([iteration, f"{self.mean:.6f}", f"{rate:.3e}", pace])
            if self._board:
                self._board.add_scalar("loss", self.mean, iteration)
                self._board.add_scalar("learning_rate", rate, iteration)
                if pace:
                    self._board.add_scalar("images_per_second", self._pace, iteration)

    def note(self) -> str:
        """What a line of progress says beside the iterations."""
        known = [f"{self._pace:.1f} images/s"] * (not math.isnan(self._pace))
        return ", ".join([*known, *([f"loss {self.mean:.4f}"] * (not math.isnan(self.mean)))])

    def close(self) -> None:
        if self._board:
            self._board.close()


def _summary_writer(directory: Path, iteration: int) -> Any:
    """TensorBoard's writer, or None where TensorBoard is not installed: losses.csv holds the same numbers."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=iteration or None)

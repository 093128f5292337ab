"""Progress of long work on stderr: a moving line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

PLAIN_SECONDS = 30.0
TERMINAL_SECONDS = 0.2


class Progress:
    """Counts units of work towards a total, starting at `done` after a resume; a total of 0 is not known."""

    def __init__(self, label: str, total: int, *, done: int = 0, unit: str = "") -> None:
        self.label, self.total, self.unit = label, total, unit
        self._done = self._start_done = done
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr is not None and sys.stderr.isatty()  # None where a service has closed it

    def advance(self, count: int = 1, *, left: float | None = None, note: str = "") -> None:
        """left: seconds to the end, where something else than the pace decides it."""
        self._done += count
        now = time.monotonic()
        wait = TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS
        last = bool(self.total) and self._done >= self.total
        if now - self._shown < wait and not last:
            return
        self._shown = now
        rate = (self._done - self._start_done) / max(now - self._start, 1e-9)
        if left is None:
            left = (self.total - self._done) / rate if rate > 0 and self.total else 0.0
        counted = f"{self._done}/{self.total}" if self.total else str(self._done)
        line = f"{self.label}: {counted} {self.unit}".rstrip()
        line += f", {rate:.2f}/s, {_clock(max(left, 0.0))} left" + (f", {note}" if note else "")
        self._print(line, end="" if self._terminal and not last else "\n")

    def say(self, text: str) -> None:
        """A line of its own, at the end."""
        self._print(f"{self.label}: {text}", end="\n")

    def _print(self, line: str, *, end: str) -> None:
        if sys.stderr is not None:
            print(("\r\033[K" if self._terminal else "") + line, end=end, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

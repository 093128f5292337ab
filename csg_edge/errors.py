"""Errors a caller can act on: each message says what was wrong, where, and what to do next."""

from __future__ import annotations

import re


class CsgEdgeError(Exception):
    """Base of every error this package raises on purpose. The command line prints it as one line and exits with 2.

    A message is one line whatever a file made it quote: line breaks of every kind become spaces.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(re.sub(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", message))


class InputError(CsgEdgeError):
    """A mask, context, seed or option that cannot be used."""


class BundleError(CsgEdgeError):
    """A bundle that is missing, damaged, or made for another version of csg-edge."""


class RuntimeUnavailableError(CsgEdgeError):
    """A runtime or device that this machine does not have."""


class EngineError(CsgEdgeError):
    """A runtime refused or failed to run an engine."""


class CancelledError(EngineError):
    """An inference that was cancelled before it finished; its outputs are not to be used."""


class TimedOutError(EngineError):
    """An inference that did not finish in the time given. It goes on: wait again, or cancel it."""


class TrainingError(CsgEdgeError):
    """Training or distillation cannot start or go on."""

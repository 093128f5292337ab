"""Who is to blame when a runtime cannot open an engine: the file, the machine, the sandbox or the runtime's version?"""

from __future__ import annotations

import re
from pathlib import Path

from csg_edge.errors import EngineError

# What runtimes say, and the remedy that fits; the first that matches is taken.
REMEDIES = (
    (r"procfs|/proc\b", "mount /proc in the sandbox or container, or choose another runtime"),
    (r"bad_alloc|out of memory|cannot allocate|failed to allocate|std::length_error", "free memory or raise its limit"),
    (r"permission denied|operation not permitted|read-only", "mend the permissions of the file and its folder"),
    (r"no such file|does not exist|cannot open (?:model )?file|could not open", "copy the whole bundle again"),
    (r"too many open files|no space left", "free what the system is short of and try again"),
    (
        r"unable to read the model|protobuf|parsing|invalid model|corrupt|truncat|xml|unexpected end|deserializ",
        "copy or export the file again",
    ),
    (
        r"ir version|opset|not implemented|unsupported|no (?:op|kernel)|unknown op",
        "update the runtime, or choose another",
    ),
)
_SIGNATURE = r"(?:[\w:<>~]+ ?[\w:<>~]*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*(?:const)?)?"
_PLACE = r"\S*\.(?:cc|cpp|h|hpp):\d+:?\s*" + _SIGNATURE
OTHERWISE = "csg-edge verify says whether the file is whole; if it is, update the runtime or choose another"


def cannot_open(path: Path, runtime: str, error: BaseException) -> EngineError:
    """The error to raise: the runtime's own first sentence, and the remedy that fits what it says."""
    if not path.exists():
        return EngineError(f"{path}: no such file; copy the whole bundle again")
    said = str(error).strip() or type(error).__name__
    remedy = next((text for pattern, text in REMEDIES if re.search(pattern, said, re.IGNORECASE)), OTHERWISE)
    return EngineError(f"{path}: {runtime} cannot open it ({first_sentence(said)}); {remedy}")


def first_sentence(text: str) -> str:
    """What a runtime's message says, without its codes, source files, signatures and addresses."""
    parts = [part for line in text.splitlines() for part in re.split(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", line)]
    parts = [part for part in (_plain(part) for part in parts) if part]
    # The cause comes last in nested messages, after what was being done.
    sentence = parts[-1] if parts else " ".join(text.split())
    sentence = re.split(r"(?<=[.!?])\s", sentence)[0].rstrip(". ")
    return sentence if len(sentence) <= 160 else sentence[:157] + "..."


def _plain(text: str) -> str:
    """One part of a message; empty if it is nothing but a place in the source or a headline."""
    text = re.sub(r"^Exception (?:during initialization|from \S+)\s*:?\s*", "", text.strip())
    text = re.sub(_PLACE, "", text)
    return "" if "::" in text and "(" in text else text.strip(" :")

"""Leaks in a valgrind report that this library made: python ours_lost.py REPORT. Exit code 1 if there are any.

A leak is ours if the first function on its stack that is no allocator and not of the standard library is ours; what a
runtime keeps to itself is its own.
"""

import re
import sys
from pathlib import Path

ALLOCATORS = re.compile(r": (malloc|calloc|realloc|operator new|std::|__gnu_cxx|void std::|strdup)")
OURS = re.compile(r"libcsg_edge|csg_edge::|csg_edge_\w+ \(|stress\.cpp")

found = []
for block in re.split(r"^==\d+== *\n", Path(sys.argv[1]).read_text(encoding="utf-8"), flags=re.MULTILINE):
    if "definitely lost" not in block:
        continue
    frames = [line for line in block.splitlines() if re.search(r"==\s+(at|by) 0x", line)]
    cause = next((line for line in frames if not ALLOCATORS.search(line)), "")
    if OURS.search(cause):
        found.append(block)
print("\n".join(found), end="")
sys.exit(bool(found))

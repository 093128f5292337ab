"""The studio as its user feels it: from a stroke to the new image on the screen, and memory over many strokes.

    python benchmarks/studio.py [--strokes 200] [--memory 2000] [--out benchmarks/results/studio.json]

Chromium paints short strokes at random places; the page itself takes the time from the pointer's event to the frame
that shows the image of what was painted. Needs the dev extra and Debian's chromium.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from csg_edge.machine import processor_name
from csg_edge.storage import write_json

# A promise of the time that the next image took, kept in the page: asking again and again would take what is measured.
NEXT = """() => { const root = document.documentElement; window.next = new Promise((done) => {
    const watch = new MutationObserver(() => { watch.disconnect(); done(root.dataset.latency); });
    watch.observe(root, {attributeFilter: ["data-frame"]}); }); }"""


def resident_mb(process: int) -> float:
    """Resident memory of a process in megabytes (proc(5))."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return round(int(found[1]) / 1000, 1)


class Painter:
    """A page of the studio, painted on."""

    def __init__(self, browser: Any, address: str) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready=yes][data-strip]", timeout=120_000)
        self._box = self.page.locator("#painted").bounding_box()
        self._random = random.Random(0)
        self._session = self.page.context.new_cdp_session(self.page)

    def stroke(self) -> float:
        """Paint one short stroke; the milliseconds until its image was shown."""
        x, y = (self._random.uniform(0.1, 0.9) for _ in range(2))
        self.page.keyboard.press(str(self._random.randrange(7)))
        self.page.mouse.move(self._box["x"] + x * self._box["width"], self._box["y"] + y * self._box["height"])
        self.page.evaluate(NEXT)
        self.page.mouse.down()
        self.page.mouse.up()
        return float(self.page.evaluate("window.next"))

    def heap_mb(self) -> float:
        """The page's JavaScript heap after a collection, in megabytes."""
        self._session.send("HeapProfiler.collectGarbage")
        return round(self._session.send("Runtime.getHeapUsage")["usedSize"] / 1e6, 2)


def main() -> None:
    """Paint, print the figures, and write them with --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strokes", type=int, default=200)
    parser.add_argument("--memory", type=int, default=2000)
    parser.add_argument("--bundle", default="msk-256")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    command = [sys.executable, "-m", "csg_edge", "studio", "--port", "0", "--bundle", given.bundle]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with sync_playwright() as started:
            browser = started.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            painter = Painter(browser, address)
            engine = painter.page.locator("#engine-shown").inner_text()
            took = [painter.stroke() for _ in range(given.strokes)]
            memory = []
            for count in range(given.strokes, given.memory + 1):
                if count > given.strokes:
                    painter.stroke()
                if count % 600 == 0 or count in (given.strokes, given.memory):
                    seen = {"server_mb": resident_mb(server.pid), "page_heap_mb": painter.heap_mb()}
                    memory.append({"strokes": count, **seen})
            browser.close()
    finally:
        server.terminate()
        server.wait()
    found = {
        "machine": processor_name(), "engine": engine, "strokes": len(took),
        "stroke_to_screen_ms": {name: round(float(np.quantile(took, share)), 1)
                                for name, share in (("median", 0.5), ("p95", 0.95), ("max", 1.0))},
        "memory": memory,
    }  # fmt: skip
    print(json.dumps(found, indent=2))
    if given.out:
        write_json(given.out, found)


if __name__ == "__main__":
    main()

"""A studio of its own process, and questions to it as any program could ask them."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Studio:
    """A studio that serves. address: with its token."""

    address: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        port = urlsplit(self.address).port
        assert port is not None
        return port

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]

    def ask(
        self, path: str, body: bytes | None = None, *, token: str | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer. token: None: the right one; headers: with _ for -."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            given = {"X-Studio-Token": self.token if token is None else token}
            given |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET" if body is None else "POST", path, body, given)
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()


@contextmanager
def studio(*arguments: object, port: int = 0) -> Iterator[Studio]:
    """Run `csg-edge studio ARGUMENTS` until the block ends."""
    command = [sys.executable, "-m", "csg_edge", "studio", "--port", str(port), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http\S+", line)
        assert found, line + process.stderr.read()
        yield Studio(found[0], process)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
        process.stderr.close()


def wish(mask: Image, context: Image, **text: object) -> bytes:
    """The body of a question for an image."""
    words = {"seed": 0, "steps": 1, "engine": "openvino:CPU:bf16", "vary": "", "fibre": "", **text}
    data = json.dumps(words).encode()
    return len(data).to_bytes(4, "little") + data + mask.tobytes() + context.tobytes()


def read(answer: bytes, side: int = 256) -> tuple[dict[str, object], Image]:
    """Text and pictures (N, side, side) of an answer."""
    length = int.from_bytes(answer[:4], "little")
    pictures = np.frombuffer(answer, np.uint8, offset=4 + length).reshape(-1, side, side)
    return json.loads(answer[4 : 4 + length]), pictures


def colour_png() -> bytes:
    """A file that is no mask."""
    picture = np.dstack([np.eye(64, dtype=np.uint8) * level for level in (1, 90, 200)])
    return bytes(cv2.imencode(".png", picture)[1])

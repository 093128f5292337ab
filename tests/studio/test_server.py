"""Who may ask the studio, and what it says to wrong questions. A real server, asked over its socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from command import run
from studios import Image, Studio, read, studio, wish

import csg_edge
from csg_edge.datasets.phantom import make_phantom
from csg_edge.studio.server import PAGES

SCENE = make_phantom(1)


def asked(served: Studio, seed: int) -> Image:
    return read(served.ask("/api/image", wish(SCENE.mask, SCENE.image, seed=seed))[1])[1][0]


@pytest.fixture(scope="module")
def served() -> Iterator[Studio]:
    with studio() as found:
        yield found


class TestWhoMayAsk:
    @pytest.mark.parametrize("path", ["/", "/studio.js", "/api/about", "/api/scenes/phantom-1"])
    @pytest.mark.parametrize("token", ["", "x" * 32, "\xe9"])
    def test_no_token(self, served: Studio, path: str, token: str) -> None:
        status, body, headers = served.ask(path, token=token)
        assert status == 403 and b"no token" in body and "set-cookie" not in headers

    def test_a_cookie_shows_pages_but_asks_nothing(self, served: Studio) -> None:
        status, body, headers = served.ask(f"/?token={served.token}", token="")
        assert status == 200 and b"csg-edge studio" in body
        assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
        cookie = headers["set-cookie"].partition(";")[0]
        assert served.ask("/studio.js", token="", Cookie=cookie)[0] == 200
        assert served.ask("/api/about", token="", Cookie=cookie)[0] == 403
        assert served.ask(f"/api/about?token={served.token}", token="")[0] == 403

    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
    def test_another_origin(self, served: Studio, origin: str) -> None:
        status, body, _ = served.ask("/api/about", Origin=origin)
        assert status == 403 and b"another origin" in body

    def test_its_own_origin(self, served: Studio) -> None:
        assert served.ask("/api/about", Origin=f"http://127.0.0.1:{served.port}")[0] == 200

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1.evil:{port}"])
    def test_another_name(self, served: Studio, host: str) -> None:
        assert served.ask("/api/about", Host=host.format(port=served.port))[0] == 403

    @pytest.mark.parametrize(
        "path",
        ["/../server.py", "/..%2fserver.py", "/static/../../desk.py", "/%2e%2e/desk.py", "//etc/passwd", "/index.html",
         "/studio.js/", "/studio.js%00", "/api/scenes/..%2f..%2fmanifest.json", "/api/contexts/-1", "/api/contexts/0",
         "/api/nothing"],
    )  # fmt: skip
    def test_tricks_with_paths(self, served: Studio, path: str) -> None:
        status, body, _ = served.ask(path)
        assert status in (404, 422) and len(body) < 300 and b"root:" not in body

    def test_pages_are_told_to_load_nothing_from_elsewhere(self, served: Studio) -> None:
        for page in ("", *PAGES):
            _, body, headers = served.ask(f"/{page}")
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"
            assert b"http://" not in body and b"https://" not in body


class TestImages:
    def test_same_bytes_as_the_generator(self, served: Studio) -> None:
        with csg_edge.load("msk-256", runtime="openvino", precision="bf16") as generator:
            for seed in (0, 2**63, 2**64 - 1):
                status, answer, _ = served.ask("/api/image", wish(SCENE.mask, SCENE.image, seed=seed))
                assert status == 200
                text, (image, labels) = read(answer)
                assert text["engine"] == "openvino:CPU:bf16"
                assert np.array_equal(labels, SCENE.mask)
                assert np.array_equal(image, generator.generate_one(SCENE.mask, SCENE.image, seed))

    def test_two_pages_at_once(self, served: Studio) -> None:
        seeds = [k % 5 for k in range(20)]
        with ThreadPoolExecutor(4) as pages:
            found = list(pages.map(lambda seed: asked(served, seed), seeds))
        for seed, image in zip(seeds, found, strict=True):
            assert np.array_equal(image, asked(served, seed))

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b"", "not as long as its parts"),
            (b"\xff\xff\xff\xff", "not as long as its parts"),
            (wish(SCENE.mask, SCENE.image)[:-1], "not as long as its parts"),
            (wish(SCENE.mask, SCENE.image, seed="1"), "lacks one of seed"),
            (wish(SCENE.mask, SCENE.image, seed=True), "lacks one of seed"),
            (wish(SCENE.mask, SCENE.image, seed=2**64), "seed"),
            (wish(SCENE.mask, SCENE.image, vary="x" * 9000), "MB|not as long"),
            (wish(np.full_like(SCENE.mask, 77), SCENE.image), "77"),
            (wish(SCENE.mask, SCENE.image, vary="remove:bone"), "bone is not in this mask"),
            ((5).to_bytes(4, "little") + b"[[[[[" + bytes(2 * 65536), "holds no JSON"),
            (bytes(1 << 20), "at most 0 MB"),
        ],
    )
    def test_wrong_questions(self, served: Studio, body: bytes, said: str) -> None:
        status, answer, _ = served.ask("/api/image", body)
        assert status == 422
        assert re.search(said, answer.decode()), answer

    def test_a_file_that_is_too_large_is_not_read(self, served: Studio) -> None:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            head = (
                f"POST /api/read?kind=context&name=big.png HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
                f"X-Studio-Token: {served.token}\r\nContent-Length: 30000000\r\n\r\n"
            )
            connection.sendall(head.encode())
            answer = b""
            while b"20 MB" not in answer and (more := connection.recv(4096)):
                answer += more
        assert b" 422 " in answer and b"big.png: 30 MB; give at most 20 MB" in answer


class TestStarting:
    def test_a_port_that_is_taken(self, served: Studio) -> None:
        done = run("studio", "--port", served.port)
        assert done.returncode == 2
        assert f"--port {served.port}" in done.stderr and done.stderr.count("\n") == 1

    def test_contexts_that_are_not_there(self) -> None:
        done = run("studio", "--contexts", "/nowhere", "--port", 0)
        assert done.returncode == 2 and "/nowhere" in done.stderr

    def test_interrupted(self) -> None:
        with studio() as found:
            found.process.send_signal(signal.SIGINT)
            assert found.process.wait(20) == 130

    def test_without_the_extra(self) -> None:
        code = ("import sys; sys.modules.update(dict.fromkeys(['starlette', 'uvicorn'])); "
                "from csg_edge.cli.main import main; main(['studio'])")  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
        assert done.returncode == 2
        assert "pip install 'csg-edge[studio]'" in done.stderr

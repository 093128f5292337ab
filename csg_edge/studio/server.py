"""The studio's web server: who may ask, what is asked, and what is sent back.

Pictures travel as they are in memory: four bytes with the length of a JSON text (little endian), the text, then arrays
of bytes. A page needs the token of its address, its own origin and a host name that is ours, so that neither another
user nor another page in the same browser can ask.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from csg_edge.errors import CsgEdgeError, InputError
from csg_edge.studio.desk import LARGEST_UPLOAD, Desk, Wish, zipped

STATIC = Path(__file__).parent / "static"
PAGES = ("studio.js", "painter.js", "studio.css")
LOCAL = ("127.0.0.1", "localhost", "[::1]")
ANY_HOST = ("0.0.0.0", "::")  # asked for: reached by names that cannot be known here
LARGEST_TEXT = 8192  # bytes of the JSON text of a wish
TOKEN_HEADER = "x-studio-token"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets through what knows the token, names this host and comes from no other origin."""

    def __init__(self, app: ASGIApp, *, token: str, host: str, port: int) -> None:
        self._app, self._token, self._port = app, token.encode(), port
        self._cookie = f"csg-edge-studio-{port}"  # cookies do not tell ports apart
        self._hosts = None if host in ANY_HOST else {f"{name}:{port}" for name in (*LOCAL, host)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if reason := self._why_not(request):
            await refused(reason)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if not self._asks(request):
                    value = f"{self._cookie}={self._token.decode()}; HttpOnly; SameSite=Strict; Path=/"
                    headers.append("set-cookie", value)
            await send(message)

        await self._app(scope, receive, with_headers)

    def _asks(self, request: Request) -> bool:
        return request.url.path.startswith("/api/")

    def _why_not(self, request: Request) -> str:
        here, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self._hosts is not None and here not in self._hosts:
            return "this is not the studio's name; open the address that csg-edge studio printed"
        if origin is not None and urlsplit(origin).netloc != here:
            return "asked for by a page of another origin"
        known = [request.headers.get(TOKEN_HEADER, "")]
        if not self._asks(request):
            known += [request.query_params.get("token", ""), request.cookies.get(self._cookie, "")]
        if not any(hmac.compare_digest(given.encode(), self._token) for given in known):
            return "no token, or that of an earlier start; open the address that csg-edge studio printed"
        return ""


def application(desk: Desk, *, token: str, host: str, port: int) -> Starlette:
    """The studio of a desk, for a server at host and port. token: what every request must know."""

    async def index(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def page(request: Request) -> Response:
        name = request.path_params["name"]
        return FileResponse(STATIC / name) if name in PAGES else refused("there is no such page", status=404)

    async def about(request: Request) -> Response:
        return JSONResponse(desk.about())

    async def scene(request: Request) -> Response:
        return packet({}, *await run_in_threadpool(desk.scene, request.path_params["name"]))

    async def context(request: Request) -> Response:
        return packet({}, await run_in_threadpool(desk.context, request.path_params["index"]))

    async def read(request: Request) -> Response:
        kind, name = (request.query_params.get(key, "") for key in ("kind", "name"))
        data = await body_of(request, LARGEST_UPLOAD, what=name[:80] or "file")
        return packet({}, await run_in_threadpool(desk.read, kind, name, data))

    async def image(request: Request) -> Response:
        made = await run_in_threadpool(desk.make, await wish_of(request))
        text = {"engine": made.engine, "milliseconds": round(made.milliseconds, 2)}
        return packet(text, made.image, made.labels)

    async def commands(request: Request) -> Response:
        wish = await wish_of(request)
        made = await run_in_threadpool(desk.make, wish)
        return JSONResponse(desk.commands(wish, made.engine))

    async def save(request: Request) -> Response:
        wish = await wish_of(request)
        if request.query_params.get("into") == "folder":
            return JSONResponse({"folder": await run_in_threadpool(desk.save, wish)})
        return Response(zipped(await run_in_threadpool(desk.packed, wish)), media_type="application/zip")

    async def wish_of(request: Request) -> Wish:
        height, width = desk.size
        body = await body_of(request, 4 + LARGEST_TEXT + 2 * height * width, what="the request")
        return read_wish(body, desk.size)

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=422)

    found = Starlette(
        routes=[
            Route("/", index),
            Route("/api/about", about),
            Route("/api/scenes/{name}", scene),
            Route("/api/contexts/{index:int}", context),
            Route("/api/read", read, methods=["POST"]),
            Route("/api/image", image, methods=["POST"]),
            Route("/api/commands", commands, methods=["POST"]),
            Route("/api/save", save, methods=["POST"]),
            Route("/{name}", page),
        ],
        middleware=[Middleware(Guard, token=token, host=host, port=port)],
        exception_handlers={CsgEdgeError: failed},
    )
    found.router.redirect_slashes = False
    return found


def refused(reason: str, *, status: int = 403) -> Response:
    """An answer that says why not."""
    return JSONResponse({"error": reason}, status_code=status)


async def body_of(request: Request, most: int, *, what: str) -> bytes:
    """The body of a request, of at most `most` bytes. Raises InputError for more, before it is read."""
    told = request.headers.get("content-length", "")
    if not told.isdecimal():
        raise InputError(f"{what}: without a length; send it whole")
    if int(told) > most:
        raise InputError(f"{what}: {int(told) / 1e6:.0f} MB; give at most {most / 1e6:.0f} MB")
    try:
        return await request.body()
    except ClientDisconnect:
        raise InputError(f"{what}: broken off; send it again") from None


def packet(text: dict[str, Any], *arrays: NDArray[np.uint8]) -> Response:
    """An answer with a JSON text and arrays."""
    data = json.dumps(text).encode()
    parts = [len(data).to_bytes(4, "little"), data, *(np.ascontiguousarray(array).tobytes() for array in arrays)]
    return Response(b"".join(parts), media_type="application/octet-stream")


def read_wish(body: bytes, size: tuple[int, int]) -> Wish:
    """A wish from the body of a request. Raises InputError for anything else."""
    pixels = size[0] * size[1]
    length = int.from_bytes(body[:4], "little")
    if length > LARGEST_TEXT or len(body) != 4 + length + 2 * pixels:
        raise InputError("the request is not as long as its parts; load the page again")
    try:
        text = json.loads(body[4 : 4 + length])
    except (ValueError, RecursionError):
        raise InputError("the request holds no JSON; load the page again") from None
    kinds: dict[str, type] = {"seed": int, "steps": int, "engine": str, "vary": str, "fibre": str}
    if not isinstance(text, dict) or not all(type(text.get(key)) is kind for key, kind in kinds.items()):
        raise InputError(f"the request lacks one of {', '.join(kinds)}; load the page again")
    mask, context = np.frombuffer(body, np.uint8, offset=4 + length).reshape(2, *size)
    return Wish(mask, context, **{key: text[key] for key in kinds})


def serve(desk: Desk, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until interrupted. port 0: a free one. announce: called with the address once it can be opened.

    Raises InputError for a port that is taken or a host that is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"--host {host} --port {port}: {error}; choose others") from None
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        listener.listen()
        announce(f"http://{shown}:{port}/?token={token}")
        config = uvicorn.Config(
            application(desk, token=token, host=host, port=port), log_level="error", access_log=False, lifespan="off",
            server_header=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])

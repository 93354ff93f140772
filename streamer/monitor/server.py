"""The page's server: in the supervisor's event loop, on loopback, read-only.

`/` is the page, `/events` sends what is new once a second (server-sent events), `/history` the last minutes,
`/display/NUMBER` has what is to be seen of one of the last events. `/targets` is for Prometheus' HTTP service
discovery, `/metrics` tells of the run as a whole, `/healthz` is for whoever keeps it alive. Beyond loopback, where the
processes' own pages cannot be reached, they are passed on at `/metrics/STAGE-REPLICA`.
"""

import asyncio
import contextlib
import json
import math
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.resources import files
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streamer.child import fetched
from streamer.config import MonitorConfig
from streamer.errors import StreamerError, UsageError
from streamer.monitor.drawing import Drawer

Endpoint = Callable[[Request], Awaitable[Response]]

ASSETS = {
    "": ("page.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "chain.js": ("chain.js", "text/javascript"),
    "charts.js": ("charts.js", "text/javascript"),
    "display.js": ("display.js", "text/javascript"),
    "quality.js": ("quality.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
    "uplot.js": ("uplot.js", "text/javascript"),
    "uplot.css": ("uplot.css", "text/css"),
    "favicon.svg": ("favicon.svg", "image/svg+xml"),
}
MOST_VIEWERS = 32
"""Pages that are told of news at a time; who comes then is asked to come later."""
COOKIE = "streamer"
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class News:
    """What is new, for whoever looks; those who are slow miss some."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[str]] = set()
        self.viewers = 0
        self.over = False

    def tell(self, text: str) -> None:
        waiting, self._waiting = self._waiting, set()
        for one in waiting:
            if not one.done():
                one.set_result(text)

    def close(self) -> None:
        """The run is over, and nobody is kept waiting."""
        self.over = True
        self.tell("")

    async def next(self) -> str:
        one: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.add(one)
        try:
            return await one
        finally:
            self._waiting.discard(one)


class _Guard:
    """GET only; with a token where there is one; and headers that keep pages of others out."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        refused: Response | None = None
        if scope["method"] not in ("GET", "HEAD"):
            refused = PlainTextResponse("only GET is answered here\n", 405)
        elif self.token and scope["path"] != "/healthz":
            given = request.query_params.get("token") or request.cookies.get(COOKIE) or ""
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not any(secrets.compare_digest(one.encode(), self.token.encode()) for one in (given, bearer)):
                refused = PlainTextResponse("open the address that the run printed, with its token\n", 403)

        async def secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = dict(SECURITY)
                if self.token and request.query_params.get("token") and refused is None:
                    extra["Set-Cookie"] = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                message["headers"] += [(key.lower().encode(), value.encode()) for key, value in extra.items()]
            await send(message)

        await (refused or self.app)(scope, receive, secured)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the supervisor's."""
        yield


class Page:
    """The page of a run.

    Parameters
    ----------
    snapshot : callable
        What is to be shown now, as plain data.
    history : callable
        The last looks: rows of numbers.
    targets : callable
        For Prometheus: each process's address and labels.
    metrics : callable
        The run's own page of metrics.
    drawer : callable, optional
        Makes who draws events.
    """

    def __init__(
        self,
        config: MonitorConfig,
        snapshot: Callable[[], dict[str, Any]],
        history: Callable[[], dict[str, Any]],
        targets: Callable[[], list[dict[str, Any]]],
        metrics: Callable[[], bytes],
        drawer: Callable[[], Drawer] | None = None,
    ) -> None:
        self.config, self.news = config, News()
        self._snapshot, self._run_metrics = snapshot, metrics
        self._make_drawer, self._drawer = drawer, None  # type: tuple[Callable[[], Drawer] | None, Drawer | None]
        self._targets = targets
        self.token = page_token(config)
        routes = [Route(f"/{name}", self._asset(*asset)) for name, asset in ASSETS.items()]
        routes += [
            Route("/events", self._events),
            *(Route(f"/{name}", _plain(data)) for name, data in (("state", snapshot), ("history", history))),
            Route("/targets", self._reachable),
            Route("/metrics", self._metrics),
            Route("/metrics/{name}", self._passed_on),
            Route("/display/{number:int}", self._display),
            Route("/healthz", self._healthz),
        ]
        hosts = ["127.0.0.1", "localhost", "[::1]", config.host] if config.is_loopback else ["*"]
        guards = [Middleware(_Guard, token=self.token), Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]
        self._app = Starlette(routes=routes, middleware=guards)
        self._socket: socket.socket | None = None

    @property
    def place(self) -> str:
        """Host and port."""
        assert self._socket is not None
        return f"{self.config.host}:{self._socket.getsockname()[1]}"

    @property
    def address(self) -> str:
        """What to open in a browser."""
        if self.config.token_file:
            return f"http://{self.place}/?token=... (what {self.config.token_file} holds)"
        return f"http://{self.place}/{f'?token={self.token}' if self.token else ''}"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while this is entered.

        Raises
        ------
        UsageError
            The port is taken.
        """
        try:
            self._socket = socket.create_server((self.config.host, self.config.port))
        except OSError as error:
            where, why = f"{self.config.host}:{self.config.port}", os.strerror(error.errno or 0)
            raise UsageError(
                f"the page cannot be served on {where} ({why}); "
                "set monitor.host to an address of this machine, and monitor.port to a free port, or to 0 for any"
            ) from None
        given = uvicorn.Config(
            self._app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = _Server(given)
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        try:
            yield
        finally:
            self.news.close()
            if self._drawer is not None:
                await self._drawer.close()
            server.should_exit = True
            await serving
            self._socket.close()

    def tidy(self) -> None:
        """To be called now and then."""
        if self._drawer is not None:
            self._drawer.tidy()

    def tell(self) -> None:
        """There is news."""
        if self.news.viewers:
            self.news.tell(json.dumps(_finite(self._snapshot())))

    @staticmethod
    def _asset(name: str, kind: str) -> Endpoint:
        data = (files("streamer.monitor") / "assets" / name).read_bytes()

        async def answer(_: Request) -> Response:
            return Response(data, media_type=kind)

        return answer

    async def _display(self, request: Request) -> Response:
        number = request.path_params["number"]
        one = next((one for one in self._snapshot().get("events", ()) if one["number"] == number), None)
        if one is None or self._make_drawer is None:
            return PlainTextResponse("that event is not among the last ones\n", 404)
        self._drawer = self._drawer or self._make_drawer()
        try:
            return JSONResponse(_finite(await self._drawer.draw(one)))
        except StreamerError as error:
            return PlainTextResponse(f"{error}\n", 503)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._run_metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _reachable(self, request: Request) -> Response:
        """Where who asks finds each process: beyond loopback here, by the name that it has for us."""
        targets = self._targets()
        if not self.config.is_loopback:
            for one in targets:
                own = "" if one["targets"] == [self.place] else f"/{_name(one)}"
                one["targets"], one["labels"]["__metrics_path__"] = [request.url.netloc], f"/metrics{own}"
        return JSONResponse(targets)

    async def _passed_on(self, request: Request) -> Response:
        name = request.path_params["name"]
        place = next((one["targets"][0] for one in self._targets() if _name(one) == name), None)
        if place is None or place == self.place:
            return PlainTextResponse(f"{name} is no process of this run\n", 404)
        try:
            page = await asyncio.to_thread(fetched, f"http://{place}/metrics")
        except OSError as error:
            return PlainTextResponse(f"{name} does not answer: {error}\n", 502)
        return Response(page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _: Request) -> Response:
        state = self._snapshot().get("state", "starting")
        return JSONResponse({"state": state}, 200 if state in ("running", "draining") else 503)

    async def _events(self, request: Request) -> Response:
        if self.news.viewers >= MOST_VIEWERS:
            return PlainTextResponse(f"{MOST_VIEWERS} are looking already\n", 503)

        async def lines() -> AsyncIterator[str]:
            self.news.viewers += 1
            try:
                yield f"data: {json.dumps(_finite(self._snapshot()))}\n\n"
                while not self.news.over:
                    text = await self.news.next()
                    yield f"data: {text}\n\n" if text else "event: over\ndata: \n\n"
            finally:
                self.news.viewers -= 1

        return StreamingResponse(lines(), media_type="text/event-stream")


def _name(target: dict[str, Any]) -> str:
    return f"{target['labels']['stage']}-{target['labels']['replica']}"


def page_token(config: MonitorConfig) -> str:
    """What is to be asked for; empty for nothing.

    Raises
    ------
    UsageError
        The file that holds it cannot be read, or is empty.
    """
    if config.token_file is None:
        return config.token or ("" if config.is_loopback else secrets.token_urlsafe(24))
    try:
        token = config.token_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text"
        raise UsageError(f"monitor.token_file: {config.token_file} cannot be read ({why})") from None
    if not token:
        raise UsageError(f"monitor.token_file: {config.token_file} is empty; put a token there")
    return token


def _plain(data: Callable[[], Any]) -> Endpoint:
    async def answer(_: Request) -> Response:
        return JSONResponse(_finite(data()))

    return answer


def _finite(data: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data

"""Serves the pages that the pipeline makes for people: Data Docs below /quality, daily reports below /reports."""

import socket
from typing import Final
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from okx_pipeline.cross_site import LOOPBACK
from okx_pipeline.errors import UsageError
from okx_pipeline.settings import Settings

HOST: Final = "127.0.0.1"
UI_PORT: Final = 3000
_PAGE: Final = "<!doctype html><title>OKX candles</title><p>{}"
_NO_CHECK_YET: Final = "No day is judged yet. The checks start by themselves once a whole day of candles is here."
_NO_REPORT_YET: Final = "The first daily report is written at 01:00 UTC, about the day that has just ended."
_NO_SUCH_PAGE: Final = 'There is no such page. <a href="/">Back to the start</a>'


class _Folder(StaticFiles):
    """The files of a folder that may not exist yet; until it does, none of its pages exists."""

    async def check_config(self) -> None:
        """Accept a missing folder, which the base class answers with a traceback."""


def application(settings: Settings, ui_port: int = UI_PORT) -> Starlette:
    """The pages of a home as an ASGI application; read-only, and only for requests that use a known host name.

    Known are the names of this machine's loopback, and the one in OKX_PAGES_URL.
    """
    quality, reports = settings.quality_folder / "site", settings.reports_folder
    # Behind a proxy the UI is at the root of the same name; see docs/security.md.
    is_here = urlsplit(settings.pages_url).hostname in LOOPBACK
    ui = f"http://{HOST}:{ui_port}/" if is_here else f"{settings.pages_url}/"

    async def home(request: Request) -> Response:
        if (quality / "index.html").is_file():
            return RedirectResponse("/quality/index.html")
        return HTMLResponse(_PAGE.format(_NO_CHECK_YET))

    async def to_ui(request: Request) -> Response:
        return RedirectResponse(ui)

    async def missing(request: Request, problem: Exception) -> Response:
        text = _NO_SUCH_PAGE
        for path, folder, not_yet in (("/quality/", quality, _NO_CHECK_YET), ("/reports/", reports, _NO_REPORT_YET)):
            if request.url.path.startswith(path) and not (folder / "index.html").is_file():
                text = not_yet
        return HTMLResponse(_PAGE.format(text), 404)

    return Starlette(
        routes=[
            Route("/", home),
            # Pages name no address of the UI, as its port may be another tomorrow.
            Route("/quality/ui", to_ui),
            Mount("/quality", _Folder(directory=quality, html=True, check_dir=False)),
            Mount("/reports", _Folder(directory=reports, html=True, check_dir=False)),
        ],
        # Another site may point a name of its own at this server.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=known_names(settings))],
        exception_handlers={404: missing, HTTPException: missing},
    )


def known_names(settings: Settings) -> list[str]:
    """The host names that requests to this server may use: loopback's, and the one in OKX_PAGES_URL."""
    public = urlsplit(settings.pages_url).hostname
    return [HOST, "localhost", *([public] if public else [])]


def serve(settings: Settings, port: int, host: str = HOST, ui_port: int = UI_PORT) -> None:
    """Serve the pages until SIGINT or SIGTERM.

    Parameters
    ----------
    host
        The address to listen on. There is no login: beyond loopback, something else has to keep others out.
    ui_port
        The port of Dagster's UI on this machine, for the links to it.

    Raises
    ------
    UsageError
        If the port is taken, or this machine does not have the address.
    """
    try:
        bound = socket.create_server((host, port))
    except OSError as problem:
        where = "choose another with --port" if host == HOST else f"is {host} an address of this machine?"
        raise UsageError(f"port {port} cannot be used ({problem.strerror}); {where}") from problem
    with bound:
        config = uvicorn.Config(application(settings, ui_port), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[bound])

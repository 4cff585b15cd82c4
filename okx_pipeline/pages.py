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

from okx_pipeline.errors import UsageError
from okx_pipeline.settings import Settings

HOST: Final = "127.0.0.1"
_NOTHING_YET: Final = "<!doctype html><title>OKX candles</title><p>Nothing has been judged yet; come back in a while."


def application(settings: Settings) -> Starlette:
    """The pages of a home as an ASGI application; read-only, and only for who asks for it by a name that is known.

    Those are the names of this machine's loopback, and the one in OKX_PAGES_URL.
    """
    quality = settings.quality_folder / "site"

    async def home(request: Request) -> Response:
        if (quality / "index.html").is_file():
            return RedirectResponse("/quality/index.html")
        return HTMLResponse(_NOTHING_YET)

    async def missing(request: Request, problem: Exception) -> Response:
        return HTMLResponse("<!doctype html><title>not here</title><p>There is no such page.", 404)

    return Starlette(
        routes=[
            Route("/", home),
            # Made when the first day is judged.
            Mount("/quality", StaticFiles(directory=quality, html=True, check_dir=False)),
            Mount("/reports", StaticFiles(directory=settings.reports_folder, html=True, check_dir=False)),
        ],
        # A page of another site may have its name lead here.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=known_names(settings))],
        exception_handlers={404: missing, HTTPException: missing},
    )


def known_names(settings: Settings) -> list[str]:
    """The names by which what listens here may be asked for: loopback's, and the one in OKX_PAGES_URL."""
    public = urlsplit(settings.pages_url).hostname
    return [HOST, "localhost", *([public] if public else [])]


def serve(settings: Settings, port: int, host: str = HOST) -> None:
    """Serve the pages until SIGINT or SIGTERM.

    Parameters
    ----------
    host
        The address to listen on. Nobody is asked who they are: beyond loopback something else has to keep others out.

    Raises
    ------
    UsageError
        If the port is taken, or the address is not this machine's.
    """
    try:
        bound = socket.create_server((host, port))
    except OSError as problem:
        where = "choose another with --port" if host == HOST else f"is {host} an address of this machine?"
        raise UsageError(f"port {port} cannot be used ({problem.strerror}); {where}") from problem
    with bound:
        config = uvicorn.Config(application(settings), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[bound])

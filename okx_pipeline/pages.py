"""Serves the pages that the pipeline makes for people, on loopback: the Data Docs below /quality. Only files."""

import socket
from typing import Final

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
    """The pages of a home as an ASGI application; read-only, and only for who asks for it by a name of this machine."""
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
        ],
        # A page of another site may have its name lead here.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        exception_handlers={404: missing, HTTPException: missing},
    )


def serve(settings: Settings, port: int) -> None:
    """Serve the pages on 127.0.0.1 until SIGINT or SIGTERM.

    Raises
    ------
    UsageError
        If the port is taken.
    """
    try:
        bound = socket.create_server((HOST, port))
    except OSError as problem:
        raise UsageError(f"port {port} cannot be used ({problem.strerror}); choose another with --port") from problem
    with bound:
        config = uvicorn.Config(application(settings), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[bound])

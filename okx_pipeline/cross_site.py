"""Keeps pages of other sites away from what listens on the loopback, where nobody is asked who they are.

A browser asks for whatever any page tells it to, this machine's ports included. It says for which page it does, and by
which name it found the server; what is not one of ours is refused. Programs that are no browsers say neither. What is
served stands elsewhere, and who a person is, is not asked here either.
"""

from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_OWN: Final = frozenset({"same-origin", "none"})
"""What browsers call a request of the page itself, and of a person who typed the address."""

_POLICY_VIOLATION: Final = 1008


class OwnPagesOnly:
    """Refuses what another site's page asks of an application; a link that leads to a page of it is followed.

    Parameters
    ----------
    application
        What is guarded.
    names
        The names by which it may be asked for, beside those of the loopback. A page whose own name is made to lead here
        asks by that one.
    acting
        Paths that do something even when they are only looked at: no link of another site leads there.
    """

    def __init__(self, application: ASGIApp, names: Collection[str] = (), acting: Collection[str] = ()) -> None:
        self._application = application
        self._proxies = frozenset(names) - LOOPBACK
        self._acting = frozenset(acting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what may pass."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            refusal = None
            if _name(f"//{headers.get('host', '')}") not in LOOPBACK | self._proxies:
                refusal = PlainTextResponse("Nothing is served here under this name; see OKX_PAGES_URL.\n", 421)
            elif not self._is_own(scope, headers):
                refusal = PlainTextResponse("Another site's page has asked for this.\n", 403)
            if refusal is not None:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
                else:
                    await refusal(scope, receive, send)
                return
        await self._application(scope, receive, send)

    def _is_own(self, scope: Scope, headers: Headers) -> bool:
        site = headers.get("sec-fetch-site")
        if site in _OWN:
            return True
        if site is not None:
            is_look = scope["type"] == "http" and scope["method"] == "GET" and scope["path"] not in self._acting
            # A link, and no picture or frame.
            how = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
            return is_look and how == ("navigate", "document")
        # Of a WebSocket Chromium says no more than whose page it is, by its port as well: others of the loopback have
        # pages, too. Behind a proxy the page has the proxy's name, and we are asked by our own.
        origin = headers.get("origin")
        return (
            origin is None
            or origin.partition("://")[2].lower() == headers["host"].lower()
            or _name(origin) in self._proxies
        )


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None

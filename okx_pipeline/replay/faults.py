"""Faults on demand: how an endpoint shall misbehave for its next requests.

A fault is made where it shows: of the page in `exchange`, of the connection in `server`. Here is only which, and whose
turn it is. As JSON, to `POST /replay/faults`, one or a list of them:

    {"kind": "status", "endpoint": "history-candles", "requests": 3, "status": 503}

`endpoint` is a name of `protocol.ENDPOINTS`, any if left out; `requests` is how many requests it strikes (1), after
letting `skip` (0) pass. The kinds, and what they read:

===========  ==========================================================================================
status       an HTTP error with the body OKX has for it; `status` (503)
code         HTTP 200 around a code that is not success; `code` (50011)
too_many     429, as if the limit were used up
slow         the right answer, `seconds` (1) late
truncated    the right answer, cut off in the middle, its length told as if that were all
html         HTTP 200 and a web page
reset        the connection is reset before any answer
page_limit   a page holds at most `rows` (100), whatever was asked for
short        the right page without its oldest rows: only `rows` (1) are left
empty        a page without rows, though there are some
yesterday    the page that the same request got a day ago, when all its times were a day earlier
===========  ==========================================================================================
"""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from okx_pipeline.errors import UsageError
from okx_pipeline.exchange.protocol import ENDPOINTS

Kind = Literal[
    "status",
    "code",
    "too_many",
    "slow",
    "truncated",
    "html",
    "reset",
    "page_limit",
    "short",
    "empty",
    "yesterday",
]


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A way to misbehave, for some requests; see the module for the kinds."""

    kind: Kind
    endpoint: str | None = None
    requests: int = 1
    skip: int = 0
    status: int = 503
    code: str = "50011"
    seconds: float = 1.0
    rows: int | None = None


_NAMES: Final = frozenset(endpoint.name for endpoint in ENDPOINTS)
_FAULTS: Final = msgspec.json.Decoder(Fault | list[Fault])


def decode_faults(body: bytes) -> list[Fault]:
    """The faults of a request's body.

    Raises
    ------
    UsageError
        If it is no fault and no list of them.
    """
    try:
        decoded = _FAULTS.decode(body)
    except msgspec.DecodeError as problem:
        raise UsageError(f"not a fault: {problem}") from problem
    faults = decoded if isinstance(decoded, list) else [decoded]
    for fault in faults:
        if fault.endpoint is not None and fault.endpoint not in _NAMES:
            raise UsageError(f"there is no endpoint {fault.endpoint!r}; it is one of {', '.join(sorted(_NAMES))}")
        if not 400 <= fault.status <= 599:
            raise UsageError(f"{fault.status} is not the status of an HTTP error")
    return faults


class Faults:
    """The faults still to come, in the order given: of each endpoint one strikes at a time."""

    def __init__(self) -> None:
        self._pending: list[Fault] = []

    @property
    def pending(self) -> list[Fault]:
        """What is still to come; `requests` and `skip` say how much of it."""
        return list(self._pending)

    def add(self, faults: Iterable[Fault]) -> None:
        """Append copies of these."""
        self._pending += [msgspec.structs.replace(fault) for fault in faults]

    def clear(self) -> None:
        """Behave well from now on."""
        self._pending.clear()

    def take(self, endpoint: str) -> Fault | None:
        """The fault that strikes this request, if one does."""
        for fault in self._pending:
            if fault.endpoint not in (None, endpoint):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                return None
            fault.requests -= 1
            if fault.requests < 1:
                self._pending.remove(fault)
            return fault
        return None

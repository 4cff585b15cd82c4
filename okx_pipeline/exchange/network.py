"""What REST and the WebSocket have in common below OKX's protocol: whom to trust, who we say we are, and what a
failure of the network means in words.
"""

import socket
import ssl
from importlib.metadata import version
from pathlib import Path
from typing import Final

import httpx

from okx_pipeline.errors import UsageError

USER_AGENT: Final = f"okx-pipeline/{version('okx-pipeline')}"


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Whom to believe to be OKX: the authorities in `ca_file`, or the usual ones.

    Raises
    ------
    UsageError
        If the file holds none, or cannot be read.
    """
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as problem:
        reason = "it holds no certificate" if isinstance(problem, ssl.SSLError) else problem.strerror
        raise UsageError(f"SSL_CERT_FILE {ca_file} cannot be used: {reason}") from problem


def causes(problem: BaseException) -> list[BaseException]:
    """`problem`, what caused it, what caused that, and so on."""
    found = []
    cause: BaseException | None = problem
    while cause is not None:
        found.append(cause)
        following = cause.__cause__ or cause.__context__
        if following is None and isinstance(cause, BaseExceptionGroup):
            following = cause.exceptions[0]
        cause = following
    return found


def mistrust(problem: BaseException) -> str | None:
    """Why the other side's certificate is not trusted, if that is what the problem is."""
    for cause in causes(problem):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
    return None


def reason(problem: BaseException) -> str:
    """Why the network did not let us through, in a few words."""
    for cause in reversed(causes(problem)):
        if isinstance(cause, socket.gaierror):
            return "its name cannot be resolved"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, ConnectionResetError):
            return "connection reset"
    return str(problem) or type(problem).__name__

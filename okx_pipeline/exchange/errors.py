"""What can go wrong between us and OKX: what another try may mend, what it never will, and the sentence for each.

Which of OKX's codes means which is decided here and nowhere else; whether and when to try again is the client's work.
"""

from okx_pipeline.errors import PipelineError, UsageError
from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.listings import plain


class ExchangeError(PipelineError):
    """OKX could not be asked, or did not give what was asked for. Final, unless it is a `RetryableError`."""


class RetryableError(ExchangeError):
    """The same request may succeed a moment later."""


class UnreachableError(RetryableError):
    """No answer: refused, reset, cut off, timed out, not resolved."""


class ThrottledError(RetryableError):
    """OKX says that it is asked too often."""


class BusyError(RetryableError):
    """OKX says that it cannot answer now."""


class GarbledError(RetryableError):
    """An answer that is not OKX's, is not whole, or is not to what was asked."""


class WrongHostError(ExchangeError, UsageError):
    """What answers at the address is not OKX's API, or cannot be trusted to be it."""


class RejectedError(ExchangeError):
    """OKX refuses the request and would refuse it again."""


class InvalidRequestError(RejectedError, UsageError):
    """A parameter of the request is not what OKX takes."""


class UnknownSymbolError(RejectedError, UsageError):
    """OKX lists no such instrument."""


_THROTTLED_CODES = frozenset({protocol.TOO_MANY_REQUESTS.code, "50040"})
_PARAMETER_CODES = frozenset({protocol.PARAMETER_EMPTY.code, protocol.PARAMETER_ERROR.code, "50015", "50024", "50025"})


def error_of(code: str, message: str, path: str, parameters: dict[str, str]) -> ExchangeError:
    """The error that OKX's `code` and `message` mean, in answer to `parameters` asked of `path`.

    Source of the codes: OKX's error code table of public REST, August 2026; a sub-code (``50004_1101``) counts as its
    code.
    """
    kind_of_code = code.partition("_")[0]
    said = f"{plain(message, 200).rstrip('.')} (code {plain(code, 20)})"
    if kind_of_code in _THROTTLED_CODES:
        return ThrottledError(
            f"OKX asks us to slow down: {said}; if other programs use this address, lower OKX_REST_RATE"
        )
    if kind_of_code in protocol.RETRYABLE_CODES:
        return BusyError(f"OKX cannot answer just now: {said}; try again later")
    symbol = parameters.get(protocol.SYMBOL, "")
    if kind_of_code == protocol.UNKNOWN_INSTRUMENT.code and symbol:
        return UnknownSymbolError(
            f"OKX lists no instrument {symbol}: {said}; check how it is spelled and whether it is still listed"
        )
    asked = " ".join(f"{name}={value}" for name, value in parameters.items())
    kind = InvalidRequestError if kind_of_code in _PARAMETER_CODES else RejectedError
    return kind(f"OKX rejects GET {path} {asked}: {said}; check the symbol and the timeframe")

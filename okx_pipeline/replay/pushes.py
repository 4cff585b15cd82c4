"""What is pushed of a series: the forming candle as it grows, every close once and in order; and what faults do to it.

A series knows how far it has been pushed; who listens to it, and how a frame reaches them, is decided in `channels`.
A push is the same for all who listen. Not known of OKX, and decided here: a candle is confirmed with the first push
after its close, the next one follows in a frame of its own, and a quiet candle is not pushed again and again.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np

from okx_pipeline.exchange import protocol
from okx_pipeline.exchange.frames import Argument, encode_push
from okx_pipeline.replay.bars import Bar
from okx_pipeline.replay.exchange import WEB_PAGE, Exchange
from okx_pipeline.replay.faults import Fault, PushKind, TimedKind
from okx_pipeline.replay.market import Row
from okx_pipeline.timeframes import SECOND_MS

Rows = list[Row]
"""The rows of one frame, newest first."""


class Frame(NamedTuple):
    """A frame's text, and how many rows in it are confirmed."""

    text: str
    confirmed: int


class SeriesPushes:
    """The frames of one series, from the moment it is made.

    Parameters
    ----------
    exchange
        Whose candles, clock and faults.
    argument
        How OKX names the series.
    bar
        Its bar.
    unchanged
        Whether the forming candle is pushed even if nothing about it has changed: a load to test with.
    """

    def __init__(self, exchange: Exchange, argument: Argument, bar: Bar, *, unchanged: bool = False) -> None:
        self._exchange = exchange
        self._argument = argument
        self._bar = bar
        self._unchanged = unchanged
        self._seen_ms = -1
        self._open_ms = bar.open_at(exchange.clock.now_ms())
        self._forming: Row | None = None
        self._late: list[tuple[float, Row]] = []
        self._behind: list[tuple[int, Frame]] = []
        self._look()

    def current(self) -> Frame | None:
        """The forming candle as it was last looked at, for somebody new; None if there is none or nothing is pushed."""
        if self._forming is None or self._strike("stall"):
            return None
        return self._encoded([self._forming])

    def again(self, open_ms: int) -> list[Frame]:
        """A candle that has closed before, as it is served now."""
        argument = self._argument
        rows = self._exchange.confirmed(argument.symbol, self._bar, after_ms=open_ms + 1, before_ms=open_ms - 1)
        return [self._encoded([row]) for row in rows]

    def advance(self) -> list[Frame]:
        """Look at the candles again: what is to be pushed since the last time, in order."""
        open_ms, forming = self._open_ms, self._forming
        self._look()
        closed: Rows = []
        if self._open_ms > open_ms:
            closed = self._exchange.confirmed(
                self._argument.symbol, self._bar, after_ms=self._open_ms, before_ms=open_ms - 1
            )[::-1]
        fresh = [self._forming] if self._forming is not None and (self._unchanged or self._forming != forming) else []
        faults = self._exchange.faults
        if not (faults or self._late or self._behind):
            return [self._encoded([row]) for row in closed + fresh]
        if self._strike("stall"):
            return []
        return self._upset(self._arranged(closed, fresh))

    def _look(self) -> None:
        now_ms = self._exchange.clock.now_ms()
        if now_ms == self._seen_ms:
            return
        self._seen_ms = now_ms
        self._open_ms = self._bar.open_at(now_ms)
        row = self._exchange.market.forming(self._argument.symbol, self._bar, self._open_ms, now_ms)
        self._forming = None if row is None else [*row, protocol.UNCONFIRMED]

    def _strike(self, kind: TimedKind | PushKind) -> Fault | None:
        return self._exchange.faults.strike(kind, self._argument.symbol, self._bar.timeframe.name)

    def _arranged(self, closed: Rows, fresh: Rows) -> list[Rows]:
        """The frames of these rows, with what faults do to confirmations."""
        now_s = self._exchange.monotonic()
        frames: list[Rows] = [[row] for due_s, row in self._late if due_s <= now_s]
        self._late = [(due_s, row) for due_s, row in self._late if due_s > now_s]
        together: Rows = []
        for row in closed:
            if self._strike("withhold"):
                continue
            if self._strike("lie"):
                row = _with_another_volume(row)
            if self._strike("off_boundary"):
                row = [str(int(row[0]) + SECOND_MS), *row[1:]]
            if late := self._strike("late"):
                self._late.append((now_s + late.duration_s, row))
            elif self._strike("two_rows"):
                together.insert(0, row)
            else:
                frames.append([row])
            if contradict := self._strike("contradict"):
                if contradict.seconds is None:
                    frames.append([_with_another_volume(row)])
                else:
                    self._late.append((now_s + contradict.seconds, _with_another_volume(row)))
            if self._strike("unconfirm"):
                frames.append([[*row[:-1], protocol.UNCONFIRMED]])
        if together:
            return [*frames, fresh + together]
        return frames + [[row] for row in fresh]

    def _upset(self, frames: list[Rows]) -> list[Frame]:
        """These frames with what faults do to any frame."""
        upset = []
        for rows in frames:
            frame = self._garbled(rows) if self._strike("garble") else self._encoded(rows)
            if reorder := self._strike("reorder"):
                self._behind.append((int(self._exchange.faults.chance.integers(1, reorder.frames + 1)), frame))
                continue
            upset += [frame, frame] if self._strike("duplicate") else [frame]
            self._behind = [(after - 1, waiting) for after, waiting in self._behind]
            upset += [waiting for after, waiting in self._behind if after < 1]
            self._behind = [(after, waiting) for after, waiting in self._behind if after >= 1]
        return upset

    def _encoded(self, rows: Rows) -> Frame:
        return Frame(encode_push(self._argument, rows), sum(row[-1] == protocol.CONFIRMED for row in rows))

    def _garbled(self, rows: Rows) -> Frame:
        chance = self._exchange.faults.chance
        way = int(chance.integers(len(_WAYS) + 1))
        if way == len(_WAYS):
            return Frame(_with_other_bytes(encode_push(self._argument, rows), chance), 0)
        return Frame(_WAYS[way](self._argument, rows), 0)


def _with_another_volume(row: Row) -> Row:
    return [*row[:5], f"{2 * Decimal(row[5]) + 1:f}", *row[6:]]


def _with_other_bytes(text: str, chance: np.random.Generator) -> str:
    """The text with one to four bytes changed, lost or doubled; none of a number, which would be another then."""
    damaged = bytearray(text.encode())
    for _ in range(int(chance.integers(1, 5))):
        places = [place for place, byte in enumerate(damaged) if chr(byte) not in "0123456789."]
        place = int(chance.choice(places))
        other = int(chance.choice(_OTHER_BYTES))
        damaged[place : place + 1] = (bytes([other]), b"", damaged[place : place + 1] * 2)[int(chance.integers(3))]
    return damaged.decode()


def _cut_off(argument: Argument, rows: Rows) -> str:
    text = encode_push(argument, rows)
    return text[: len(text) // 2]


def _of_other_types(argument: Argument, rows: Rows) -> str:
    other: Any = [[int(row[0]), float(row[1]), None, [row[3]], True, *row[5:]] for row in rows]
    return encode_push(argument, other)


def _with_field(place: int, text: str) -> Callable[[Argument, Rows], str]:
    def garbled(argument: Argument, rows: Rows) -> str:
        return encode_push(argument, [[*row[:place], text, *row[place + 1 :]] for row in rows])

    return garbled


_WAYS: Final[tuple[Callable[[Argument, Rows], str], ...]] = (
    _cut_off,
    _of_other_types,
    _with_field(4, "NaN"),
    _with_field(4, ""),
    _with_field(6, "-Infinity"),
    _with_field(5, "1e999999999"),
    _with_field(8, "2"),
    lambda argument, rows: encode_push(argument, [[*row[:7], row[8]] for row in rows]),
    lambda argument, rows: encode_push(argument, [[*row, row[8]] for row in rows]),
    lambda argument, rows: WEB_PAGE.decode(),
)
"""What can come instead of a frame."""

_OTHER_BYTES: Final = [byte for byte in range(128) if chr(byte) not in "0123456789."]

"""How a glance is drawn: in 80 columns or more, and with ASCII alone where a terminal says that it has no more.

What is shown was read in `reading`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from okx_pipeline.exchange.protocol import CANDLES, HISTORY_CANDLES
from okx_pipeline.monitor.reading import MOST_LATELY, History, Reading, SeriesNow
from okx_pipeline.timeframes import utc

NARROWEST: Final = 80
FEWEST_ROWS: Final = 3
MOST_REASONS: Final = 4
MOST_LINES: Final = 3
_LABEL: Final = 9
_BAD, _ODD, _GOOD, _FAINT = "bold red", "yellow", "green", "dim"


@dataclass(frozen=True, slots=True)
class Strokes:
    """The characters of bars."""

    full: str
    lacking: str
    empty: str
    dot: str


UNICODE: Final = Strokes("█", "▒", "·", " · ")
ASCII: Final = Strokes("#", "!", ".", ", ")


def frame(reading: Reading, width: int, height: int | None, strokes: Strokes, *, footer: str = "") -> RenderableType:
    """Everything, in `width` columns and, if given, `height` lines: of the series the worst, and how many more."""
    head = list(head_lines(reading, width, strokes))
    rows = len(reading.series)
    if height is not None:
        rows = min(rows, max(FEWEST_ROWS, height - len(head) - 2 - 1))
    parts: list[RenderableType] = [*head, Text(), _table(reading.series[:rows], width, strokes)]
    rest = reading.series[rows:]
    last = []
    if rest:
        sound = sum(each.is_sound for each in rest)
        last.append(f"and {len(rest):,} more, {'all' if sound == len(rest) else f'{sound:,}'} of them sound")
    if footer:
        last.append(footer)
    if last:
        parts.append(_line(strokes.dot.join(last), _FAINT))
    return Group(*parts)


def head_lines(reading: Reading, width: int, strokes: Strokes) -> Iterator[Text]:
    """The lines above the series."""
    now_ms = reading.stream.now_ms
    clock = f"{reading.at:%Y-%m-%d %H:%M:%S} UTC, here" if now_ms is None else f"{utc(now_ms):%Y-%m-%d %H:%M:%S} UTC"
    title = Text.assemble(("okx-pipeline", "bold"), f"  {reading.store.origin or 'nothing stored yet'}  ", (clock, ""))
    yield _fitted(title)
    yield from _health(reading, width)
    yield from _stream(reading, width, strokes)
    yield _labelled("Store", _store(reading, strokes))
    yield _history(reading.history, width, strokes, reading.budget)
    yield _labelled("Quality", _quality(reading, strokes))


def _health(reading: Reading, width: int) -> Iterator[Text]:
    health = reading.health
    style = _BAD if health.problem else _ODD if health.percent < 100 else _GOOD
    headline = "not healthy" if health.problem and health.percent >= 100 else percent(health.percent)
    yield _labelled("Health", headline, style, f"  {health.sound:,} of {health.wanted:,} series sound")
    for reason in health.reasons[:MOST_REASONS]:
        for line in wrap(reason, width - _LABEL, subsequent_indent="  ")[:MOST_LINES]:
            yield _labelled("", line, style if style != _GOOD else "")
    if len(health.reasons) > MOST_REASONS:
        yield _labelled("", f"and {len(health.reasons) - MOST_REASONS} more reasons", style)


def _stream(reading: Reading, width: int, strokes: Strokes) -> Iterator[Text]:
    sidecar = reading.stream.sidecar
    if sidecar is None:
        yield _labelled("Stream", "no sidecar has streamed yet", _ODD)
        return
    counters = sidecar.counters
    style = _GOOD if reading.stream.is_alive and sidecar.state == "streaming" else _ODD
    if sidecar.state != "stopped" and not reading.stream.is_alive:
        style = _BAD
    connections = int(counters.get("connections", 0))
    parts = [
        f", beat {sidecar.age_s:,.0f} s ago",
        f"{connections} connection{'' if connections == 1 else 's'}",
        f"{counters.get('subscribed', 0):,} of {counters.get('series', 0):,} series",
        f"{counters.get('reconnects', 0):,} reconnects",
    ]
    yield _labelled("Stream", sidecar.state, style, strokes.dot.join(parts))
    rates = [] if reading.frames_s is None else [f"{reading.frames_s:,.1f} frames/s"]
    if reading.landed_s is not None:
        rates.append(f"{reading.landed_s:,.1f} candles/s")
    queue = f"queue {counters.get('waiting', 0):,} ({counters.get('waiting s', 0):g} s)"
    parts = [queue, f"{counters.get('catching up', 0):,} catching up", *rates]
    yield _labelled("", strokes.dot.join(parts))
    errors = counters.get("errors") or {}
    if errors:
        most = sorted(errors.items(), key=lambda each: -each[1])
        told = ", ".join(f"{kind} {number:,}" for kind, number in most)
        told = f"{sum(errors.values()):,} since {sidecar.started_at:%d %b %H:%M}: {told}"
        for number, line in enumerate(wrap(told, width - _LABEL)[:MOST_LINES]):
            yield _labelled("" if number else "Errors", line, _ODD)


def _history(history: History, width: int, strokes: Strokes, budget: dict[str, int]) -> Text:
    if not history.expected:
        return _labelled("History", "nothing is expected yet")
    wide = max(10, width - NARROWEST + 10)
    full = int(history.percent / 100 * wide)
    told = f"{percent(history.percent)} {strokes.full * full}{strokes.empty * (wide - full)}"
    told += f" {history.present:,} held"
    if history.fetching:
        told += f", {history.fetching:,} to come"
        if history.left_s is not None:
            told += f" in about {_span(history.left_s)}"
    used = sum(budget.get(endpoint.name, 0) for endpoint in (CANDLES, HISTORY_CANDLES))
    if used:
        told += f"{strokes.dot}{used} of {CANDLES.requests + HISTORY_CANDLES.requests} requests/2 s"
    return _labelled("History", told)


def _store(reading: Reading, strokes: Strokes) -> str:
    grows = reading.store.growth_bytes_a_day
    parts = [f"database {size(reading.store.size_bytes)}{f' (+{size(grows)} a day)' if grows and grows > 0 else ''}"]
    if reading.disk is not None:
        parts += [f"OKX_HOME {size(reading.disk.used)}", f"{size(reading.disk.free)} free"]
    waiting = sum(each.waiting for each in reading.store.series)
    if waiting:
        parts.append(f"{waiting:,} wait for Parquet")
    return strokes.dot.join(parts)


def _quality(reading: Reading, strokes: Strokes) -> str:
    parts = [_gaps(reading)]
    if reading.store.quality is None:
        parts.append("no series-day judged yet")
    else:
        quality = reading.store.quality
        parts.append(f"{quality.series_days:,} series-days judged, {quality.with_errors:,} with errors")
        if quality.unjudged:
            parts.append(f"{quality.unjudged:,} not judged")
    if reading.store.quarantined:
        parts.append(f"{reading.store.quarantined:,} in quarantine")
    return strokes.dot.join(parts)


def _gaps(reading: Reading) -> str:
    if not reading.gaps.gaps:
        return "no open gaps"
    return f"{reading.gaps.gaps:,} open gaps ({reading.gaps.candles:,} candles)"


def _table(series: Sequence[SeriesNow], width: int, strokes: Strokes) -> Table:
    wide = max(10, width - NARROWEST + 10)
    table = Table.grid(padding=(0, 1, 0, 0))
    columns = (
        ("symbol", 18, "left"),
        ("", 3, "right"),
        ("last candle", 11, "left"),
        ("age", 6, "right"),
        ("1 h", 4, "right"),
        ("today", wide, "left"),
        ("", 9, "right"),
        ("", 11, "left"),
    )
    for _, columns_wide, justify in columns:
        table.add_column(width=columns_wide, no_wrap=True, overflow="crop", justify=justify)  # type: ignore[arg-type]
    table.add_row(*(Text(name, _FAINT) for name, _, _ in columns))
    for each in series:
        table.add_row(*_cells(each, wide, strokes))
    return table


def _cells(series: SeriesNow, wide: int, strokes: Strokes) -> Iterator[Text]:
    style = "" if series.is_sound else _BAD if series.late_ms or series.refused else _ODD
    yield Text(series.symbol, style)
    yield Text(series.timeframe, style)
    yield Text("nothing yet" if series.last_ms is None else f"{utc(series.last_ms):%m-%d %H:%M}")
    yield Text("" if series.age_ms is None else _span(max(0, series.age_ms) / 1000), _BAD if series.late_ms else "")
    landed = series.landed
    yield Text("" if landed is None else f"{landed}+" if landed >= MOST_LATELY else f"{landed}")
    yield _bar(series, wide, strokes)
    yield Text("" if series.day is None else f"{series.day.present}/{series.day.expected}")
    yield Text(_state(series), style or _GOOD)


def _state(series: SeriesNow) -> str:
    if series.refused:
        return "refused"
    if series.late_ms:
        return f"{_span(series.late_ms / 1000)} late"
    if series.missing:
        return f"{series.missing:,} missing"
    return "ok" if series.last_ms is not None else "waits"


def _bar(series: SeriesNow, wide: int, strokes: Strokes) -> Text:
    """The day: what is held of it, what of the rest was due and is missing, and what is still to come."""
    if series.day is None or not series.day_candles:
        return Text()
    full = series.day.present * wide // series.day_candles
    lacking = min(wide - full, -(-series.day.missing * wide // series.day_candles))
    rest = wide - full - lacking
    return Text.assemble(
        (strokes.full * full, _GOOD), (strokes.lacking * lacking, _BAD), (strokes.empty * rest, _FAINT)
    )


def percent(share: float) -> str:
    """In percent, never rounded up to a whole that it is not."""
    return "100 %" if share >= 100 else f"{min(share, 99.9):.1f} %"


def printable(text: str) -> str:
    """`text` without what would command the terminal: OKX's own words are shown."""
    return "".join(character if character.isprintable() else "?" for character in text)


def size(number: float) -> str:
    """Bytes, in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit in {"B", "kB", "MB"} else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f}s"
    minutes = int(seconds // 60)
    if minutes < 100:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60:02}" if minutes < 48 * 60 else f"{minutes // 1440}d"


def _labelled(label: str, text: str, style: str = "", rest: str = "") -> Text:
    return _fitted(Text.assemble((f"{label:<{_LABEL}}", "bold"), (printable(text), style), printable(rest)))


def _line(text: str, style: str = "") -> Text:
    return _fitted(Text(printable(text), style))


def _fitted(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "crop"
    return text

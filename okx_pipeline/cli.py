"""The command line: parse, call, print. Everything a command does stands in another room, imported when it runs."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import click
import typer

from okx_pipeline.errors import ExitStatus, PipelineError, UsageError

if TYPE_CHECKING:
    from okx_pipeline.history.backfill import Plan, Progress, Report
    from okx_pipeline.settings import Settings
    from okx_pipeline.storage.database import Database
    from okx_pipeline.timeframes import Timeframe

app: Final = typer.Typer(
    name="okx-pipeline",
    help="OKX candles you can trust, in PostgreSQL and Parquet.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED: Final = 130

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else on stderr.")]
Symbols = Annotated[
    str | None, typer.Option("--symbols", metavar="A,B", help="Comma-separated; default: the subscribed ones.")
]
Timeframes = Annotated[
    str | None, typer.Option("--timeframes", metavar="5m,1h", help="Comma-separated; default: the subscribed ones.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1.")]


def main() -> NoReturn:
    """Run the command of this process and exit with its status; a user's mistake is one line on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        status = app(standalone_mode=False)
    except PipelineError as problem:
        _complain(str(problem))
        status = problem.exit_status
    except click.ClickException as problem:
        # Typer's own messages take a box of several lines.
        _complain(problem.format_message())
        status = ExitStatus.USAGE
    except (KeyboardInterrupt, click.Abort):
        _complain("stopped; what has landed stays, and the same command goes on from there")
        status = _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; so does the rest of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = ExitStatus.FAILED
    sys.exit(int(status or 0))


@app.command()
def up(
    port: Port = 3000,
    replay: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="A stand-in for OKX: a folder of recordings, or `synthetic`."),
    ] = None,
    now: Annotated[str | None, typer.Option(help="With --replay: where its time starts, as 2026-08-22T00:00Z.")] = None,
    speed: Annotated[
        float | None, typer.Option(min=0, help="With --replay: its time, so many times the wall's.")
    ] = None,
) -> None:
    """The whole system on this machine: database, Dagster UI and daemon. Ctrl-C stops all of it."""
    from okx_pipeline import up as system

    stand_in = None if replay is None else [_absolute_source(replay), *_given("--now", now), *_given("--speed", speed)]
    system.run(_settings(), port=port, replay=stand_in, say=lambda line: print(line, flush=True))


@app.command()
def backfill(
    start: Annotated[str, typer.Option(metavar="DATE", help="First UTC day, as 2026-08-01.")],
    end: Annotated[str, typer.Option(metavar="DATE", help="The UTC day after the last one.")],
    symbols: Symbols = None,
    timeframes: Timeframes = None,
    refetch: Annotated[bool, typer.Option(help="Ask for candles that are there already, too.")] = False,
    as_json: Json = False,
) -> None:
    """The UTC days [start, end) from OKX's REST API into PostgreSQL and Parquet; asks only for what is missing."""
    settings = _settings()
    first, last = _days(start, end)
    with _database(settings) as database:
        report, plan = asyncio.run(_backfill(settings, database, first, last, symbols, timeframes, refetch))
    figures = {
        "requests": report.requests,
        "received": report.rows,
        "new": report.total("inserted"),
        "corrected": report.total("corrected"),
        "quarantined": report.total("quarantined"),
        "not_served": max(0, plan.estimate.candles - report.rows),
        "files": sum(file.written for file in report.projected),
        "seconds": round(report.seconds, 2),
    }
    if as_json:
        _print_json(figures)
        return
    for note in sorted(set(report.notes.values())):
        _tell(note)
    for file in report.projected:
        if file.damage is not None:
            _tell(f"warning: rebuilt from PostgreSQL: {file.damage}")
    _print(
        "{new:,} new candles, {corrected:,} corrected, {quarantined:,} quarantined; {requests:,} requests, "
        "{files:,} Parquet files, {seconds:g} s".format(**figures)
    )
    if figures["not_served"]:
        _tell(f"{figures['not_served']:,} candles asked for were not served by OKX")


@app.command()
def migrate(as_json: Json = False) -> None:
    """Bring the database schema up to date; safe at any time, by several at once."""
    from okx_pipeline.storage.migrations import migrate as bring_up_to_date

    with _database(_settings(), migrated=False) as database:
        applied = bring_up_to_date(database)
    if as_json:
        _print_json({"applied": applied})
    else:
        _print("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")


@app.command()
def status(as_json: Json = False) -> None:
    """Whether the store is healthy, and what each series holds; exit status 1 if it is not."""
    from okx_pipeline.storage.migrations import pending_migrations
    from okx_pipeline.storage.overview import overview
    from okx_pipeline.timeframes import utc

    settings = _settings()
    if settings.database_url is None and not (settings.root / "postgres" / "data").exists():
        raise PipelineError(f"there is no store in {settings.root} yet; start with: okx-pipeline up")
    with _database(settings, migrated=False) as database, database.connect() as connection:
        pending = pending_migrations(connection)
        if pending:
            raise PipelineError(f"the schema lacks {', '.join(pending)}; run: okx-pipeline migrate")
        store = overview(connection)
        place = database.place
    if as_json:
        _print_json({"healthy": True, "database": place, "parquet": settings.parquet_root, **asdict(store)})
        return
    _print(f"PostgreSQL {store.server_version} at {place}, {store.size_bytes / 1e6:,.0f} MB")
    _print(f"Parquet at {settings.parquet_root}")
    _print(f"{store.quarantined:,} rows in quarantine, {store.revisions:,} revisions")
    for series in store.series:
        held = "nothing yet"
        if series.first_ms is not None and series.last_ms is not None:
            held = f"{utc(series.first_ms):%Y-%m-%d %H:%M} to {utc(series.last_ms):%Y-%m-%d %H:%M} UTC"
        waiting = ", more waiting to be projected" if series.waiting else ""
        _print(f"{series.symbol:<20} {series.timeframe:>4}  {held}, {series.projected_rows:,} in Parquet{waiting}")


@app.command()
def replay(
    source: Annotated[str, typer.Argument(help="A folder of Parquet recordings, or `synthetic`.")],
    port: Port = 8090,
    now: Annotated[str | None, typer.Option(help="Where its time starts, as 2026-08-22T00:00Z.")] = None,
    speed: Annotated[float, typer.Option(min=0, help="Its time, so many times the wall's; 0 stands still.")] = 1.0,
    symbols: Annotated[int, typer.Option(min=1, help="Instruments of a synthetic market.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of a synthetic market.")] = 7,
    latency: Annotated[float, typer.Option(min=0, help="Seconds by which every answer is held back.")] = 0.0,
) -> None:
    """A stand-in for OKX on loopback: recorded or synthetic candles behind OKX's REST API, with its limits."""
    from okx_pipeline.replay.server import serve

    serve(
        source,
        port=port,
        now_ms=None if now is None else _moment_ms(now),
        speed=speed,
        symbols=symbols,
        seed=seed,
        latency_s=latency,
        on_ready=lambda url: print(f"serving {source} at {url}; OKX_REST_URL={url}", flush=True),
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """PostgreSQL's own terminal on the store; every further argument is psql's."""
    import shutil
    import subprocess

    from okx_pipeline.storage.embedded import EmbeddedPostgres

    settings = _settings()
    with _database(settings, migrated=False) as database:
        program = shutil.which("psql")
        if settings.database_url is None:
            program = str(EmbeddedPostgres(settings.root).bin / "psql")
        if program is None:
            raise UsageError("there is no psql on the PATH")
        ended = subprocess.run([program, "-d", database.url, *context.args], check=False)
    raise typer.Exit(ended.returncode)


async def _backfill(
    settings: "Settings",
    database: "Database",
    first: date,
    last: date,
    symbols: str | None,
    timeframes: str | None,
    refetch: bool,
) -> "tuple[Report, Plan]":
    from okx_pipeline.history.backfill import Backfill
    from okx_pipeline.history.daily import timeframes_of
    from okx_pipeline.history.plan import days_of_range

    async with Backfill.opened(settings, database) as filling:
        wanted = [
            days_of_range(symbol, timeframe, first, last)
            for symbol in _symbols(symbols, filling)
            for timeframe in (_timeframes(timeframes) or timeframes_of(filling, symbol))
        ]
        plan = await filling.plan(wanted, only_missing=not refetch)
        cost = plan.estimate
        _tell(
            f"{cost.candles:,} candles to fetch: {cost.requests:,} requests, at least {_duration(cost.seconds)}, "
            f"about {cost.disk_bytes / 1e6:,.0f} MB of disk"
        )
        filling.check_disk(plan)
        with _progress() as progress:
            return await filling.run(plan, progress=progress), plan


@contextmanager
def _progress() -> Iterator["Progress | None"]:
    """A progress bar on stderr where a terminal is watching, with candles/s, requests/s and the time left."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.fields[rate]}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, rate="")

        def update(*, done: int, total: int, rows: int, requests: int) -> None:
            elapsed = max(bar.tasks[0].elapsed or 0.0, 0.001)
            rate = f"{rows / elapsed:,.0f} candles/s, {requests / elapsed:.1f} requests/s"
            bar.update(task, completed=done, total=total, rate=rate)

        yield update


def _symbols(text: str | None, filling: Any) -> Sequence[str]:
    from okx_pipeline.candles import parse_symbols
    from okx_pipeline.storage.subscriptions import subscriptions

    if text is not None:
        return parse_symbols(text) or _refuse("--symbols names no symbol")
    subscribed = dict.fromkeys(each.symbol for each in subscriptions(filling.store.connection))
    return list(subscribed) or list(filling.settings.symbols)


def _timeframes(text: str | None) -> "Sequence[Timeframe]":
    from okx_pipeline.timeframes import parse_timeframes

    return () if text is None else parse_timeframes(text) or _refuse("--timeframes names no timeframe")


def _refuse(message: str) -> NoReturn:
    raise UsageError(message)


@contextmanager
def _database(settings: "Settings", *, migrated: bool = True) -> Iterator["Database"]:
    from okx_pipeline.storage.opening import opened_database

    with opened_database(settings, on_wait=_tell, migrated=migrated) as database:
        yield database


def _settings() -> "Settings":
    from okx_pipeline.settings import read_settings

    return read_settings()


def _days(start: str, end: str) -> tuple[date, date]:
    first, last = _day("--start", start), _day("--end", end)
    tomorrow = datetime.now(tz=UTC).date() + timedelta(days=1)
    if first >= last:
        raise UsageError(f"--start {first} is not before --end {last}; the end is the day after the last one wanted")
    if last > tomorrow:
        raise UsageError(f"--end {last} reaches into the future; the last end there can be is {tomorrow}")
    return first, last


def _day(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a day; write it as 2026-08-01") from None


def _moment_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--now {text!r} is not a moment; write it as 2026-08-22T00:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _given(option: str, value: object) -> list[str]:
    return [] if value is None else [option, str(value)]


def _absolute_source(source: str) -> str:
    return source if source == "synthetic" else os.path.abspath(os.path.expanduser(source))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _print(text: str) -> None:
    print(text)


def _print_json(document: Any) -> None:
    print(json.dumps(document, default=str))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _complain(text: str) -> None:
    _tell("error: " + " ".join(text.split()))

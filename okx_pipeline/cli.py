"""The command line: parse, call, print. Everything a command does stands in another room, imported when it runs."""

import asyncio
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from io import TextIOWrapper
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer
from typer.core import TyperGroup

from okx_pipeline.errors import PROGRAM, ExitStatus, PipelineError, UsageError, command

if TYPE_CHECKING:
    from okx_pipeline.history.backfill import Phase, Plan, Progress, Report
    from okx_pipeline.maintenance.upkeep import MonthDone, MonthPlan
    from okx_pipeline.quality.gaps import Wanted as GapsWanted
    from okx_pipeline.quality.gaps_report import GapsReport
    from okx_pipeline.quality.verdicts import DayJudged
    from okx_pipeline.ranges import Range as TimeRange
    from okx_pipeline.settings import Settings
    from okx_pipeline.storage.database import Connection, Database
    from okx_pipeline.storage.instruments import ListedSymbol
    from okx_pipeline.storage.overview import SeriesLedger, SeriesOverview, StoreOverview
    from okx_pipeline.storage.parquet import SeriesMonth
    from okx_pipeline.storage.subscriptions import Subscription
    from okx_pipeline.stream.health import StreamHealth
    from okx_pipeline.timeframes import Timeframe

    Ledger = Mapping[tuple[str, str], SeriesLedger]


class _Commands(TyperGroup):
    """The commands; help shows a flag, theirs or the program's, without the type of a value that it does not take."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [_as_flag(option) for option in super().get_params(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            for option in command.get_params(ctx):
                _as_flag(option)
        return command


def _as_flag(option: Any) -> Any:
    if getattr(option, "is_flag", False):
        option.metavar = ""
    return option


app: Final = typer.Typer(
    name=PROGRAM,
    help="OKX candles you can trust, in PostgreSQL and Parquet.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    cls=_Commands,
)

_FINDINGS_SHOWN: Final = 20

_INTERRUPTED: Final = 130
"""What Typer makes of Ctrl-C."""

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else on stderr.")]
Symbols = Annotated[
    str | None,
    typer.Option("--symbols", metavar="A,B", help="Comma-separated; default: all that are subscribed or held."),
]
Timeframes = Annotated[
    str | None,
    typer.Option("--timeframes", metavar="5m,1h", help="Comma-separated; default: all that are subscribed or held."),
]
Start = Annotated[
    str | None,
    typer.Option("--start", metavar="DATE", help="First UTC day, as 2026-08-01; default: the first wanted or held."),
]
End = Annotated[
    str | None, typer.Option("--end", metavar="DATE", help="The UTC day after the last one; default: until now.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1.")]


def main() -> NoReturn:
    """Run the command of this process and exit with its status; a user's mistake is one line on stderr."""
    global _users_umask
    # Whatever is made here, or by what is started here, is for nobody else on this machine.
    _users_umask = os.umask(0o077)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, TextIOWrapper):
        # Help and paths may hold what a terminal of another encoding does not have; stderr copes by itself.
        sys.stdout.reconfigure(errors="replace")
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.stdout.flush()
    except PipelineError as problem:
        _complain(str(problem))
        status = problem.exit_status
    except typer.TyperException as problem:
        # Typer's own messages take a box of several lines.
        _complain(f"{problem.format_message().rstrip('.')}; see --help")
        status = ExitStatus.USAGE
    except MemoryError:
        _complain("there is not enough memory for that; name fewer days or series")
        status = ExitStatus.FAILED
    except BrokenPipeError:
        # Whoever read our output has gone; so does the rest of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = ExitStatus.FAILED
    except OSError as problem:
        _complain(f"{problem.strerror}: {problem.filename}" if problem.filename else str(problem))
        status = ExitStatus.FAILED
    if status == _INTERRUPTED:
        _tell("stopped; what has landed stays, and the same command goes on from there")
    sys.exit(int(status or 0))


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from okx_pipeline.storage.migrations import known_migrations

        schema = known_migrations()[-1].partition(".")[0]
        _print(f"{PROGRAM} {version(PROGRAM)}, schema {schema}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="The version, the newest database schema it knows, and the Python that runs it.",
        ),
    ] = False,
) -> None:
    pass


@app.command()
def up(
    port: Port = 3000,
    replay: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="A stand-in for OKX: a folder of recordings, or `synthetic`."),
    ] = None,
    now: Annotated[
        str | None, typer.Option(metavar="MOMENT", help="With --replay: where its time starts, as 2026-08-22T00:00Z.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(min=0, help="With --replay: its time, so many times the wall's.")
    ] = None,
    monitor: Annotated[
        bool, typer.Option("--monitor", help="Open the monitor in this terminal once everything runs.")
    ] = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="Run the data-quality checks once everything runs, and say the result.")
    ] = False,
) -> None:
    """The whole system on this machine: database, Dagster UI and daemon, sidecar. Ctrl-C stops all of it."""
    from okx_pipeline.settings import read_settings

    if replay is None and (now is not None or speed is not None):
        raise UsageError("--now and --speed are the stand-in's; give --replay with them")
    now_ms = None if now is None else _moment_ms(now)
    stand_in = None if replay is None else [_absolute_source(replay), *_given("--now", now), *_given("--speed", speed)]
    # Not those of the home: without --replay this is OKX, which a home with a replay's prices refuses.
    settings = read_settings()
    # The first line comes before the imports, which take seconds on a busy machine.
    print(f"loading the program, for the home {settings.root}", flush=True)
    from okx_pipeline import up as system
    from okx_pipeline.monitor.terminal import Board

    with Board(monitor=monitor) as board:
        system.run(settings, port=port, replay=stand_in, replay_now_ms=now_ms, board=board, validate=validate)


@app.command()
def backfill(
    start: Annotated[str, typer.Option(metavar="DATE", help="First UTC day, as 2026-08-01.")],
    end: Annotated[str, typer.Option(metavar="DATE", help="The UTC day after the last one.")],
    symbols: Annotated[
        str | None,
        typer.Option(
            "--symbols", metavar="A,B", help="Comma-separated; default: the subscribed ones, else the settings'."
        ),
    ] = None,
    timeframes: Annotated[
        str | None,
        typer.Option(
            "--timeframes",
            metavar="5m,1h",
            help="Comma-separated; default: those subscribed of a symbol, else the settings'.",
        ),
    ] = None,
    refetch: Annotated[bool, typer.Option("--refetch", help="Ask for candles that are there already, too.")] = False,
    as_json: Json = False,
) -> None:
    """The UTC days [start, end) from OKX's REST API into PostgreSQL and Parquet; asks only for what is missing."""
    settings = _settings()
    wanted = Wanted(*_days(start, end), _symbols(symbols), _timeframes(timeframes), refetch)
    with _database(settings) as database:
        report, plan = asyncio.run(_backfill(settings, database, wanted))
    figures = {
        "requests": report.requests,
        "received": report.rows,
        "new": report.total("inserted"),
        "corrected": report.total("corrected"),
        "quarantined": report.total("quarantined"),
        "not_served": max(0, plan.estimate.candles - report.rows),
        "files": len(report.written),
        "files_caught_up": len(report.caught_up),
        "seconds": round(report.seconds, 2),
    }
    for note in sorted(set(report.notes.values())):
        _tell(note)
    if figures["not_served"]:
        _tell(f"{figures['not_served']:,} candles asked for were not served by OKX")
    if as_json:
        _print_json(figures)
    else:
        more = ", {files_caught_up:,} more for candles of other runs" if report.caught_up else ""
        _print(
            "{new:,} new candles, {corrected:,} corrected, {quarantined:,} quarantined; {requests:,} requests, "
            f"{{files:,}} Parquet files written{more}, {{seconds:g}} s".format(**figures)
        )


@app.command()
def gaps(
    start: Start = None,
    end: End = None,
    symbols: Symbols = None,
    timeframes: Timeframes = None,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch what is missing; prove what OKX lacks.")] = False,
    as_json: Json = False,
) -> None:
    """What is missing, read from the rows; exit status 1 while anything is missing and not being fetched."""
    from okx_pipeline.quality.gaps import Wanted as GapsWanted

    settings = _settings()
    wanted = GapsWanted(_symbols(symbols), _timeframes(timeframes), *_range(start, end))
    with _database(settings, existing=True) as database:
        found = asyncio.run(_look_for_gaps(settings, database, wanted, mend=repair))
    if as_json:
        _print_json(found.document())
    else:
        for line in found.lines():
            _print(line)
    missing = found.missing - found.being_fetched - found.accepted_candles
    if missing:
        what = "OKX did not serve them now" if repair else f"fetch them with: {command('gaps --repair')}"
        raise PipelineError(f"{missing:,} candles are missing; {what}")


@app.command()
def coverage(
    start: Start = None,
    end: End = None,
    symbols: Symbols = None,
    timeframes: Timeframes = None,
    as_json: Json = False,
) -> None:
    """What the ledger says of each series: candles expected, present, absent and missing."""
    from okx_pipeline.storage.coverage import series_coverage

    settings = _settings()
    named, lengths = _symbols(symbols), _timeframes(timeframes)
    first, last = _range(start, end)
    with _database(settings, existing=True) as database:
        asyncio.run(_account(settings, database))
        with database.connect() as connection:
            _refuse_empty_scope(connection, named, lengths, first, last)
            rows = series_coverage(connection, symbols=named, timeframes=lengths, start=first, end=last)
    if as_json:
        _print_json([{**asdict(row), "timeframe": row.timeframe.name, "percent": row.percent} for row in rows])
        return
    if not rows:
        _print("nothing that is wanted is due yet")
        return
    columns = f"{'expected':>11} {'present':>11} {'absent':>8} {'missing':>9}"
    _print(f"{'symbol':<20} {'':>4}  first       last        {columns}  percent")
    for row in rows:
        quarantined = f"  {row.quarantined:,} in quarantine" if row.quarantined else ""
        _print(
            f"{row.symbol:<20} {row.timeframe!s:>4}  {row.first}  {row.last}  {row.expected:>11,} {row.present:>11,} "
            f"{row.absent:>8,} {row.missing:>9,}  {_percent(row.percent)}{quarantined}"
        )


@app.command()
def validate(
    start: Start = None,
    end: End = None,
    symbols: Symbols = None,
    timeframes: Annotated[
        str | None,
        typer.Option("--timeframes", metavar="5m,1h", help="Comma-separated; default: all that those days have."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge every closed day by the data-quality suites; exit status 1 on a failure at the level of an error."""
    settings = _settings()
    wanted = _symbols(symbols), _timeframes(timeframes), *_range(start, end)
    with _database(settings, existing=True) as database:
        days = _judge(settings, database, wanted)
    document = _judged(settings, days)
    if as_json:
        _print_json(document)
    else:
        _print_judged(document)
    if document["errors"]:
        raise PipelineError(f"{document['errors']:,} checks failed at the level of an error; see {document['report']}")


@app.command()
def export(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Ends in .csv, .parquet or .feather; - is CSV on stdout.")
    ],
    start: Annotated[
        str | None,
        typer.Option(
            "--start", metavar="DATE", help="First UTC day, as 2026-08-01; default: from the first candle held."
        ),
    ] = None,
    end: End = None,
    symbols: Symbols = None,
    timeframes: Timeframes = None,
    store: Annotated[
        Literal["parquet", "postgres"], typer.Option("--store", help="PostgreSQL has the last minutes, too.")
    ] = "parquet",
) -> None:
    """Candles of a range as CSV, Parquet or Feather, exact; archived months included."""
    from okx_pipeline.exporting import export as write
    from okx_pipeline.timeframes import day_ms

    settings = _settings()
    first, last = _range(start, end)
    if store == "postgres":
        _check_there_is_a_store(settings)
    series = _series(settings, _symbols(symbols), _timeframes(timeframes))
    # It is the user's own file, for whomever the user's files are for.
    os.umask(_users_umask)
    rows = write(
        settings,
        series,
        file,
        start_ms=None if first is None else day_ms(first),
        end_ms=None if last is None else day_ms(last),
        store=store,
    )
    _tell(f"{rows:,} candles of {len(series)} series")


@app.command()
def pages(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 3001,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Address to listen on; nobody who asks is asked who they are."),
    ] = "127.0.0.1",
    ui_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of Dagster's UI on this machine, for the links to it.")
    ] = 3000,
) -> None:
    """Serve the pages of the data-quality checks until SIGINT or SIGTERM; `up` does it, too."""
    from okx_pipeline.pages import serve

    serve(_settings(), port, host, ui_port)


@app.command()
def migrate(
    dagster: Annotated[
        bool,
        typer.Option(
            "--dagster", help="Dagster's own tables, too, after an upgrade of it; everything else is stopped."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring the database schema up to date; safe at any time, by several at once."""
    from okx_pipeline.storage.migrations import migrate as bring_up_to_date

    settings = _settings()
    with _database(settings, migrated=False) as database:
        applied = bring_up_to_date(database)
        if dagster:
            from okx_pipeline.up import migrate_dagster

            migrate_dagster(settings, database)
            _tell("Dagster's tables are up to date")
    if as_json:
        _print_json({"applied": applied})
    else:
        _print("\n".join(f"applied {name}" for name in applied) or "the schema is up to date")


@app.command()
def maintain(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done to the months; change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Look after the months now: partitions ahead, whole ones settled, expired ones archived; cut back what grows."""
    from okx_pipeline.maintenance.housekeeping import keep_house
    from okx_pipeline.maintenance.upkeep import kept_document

    settings = _settings()
    with _database(settings, existing=True) as database:
        months, kept, damaged = asyncio.run(_months(settings, database, dry_run=dry_run))
        house = None if dry_run else keep_house(settings, database, datetime.now(tz=UTC))
    if as_json:
        document = {
            "dry_run": dry_run,
            "months": [month.document() for month in months],
            "kept": kept_document(kept),
            "damaged": damaged,
        }
        _print_json(document if house is None else {**document, **asdict(house)})
        return
    for month in months:
        _print(f"{month.month:%Y-%m}  {', '.join(month.told())}")
        for problem in getattr(month, "problems", ()):
            _print(f"{month.month:%Y-%m}  {problem}")
    for key, reason in kept.items():
        _print(f"{key.month:%Y-%m}  {key.symbol} {key.timeframe} has expired and stays: {reason}")
    removed = {} if house is None else house.removed
    for what, number in removed.items():
        _print(f"removed: {number:,} {what}")
    for problem in damaged:
        _print(f"archived, and damaged: {problem}")
    if not (months or kept or removed or damaged):
        _print("there is nothing to do")


@app.command()
def backup(file: Annotated[str, typer.Argument(metavar="FILE", help="A file that is not there yet.")]) -> None:
    """The whole store, as it is at this moment, into one file; everything goes on meanwhile."""
    from okx_pipeline.maintenance.backup import back_up

    settings = _settings()
    with _database(settings, existing=True) as database:
        made = back_up(settings, database, _absolute(file))
    _print(f"{made.months:,} months of series, {made.archived:,} of them archived, in {made.size / 1e6:,.1f} MB")


@app.command()
def restore(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="A backup, into a database that is empty.")] = None,
    month: Annotated[
        str | None, typer.Option(metavar="MONTH", help="An archived month, as 2024-01, back from Parquet.")
    ] = None,
    symbols: Annotated[
        str | None,
        typer.Option(
            "--symbols", metavar="A,B", help="With --month: comma-separated; default: all that is archived of it."
        ),
    ] = None,
    timeframes: Annotated[
        str | None,
        typer.Option(
            "--timeframes", metavar="5m,1h", help="With --month: comma-separated; default: all that is archived of it."
        ),
    ] = None,
) -> None:
    """The whole store back from a backup, or a month that retention has archived back into PostgreSQL."""
    if (file is None) == (month is None):
        raise UsageError("give a backup, or an archived month as --month 2024-01")
    if file is not None and (symbols is not None or timeframes is not None):
        raise UsageError("--symbols and --timeframes go with --month; a backup is restored whole")
    settings = _settings()
    if file is not None:
        from okx_pipeline.maintenance.backup import restore as bring_all_back

        with _database(settings, migrated=False) as database:
            restored = bring_all_back(settings, database, _absolute(file))
        _print(f"{restored.months:,} months of series restored, {restored.archived:,} of them archived")
    if month is not None:
        _restore_month(settings, _month(month), _symbols(symbols), _timeframes(timeframes))


def _restore_month(
    settings: "Settings", month: date, symbols: Sequence[str], timeframes: "Sequence[Timeframe]"
) -> None:
    from okx_pipeline.maintenance.upkeep import RESTORED_STAYS_DAYS, bring_back
    from okx_pipeline.storage.candle_store import CandleStore
    from okx_pipeline.storage.parquet import ParquetStore

    with (
        _database(settings, existing=True) as database,
        CandleStore.opened(database, ParquetStore(settings.parquet_root)) as store,
    ):
        rows = bring_back(store, month, symbols, timeframes)
    for key, number in rows.items():
        _print(f"{number:,} candles of {key.symbol} {key.timeframe} are back")
    if rows:
        _print(f"they stay for {RESTORED_STAYS_DAYS} days; OKX_RETENTION decides from then on")
    else:
        _print(f"nothing of {month:%Y-%m} is archived")


@app.command()
def status(as_json: Json = False) -> None:
    """Whether the store is healthy, and what each series holds; exit status 1 if it is not."""
    from okx_pipeline.monitor.health import problem_of
    from okx_pipeline.storage.wanted import nothing_in_scope

    settings = _settings()
    try:
        place, store, held, stream = _overview(settings)
    except PipelineError as unread:
        if as_json:
            _print_json({"healthy": False, "problem": str(unread)})
        raise
    problem = problem_of(store, stream)
    failure = nothing_in_scope() if not store.series else PipelineError(problem) if problem is not None else None
    if as_json:
        _print_json(
            {
                "healthy": failure is None,
                "problem": None if failure is None else str(failure),
                "database": place,
                "parquet": settings.parquet_root,
                "stream": asdict(stream),
                "missing": sum(each.missing for each in held.values()),
                "fetching": sum(each.fetching for each in held.values()),
                "in_gaps": sum(each.in_gaps for each in held.values()),
                **asdict(store),
                "series": [_series_record(each, held.get((each.symbol, each.timeframe))) for each in store.series],
            }
        )
    else:
        _print_status(settings, place, store, held, stream)
    if failure is not None:
        raise failure


@app.command()
def accept(
    symbol: Annotated[str | None, typer.Argument(metavar="SYMBOL")] = None,
    timeframe: Annotated[str | None, typer.Argument(metavar="TIMEFRAME")] = None,
    day: Annotated[str | None, typer.Argument(metavar="DAY", help="UTC day, as 2026-08-01.")] = None,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for whoever asks later.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show what is accepted; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Take note of what is found on a day, as OKX's own or known; it holds until the day's content changes."""
    from okx_pipeline.candles import parse_symbol
    from okx_pipeline.storage.findings import accept as take_note
    from okx_pipeline.storage.findings import accepted_findings
    from okx_pipeline.storage.landing import SeriesDay
    from okx_pipeline.timeframes import parse_timeframe

    if not listed and (symbol is None or timeframe is None or day is None or not (reason or "").strip()):
        raise UsageError("accept takes SYMBOL TIMEFRAME DAY --reason TEXT, or --list")
    if listed and symbol is not None:
        raise UsageError("--list takes no SYMBOL; it shows everything that is accepted")
    with _database(_settings(), existing=True) as database, database.connect() as connection:
        if not listed:
            key = SeriesDay(parse_symbol(symbol or ""), parse_timeframe(timeframe or "").name, _day("DAY", day or ""))
            take_note(connection, key, (reason or "").strip())
        found = accepted_findings(connection)
    if as_json:
        _print_json([asdict(each) for each in found])
        return
    for each in found:
        holds = "" if each.holds else "; the day has changed since, so this holds no more"
        _print(f"{each.symbol} {each.timeframe} {each.day}: {each.reason}{holds}")
    if not found:
        _print("nothing is accepted")


@app.command()
def monitor(
    once: Annotated[
        bool, typer.Option("--once", help="Print everything as it is now; exit status 1 if it is not healthy.")
    ] = False,
) -> None:
    """The stream and the store live in this terminal, the worst series first; q or Ctrl-C ends it."""
    from okx_pipeline.monitor import terminal
    from okx_pipeline.storage.migrations import pending_migrations

    settings = _settings()
    with _database(settings, migrated=False, existing=True) as database:
        if not once:
            terminal.watch(settings, database)
            return
        with database.connect() as connection:
            if not pending_migrations(connection):
                _refuse_empty_scope(connection)
        problem = terminal.once(settings, database)
    if problem is not None:
        raise PipelineError(problem)


def _series_record(series: "SeriesOverview", held: "SeriesLedger | None") -> dict[str, Any]:
    known = {} if held is None else {**asdict(held), "in_gaps": held.in_gaps, "percent": held.percent}
    return {**asdict(series), **known}


def _print_status(
    settings: "Settings", place: str, store: "StoreOverview", ledger: "Ledger", stream: "StreamHealth"
) -> None:
    from okx_pipeline.monitor.health import told
    from okx_pipeline.timeframes import utc

    grows = "" if store.growth_bytes_a_day is None else f", {store.growth_bytes_a_day / 1e6:+,.1f} MB a day"
    _print(f"PostgreSQL {store.server_version} at {place}, {store.size_bytes / 1e6:,.0f} MB{grows}")
    _print(f"Parquet at {settings.parquet_root}")
    _print(f"{store.quarantined:,} rows in quarantine, {store.revisions:,} revisions")
    if store.quality is None:
        _print("no series-day is judged yet")
    else:
        _print(
            "{series_days:,} series-days judged, {unjudged:,} not judged: {with_errors:,} with errors, "
            "{with_warnings:,} with warnings".format(**asdict(store.quality))
        )
    if stream.sidecar is None:
        _print("no sidecar has streamed yet")
    else:
        _print(f"sidecar {stream.sidecar.sidecar} {stream.sidecar.state}, beat {stream.sidecar.age_s:.0f} s ago")
    if stream.maintenance is not None:
        _print(f"OKX is at maintenance: {stream.maintenance}")
    late = {(series.symbol, series.timeframe): series for series in stream.silent}
    for series in store.series:
        held = "nothing yet"
        if series.first_ms is not None and series.last_ms is not None:
            held = f"{utc(series.first_ms):%Y-%m-%d %H:%M} to {utc(series.last_ms):%Y-%m-%d %H:%M} UTC"
        waiting = ", more waiting to be projected" if series.waiting else ""
        silent = late.get((series.symbol, series.timeframe))
        if silent is not None:
            waiting += f", {silent.late_ms // 1000:,} s late{f': {silent.refused}' if silent.refused else ''}"
        held += _of_expected(ledger.get((series.symbol, series.timeframe)), fetched=stream.is_alive)
        _print(f"{series.symbol:<20} {series.timeframe:>4}  {held}, {series.projected_rows:,} in Parquet{waiting}")
    lines = list(told(store.findings, settings.pages_url))
    for line in lines[:_FINDINGS_SHOWN]:
        _print(line)
    if len(lines) > _FINDINGS_SHOWN:
        _print(f"and {len(lines) - _FINDINGS_SHOWN:,} more findings; --json lists them")
    if store.findings.accepted:
        _print(f"{store.findings.accepted:,} findings accepted; see: {command('accept --list')}")


def _of_expected(held: "SeriesLedger | None", *, fetched: bool) -> str:
    """How much of what was expected is there, and what became of the rest; `fetched` if somebody is at it."""
    if held is None:
        return ""
    parts = {
        "absent": held.absent,
        "in quarantine": held.quarantined,
        "being fetched" if fetched else "to fetch": held.fetching,
        "missing": held.in_gaps - held.overdue,
        "missing for more than a day": held.overdue,
    }
    rest = "".join(f", {candles:,} {what}" for what, candles in parts.items() if candles)
    return f", {_percent(held.percent)} of {held.expected:,} expected{rest}"


@app.command()
def replay(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder of Parquet recordings, or `synthetic`.")],
    port: Port = 8090,
    now: Annotated[
        str | None, typer.Option(metavar="MOMENT", help="Where its time starts, as 2026-08-22T00:00Z.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0, help="Its time, so many times the wall's; 0 stands still.")] = 1.0,
    symbols: Annotated[int, typer.Option(min=1, help="Instruments of a synthetic market.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of a synthetic market.")] = 7,
    fill: Annotated[
        int | None, typer.Option(metavar="SEED", help="Make up candles, by this seed, where the recorder was down.")
    ] = None,
    latency: Annotated[float, typer.Option(min=0, help="Seconds by which every answer is held back.")] = 0.0,
    push_interval: Annotated[float, typer.Option(min=0.01, help="Seconds between pushes of forming candles.")] = 1.0,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="JSON", help='As {"kind": "withhold", "share": 0.2}; may be repeated.')
    ] = None,
) -> None:
    """A stand-in for OKX on loopback: recorded or synthetic candles behind OKX's REST API and WebSocket."""
    from okx_pipeline.replay.server import serve

    serve(
        source,
        port=port,
        now_ms=None if now is None else _moment_ms(now),
        speed=speed,
        symbols=symbols,
        seed=seed,
        fill=fill,
        latency_s=latency,
        push_interval_s=push_interval,
        faults=fault or (),
        on_ready=lambda url: print(f"serving {source} at {url}; OKX_REST_URL={url}", flush=True),
    )


@app.command()
def stream(
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait for a running sidecar to end, then take over.")
    ] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log lines on stderr as JSON, one object each, without secrets.")
    ] = False,
) -> None:
    """The sidecar alone: every subscribed series live into the store, until SIGINT or SIGTERM."""
    from okx_pipeline.stream import sidecar

    settings = _settings()
    if log_json:
        global _log
        from okx_pipeline import logs

        logs.log_json(sys.stderr, logs.mask_of(settings))
        _log = logging.getLogger("okx_pipeline")
    sidecar.run(settings, standby=standby, say=_tell)


@app.command()
def subscribe(
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL…", help="As BTC-USDT-SWAP or ETH-USDT.")],
    timeframes: Annotated[
        str | None, typer.Option("--timeframes", metavar="5m,1h", help="Comma-separated; default: the settings'.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="DATE",
            help="First UTC day wanted, a later one only of what is not subscribed now; "
            "default: the day that a series had, OKX_HISTORY_START of a new one.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Collect symbols from now on, and their history since a day; a running sidecar follows within seconds."""
    from okx_pipeline.candles import parse_symbol
    from okx_pipeline.storage.subscriptions import subscribe as want
    from okx_pipeline.timeframes import day_ms, utc

    settings = _settings()
    wanted = [parse_symbol(symbol) for symbol in symbols]
    lengths = _timeframes(timeframes) or settings.timeframes
    named = None if since is None else _day("--since", since)
    with _database(settings) as database:
        asyncio.run(_check_collectable(settings, database, wanted, named))
        with database.connect() as connection:
            since_ms = day_ms(named or settings.history_start)
            changed = want(connection, wanted, lengths, since_ms, named=named is not None)
    for each in changed:
        if named is not None and each.since_ms < since_ms:
            _tell(
                f"{each.symbol} {each.timeframe} is subscribed since {utc(each.since_ms):%Y-%m-%d} and stays so; "
                f"to begin on {named}: "
                f"{command(f'unsubscribe {each.symbol} --timeframes {each.timeframe}')}, and subscribe again"
            )
    _print_subscriptions(changed, as_json)


@app.command()
def unsubscribe(
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL…", help="As BTC-USDT-SWAP or ETH-USDT.")],
    timeframes: Annotated[
        str | None, typer.Option("--timeframes", metavar="5m,1h", help="Comma-separated; default: all of them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Collect symbols no more; what is held stays."""
    from okx_pipeline.candles import parse_symbol
    from okx_pipeline.storage.subscriptions import unsubscribe as want_no_more

    now_ms = int(datetime.now(tz=UTC).timestamp() * 1000)
    settings = _settings()
    wanted, lengths = [parse_symbol(symbol) for symbol in symbols], _timeframes(timeframes)
    with _database(settings, existing=True) as database, database.connect() as connection:
        changed = want_no_more(connection, wanted, lengths, now_ms)
    others = [symbol for symbol in dict.fromkeys(wanted) if symbol not in {each.symbol for each in changed}]
    told = f"{', '.join(others)}: not subscribed; see: {command('subscriptions')}"
    if not changed:
        raise UsageError(told)
    if others:
        _tell(told)
    _print_subscriptions(changed, as_json)


@app.command()
def forget(
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="As BTC-USDT-SWAP or ETH-USDT.")],
    timeframes: Annotated[
        str | None, typer.Option("--timeframes", metavar="5m,1h", help="Comma-separated; default: all of them.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", metavar="DATE", help="First UTC day, as 2026-08-01; default: the first.")
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--end", metavar="DATE", help="The UTC day after the last one; default: all later ones."),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the rows of those days, too.")] = False,
    as_json: Json = False,
) -> None:
    """End what a backfill, or a subscription that ended, has made wanted. Rows stay, unless they are deleted."""
    from okx_pipeline.candles import parse_symbol
    from okx_pipeline.ranges import Range
    from okx_pipeline.storage.wanted import FOR_EVER_MS
    from okx_pipeline.timeframes import DAY_MS, day_ms, day_of

    settings = _settings()
    named, lengths = parse_symbol(symbol), _timeframes(timeframes)
    first, last = _range(start, end)
    within = Range(0 if first is None else day_ms(first), FOR_EVER_MS if last is None else day_ms(last))
    with _database(settings, existing=True) as database:
        forgotten, rows = asyncio.run(_forget(settings, database, named, lengths, within, delete=delete))
    if as_json:
        ranges = [(timeframe, piece) for timeframe, pieces in forgotten.items() for piece in pieces]
        _print_json(
            {
                "symbol": named,
                "forgotten": [
                    {"timeframe": timeframe.name, "since_ms": piece.start_ms, "until_ms": piece.end_ms}
                    for timeframe, piece in ranges
                ],
                "deleted": rows,
            }
        )
        return
    for timeframe, pieces in forgotten.items():
        for piece in pieces:
            last_day = day_of(piece.end_ms - 1 + -piece.end_ms % DAY_MS)
            _print(f"{named:<20} {timeframe!s:>4}  {day_of(piece.start_ms)} to {last_day} is not wanted any more")
    if delete:
        _print(f"{rows:,} candles deleted")


@app.command()
def subscriptions(as_json: Json = False) -> None:
    """What is collected, and since when."""
    from okx_pipeline.storage.subscriptions import subscriptions as wanted

    with _database(_settings(), existing=True) as database, database.connect() as connection:
        found = wanted(connection)
    if not found:
        _tell(f"nothing is subscribed; see: {command('subscribe --help')}")
    _print_subscriptions(found, as_json)


@app.command("symbols")
def list_symbols(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="As btc, or *USDT-SWAP with wildcards, in any case; default: all."),
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask OKX for its listing first, also where one is recorded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What OKX lists, and what of it is subscribed or held. In an archived month it tells the day, not the candle."""
    from okx_pipeline.candles import symbols_like
    from okx_pipeline.storage.instruments import is_listing_recorded, symbols

    settings = _settings()
    with _database(settings) as database, database.connect() as connection:
        asked = refresh or not is_listing_recorded(connection)
        if asked:
            asyncio.run(_record_listing(settings, database))
        known = symbols(connection)
    named = set(symbols_like(pattern or "", (each.symbol for each in known)))
    if not named:
        elsewhere = "" if asked else f"; ask OKX for a newer listing with: {command('symbols --refresh')}"
        raise UsageError(f"none of {len(known):,} symbols matches {pattern!r}{elsewhere}")
    _print_symbols([each for each in known if each.symbol in named], as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """PostgreSQL's own terminal on the store; every further argument is psql's."""
    import shutil
    import signal
    import subprocess

    from okx_pipeline.storage.embedded import EmbeddedPostgres

    settings = _settings()
    # The server's own, or where somebody else runs it, this machine's before the one that the embedded server brings.
    program = None if settings.database_url is None else shutil.which("psql")
    if program is None:
        program = str(EmbeddedPostgres(settings.root).bin / "psql")
    with _database(settings, migrated=False, existing=True) as database:
        with database.connect() as connection:
            password = connection.info.password
        # Everybody on this machine can read the arguments of a process, only its account the environment.
        environment = {**settings.environment(), "PGPASSWORD": password}
        invocation = [program, "-d", _without_password(database.url), *context.args]
        # Ctrl-C ends a query of psql's, not psql.
        signal.signal(signal.SIGINT, lambda *_: None)
        ended = subprocess.run(invocation, env=environment, check=False)
    raise typer.Exit(ended.returncode)


def _overview(settings: "Settings") -> "tuple[str, StoreOverview, Ledger, StreamHealth]":
    from okx_pipeline.storage.migrations import pending_migrations
    from okx_pipeline.storage.overview import ledger, overview
    from okx_pipeline.stream.health import stream_health

    with _database(settings, migrated=False, existing=True) as database, database.connect() as connection:
        pending = pending_migrations(connection)
        if pending:
            raise PipelineError(f"the schema lacks {', '.join(pending)}; run: {command('migrate')}")
        stream = stream_health(connection)
        return database.place, overview(connection), ledger(connection, stream.now_ms), stream


def _check_there_is_a_store(settings: "Settings") -> None:
    if settings.database_url is not None:
        return
    try:
        there_is_one = (settings.root / "postgres" / "data").exists()
    except OSError as problem:
        raise UsageError(f"OKX_HOME {settings.root} cannot be read: {problem.strerror}") from problem
    if not there_is_one:
        raise PipelineError(f"there is no store in {settings.root} yet; start with: {command('up')}")


def _series(
    settings: "Settings", symbols: Sequence[str], timeframes: "Sequence[Timeframe]"
) -> "list[tuple[str, Timeframe]]":
    """The series named, or where symbols or timeframes are not, those that are subscribed, wanted or held."""
    from okx_pipeline.storage.parquet import ParquetStore
    from okx_pipeline.storage.wanted import nothing_in_scope, series_in_scope

    if symbols and timeframes:
        files = ParquetStore(settings.parquet_root)
        # Those of which there are files take no database to be known.
        unheld = [symbol for symbol in symbols if not any(files.months(symbol, each.name) for each in timeframes)]
        if unheld:
            with _database(settings, existing=True) as database, database.connect() as connection:
                _refuse_unknown(connection, unheld)
        return [(symbol, timeframe) for symbol in symbols for timeframe in timeframes]
    with _database(settings, existing=True) as database, database.connect() as connection:
        _refuse_unknown(connection, symbols)
        found = [
            (symbol, timeframe)
            for symbol, timeframe in series_in_scope(connection)
            if (not symbols or symbol in symbols) and (not timeframes or timeframe in timeframes)
        ]
    lacking = [symbol for symbol in symbols if symbol not in dict(found)]
    if lacking:
        raise UsageError(f"nothing of {', '.join(lacking)} is subscribed, wanted or held in these timeframes")
    if not found:
        raise nothing_in_scope()
    return found


def _refuse_unknown(connection: "Connection", symbols: Sequence[str]) -> None:
    """Refuse symbols of which nothing can be told: an answer without them would pass for one about them."""
    from okx_pipeline.storage.overview import unknown_symbols

    unknown = unknown_symbols(connection, symbols)
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: neither subscribed nor held; check how it is spelled")


def _refuse_empty_scope(
    connection: "Connection",
    symbols: Sequence[str] = (),
    timeframes: "Sequence[Timeframe]" = (),
    first: date | None = None,
    last: date | None = None,
) -> None:
    """Refuse what nobody wants and nothing is held of: an answer about nothing would pass for a good one."""
    from okx_pipeline.storage.wanted import is_in_scope, nothing_in_scope

    _refuse_unknown(connection, symbols)
    if not is_in_scope(connection, symbols, timeframes, first, last):
        raise nothing_in_scope()


def _judge(
    settings: "Settings",
    database: "Database",
    wanted: "tuple[Sequence[str], Sequence[Timeframe], date | None, date | None]",
) -> "list[DayJudged]":
    from okx_pipeline.quality.data_docs import DataDocs
    from okx_pipeline.quality.verdicts import days_to_judge, judge_days
    from okx_pipeline.storage.candle_store import CandleStore
    from okx_pipeline.storage.parquet import ParquetStore

    asyncio.run(_account(settings, database))
    docs, judged = DataDocs(settings.quality_folder), []
    with CandleStore.opened(database, ParquetStore(settings.parquet_root)) as store:
        symbols, timeframes, first, last = wanted
        _refuse_empty_scope(store.connection, symbols, timeframes, first, last)
        days = days_to_judge(store, symbols=symbols, timeframes=timeframes, start=first, end=last)
        total = len({day for of_symbol in days.values() for day in of_symbol})
        with _counting(total, "days") as done:
            for day in judge_days(store, docs, days, timeframes=timeframes):
                judged.append(day)
                done()
    with _counting(None, "building the pages"):
        docs.build()
    return judged


def _judged(settings: "Settings", days: "Sequence[DayJudged]") -> dict[str, Any]:
    verdicts = [verdict for day in days for verdict in day.verdicts]
    failed = [verdict for verdict in verdicts if not verdict.passed]
    return {
        "days": sum(bool(day.verdicts) for day in days),
        "series_days": len({(each.symbol, each.timeframe, each.day) for each in verdicts}),
        "verdicts": len(verdicts),
        "errors": sum(each.is_error for each in failed),
        "warnings": sum(not each.is_error for each in failed),
        "report": str(settings.quality_folder / "site" / "index.html"),
        "failed": [
            {
                "symbol": each.symbol,
                "timeframe": each.timeframe,
                "day": each.day.isoformat(),
                "store": each.store.value,
                "check": each.check,
                "severity": str(each.severity),
                "accepted": each.accepted,
                "expectations": list(each.failed),
                "observed": each.observed,
            }
            for each in failed
        ],
    }


def _print_judged(document: dict[str, Any]) -> None:
    for each in document["failed"]:
        found = ", ".join(f"{name} ({rows} rows)" for name, rows in each["observed"].get("unexpected", {}).items())
        level = "error" if each["severity"] == "critical" else each["severity"]
        level = f"accepted {level}" if each["accepted"] else level
        place = "" if each["store"] == "postgres" else " in Parquet"
        _print(f"{each['day']} {each['symbol']} {each['timeframe']}{place}: {level} in {each['check']}: {found}")
    if not document["series_days"]:
        _print("nothing is judged: no day of that is both over and read from OKX yet")
        return
    _print(
        "{days:,} days of {series_days:,} series-days judged: {errors:,} errors, {warnings:,} warnings; "
        "report: {report}".format(**document)
    )


async def _look_for_gaps(
    settings: "Settings", database: "Database", wanted: "GapsWanted", *, mend: bool
) -> "GapsReport":
    from okx_pipeline.history.backfill import Backfill
    from okx_pipeline.quality.gaps_report import look_for_gaps

    async with Backfill.opened(settings, database) as filling:
        with _progress() as progress:
            return await look_for_gaps(filling, wanted, mend=mend, progress=progress)


async def _months(
    settings: "Settings", database: "Database", *, dry_run: bool
) -> "tuple[Sequence[MonthPlan | MonthDone], dict[SeriesMonth, str], list[str]]":
    """What would be done to the months or was, what has expired and stays, and archives found damaged."""
    from okx_pipeline.history.backfill import Backfill
    from okx_pipeline.maintenance.upkeep import maintain as look_after_months
    from okx_pipeline.maintenance.upkeep import plan_months

    async with Backfill.opened(settings, database) as backfill:
        if not dry_run:
            looked_after = await look_after_months(backfill)
            return looked_after.done, looked_after.kept, list(looked_after.damaged.values())
        plans = await plan_months(backfill)
    busy = [plan for plan in plans if not plan.is_idle]
    return busy, {key: why for plan in plans for key, why in plan.kept.items()}, []


async def _account(settings: "Settings", database: "Database") -> None:
    from okx_pipeline.history.backfill import Backfill

    async with Backfill.opened(settings, database) as filling:
        await asyncio.to_thread(filling.store.account, await filling.known_ms())


async def _forget(
    settings: "Settings",
    database: "Database",
    symbol: str,
    timeframes: "Sequence[Timeframe]",
    within: "TimeRange",
    *,
    delete: bool,
) -> "tuple[dict[Timeframe, list[TimeRange]], int]":
    from okx_pipeline.history.backfill import Backfill
    from okx_pipeline.storage.forgetting import delete_unwanted, refuse_archived
    from okx_pipeline.storage.wanted import forget as end_wanted
    from okx_pipeline.timeframes import day_of

    async with Backfill.opened(settings, database) as filling:
        store = filling.store
        now_ms = await filling.known_ms()
        days = day_of(within.start_ms), None if within.end_ms > now_ms else day_of(within.end_ms)
        _refuse_empty_scope(store.connection, [symbol], timeframes, *days)
        if delete:
            refuse_archived(store.connection, symbol, timeframes, within)
        forgotten = end_wanted(store.connection, symbol, timeframes, within)
        rows = 0
        if delete:
            rows = await asyncio.to_thread(
                delete_unwanted, store.connection, store.files, symbol, timeframes, within, now_ms
            )
        await asyncio.to_thread(store.account, now_ms)
    if not forgotten and not rows:
        held = "" if delete else "; with --delete, rows that are held go all the same"
        raise UsageError(f"nothing of {symbol} is wanted there any more{held}")
    return forgotten, rows


async def _check_collectable(
    settings: "Settings", database: "Database", symbols: Sequence[str], since: date | None
) -> None:
    from okx_pipeline.history.backfill import Backfill
    from okx_pipeline.timeframes import day_of

    async with Backfill.opened(settings, database) as exchange:
        if since is not None and since > (today := day_of(await exchange.known_ms())):
            raise UsageError(f"--since {since} lies in the future; at OKX it is {today}")
        for symbol in symbols:
            await exchange.life_of(symbol)


def _print_subscriptions(found: "Sequence[Subscription]", as_json: bool) -> None:
    from okx_pipeline.timeframes import utc

    if as_json:
        _print_json([{**asdict(each), "timeframe": each.timeframe.name} for each in found])
        return
    for each in found:
        until = "" if each.until_ms is None else f" until {utc(each.until_ms):%Y-%m-%d %H:%M} UTC"
        _print(f"{each.symbol:<20} {each.timeframe!s:>4}  since {utc(each.since_ms):%Y-%m-%d}{until}")


async def _record_listing(settings: "Settings", database: "Database") -> None:
    from okx_pipeline.history.backfill import Backfill

    async with Backfill.opened(settings, database) as exchange:
        # It is tried less often than the listing: where nobody answers, it fails within seconds.
        await exchange.clock.now_ms()
        listing = await exchange.record_listing()
    _tell(f"OKX lists {listing.listed:,} symbols: {listing.added:,} new or changed, {listing.delisted:,} gone")


def _print_symbols(found: "Sequence[ListedSymbol]", as_json: bool) -> None:
    from okx_pipeline.timeframes import utc

    if as_json:
        lengths = ("subscribed", "held")
        _print_json(
            [{**asdict(each), **{name: [*map(str, getattr(each, name))] for name in lengths}} for each in found]
        )
        return
    _print(f"{'symbol':<20} {'type':<8} {'state':<9} {'subscribed':<20} held")
    for each in found:
        held = ""
        if each.first_ms is not None and each.last_ms is not None:
            held = f"{utc(each.first_ms):%Y-%m-%d %H:%M} to {utc(each.last_ms):%Y-%m-%d %H:%M} UTC"
        subscribed = ",".join(map(str, each.subscribed))
        row = f"{each.symbol:<20} {each.type or '-':<8} {each.state or '-':<9} {subscribed or '-':<20} {held or '-'}"
        _print(row)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a backfill was asked for; where no symbol or timeframe was named, the subscribed ones."""

    first: date
    last: date
    symbols: Sequence[str]
    timeframes: "Sequence[Timeframe]"
    refetch: bool


async def _backfill(settings: "Settings", database: "Database", wanted: Wanted) -> "tuple[Report, Plan]":
    from okx_pipeline.history.backfill import Backfill
    from okx_pipeline.history.plan import days_of_range
    from okx_pipeline.storage.subscriptions import subscriptions

    async with Backfill.opened(settings, database) as filling:
        subscribed: dict[str, list[Timeframe]] = {}
        for each in subscriptions(filling.store.connection):
            subscribed.setdefault(each.symbol, []).append(each.timeframe)
        spans = [
            days_of_range(symbol, timeframe, wanted.first, wanted.last)
            for symbol in wanted.symbols or list(subscribed) or settings.symbols
            for timeframe in wanted.timeframes or subscribed.get(symbol) or settings.timeframes
        ]
        plan = await filling.plan(spans, only_missing=not wanted.refetch)
        cost = plan.estimate
        _tell(
            f"{cost.candles:,} candles to fetch: {cost.requests:,} requests, at least {_duration(cost.seconds)}, "
            f"about {cost.disk_bytes / 1e6:,.1f} MB of disk"
            if cost.requests
            else "nothing to fetch"
        )
        filling.check_disk(plan)
        # Before the first candle lands: whatever becomes of this run, the ledger then shows what it did not bring.
        await filling.want((span for span in spans if span not in plan.notes), "backfill")
        with _progress() as progress:
            return await filling.run(plan, progress=progress), plan


@contextmanager
def _progress() -> Iterator["Progress | None"]:
    """A bar for each phase on stderr where a terminal watches, with share done and time left; rates while fetching."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[Phase, TaskID] = {}
        started = monotonic()

        def update(phase: "Phase", *, done: int, total: int, rows: int, requests: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task("", total=None)
            elapsed = max(monotonic() - started, 0.001)
            told = {
                "fetching": f"fetching  {rows / elapsed:,.0f} candles/s, {requests / elapsed:.1f} requests/s",
                "projecting": f"bringing {total:,} Parquet files up to date",
                "counting": "bringing the ledger up to date",
            }
            # A phase of one step moves without an end in sight until it is done.
            known = None if (done, total) == (0, 1) else total
            bar.update(tasks[phase], description=told[phase], completed=done, total=known)

        yield update


@contextmanager
def _counting(total: int | None, what: str) -> "Iterator[Callable[[], None]]":
    """A progress bar on stderr that is moved on by calling what it gives; nothing where no terminal watches.

    Without a `total` it moves by itself until the work is done.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    share = () if total is None else (MofNCompleteColumn(),)
    columns = (BarColumn(), *share, TextColumn(what), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
        if total is None:
            bar.update(task, total=1, completed=1)


def _symbols(text: str | None) -> Sequence[str]:
    from okx_pipeline.candles import parse_symbols

    return () if text is None else parse_symbols(text) or _refuse("--symbols names no symbol")


def _timeframes(text: str | None) -> "Sequence[Timeframe]":
    from okx_pipeline.timeframes import parse_timeframes

    return () if text is None else parse_timeframes(text) or _refuse("--timeframes names no timeframe")


def _refuse(message: str) -> NoReturn:
    raise UsageError(message)


@contextmanager
def _database(settings: "Settings", *, migrated: bool = True, existing: bool = False) -> Iterator["Database"]:
    """The store of the settings; for a command that only makes sense on one that is there, `existing`."""
    from okx_pipeline.storage.database import translated
    from okx_pipeline.storage.opening import opened_database

    if existing:
        _check_there_is_a_store(settings)
    with opened_database(settings, on_wait=_tell, migrated=migrated) as database, translated(database.place):
        yield database


def _settings() -> "Settings":
    from okx_pipeline.settings import read_settings_of_home

    return read_settings_of_home()


def _days(start: str, end: str) -> tuple[date, date]:
    first, last = _day("--start", start), _day("--end", end)
    tomorrow = datetime.now(tz=UTC).date() + timedelta(days=1)
    if first >= last:
        raise UsageError(f"--start {first} is not before --end {last}; the end is the day after the last one wanted")
    if last > tomorrow:
        raise UsageError(f"--end {last} reaches into the future; the last end there can be is {tomorrow}")
    return first, last


def _range(start: str | None, end: str | None) -> tuple[date | None, date | None]:
    if start is not None and end is not None:
        return _days(start, end)
    first = None if start is None else _day("--start", start)
    today = datetime.now(tz=UTC).date()
    if first is not None and first > today:
        raise UsageError(f"--start {first} lies in the future; the last start there can be is {today}")
    return first, None if end is None else _day("--end", end)


def _percent(share: float) -> str:
    """In percent, never rounded up to a whole that it is not."""
    return "100 %" if share >= 100 else f"{min(share, 99.99):.2f} %"


def _day(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a day; write it as 2026-08-01") from None


def _month(text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise UsageError(f"--month {text!r} is not a month; write it as 2024-01") from None


def _absolute(file: str) -> Path:
    return Path(file).expanduser().absolute()


def _moment_ms(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--now {text!r} is not a moment; write it as 2026-08-22T00:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _without_password(url: str) -> str:
    url = re.sub(r"^(\w+://[^:@/?]*):[^@/?]*@", r"\1@", url)
    return re.sub(r"(?<=[?&])password=[^&]*&?", "", url)


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


_users_umask: int = 0o077
"""What the user's shell had."""

_log: logging.Logger | None = None
"""Where what is told goes, if stderr is a log of lines that are not for people."""


def _tell(text: str) -> None:
    if _log is not None:
        _log.info("%s", text)
    else:
        print(text, file=sys.stderr, flush=True)


def _complain(text: str) -> None:
    line = " ".join(text.split())
    if _log is not None:
        _log.error("%s", line)
    else:
        print(f"error: {line}", file=sys.stderr, flush=True)

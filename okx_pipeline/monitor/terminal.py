"""The terminal: who looks at it and with which keys, drawn on again and again, and left as it was found.

What is drawn stands in `screen`.
"""

import os
import select
import signal
import sys
import termios
import threading
import tty
from contextlib import ExitStack, suppress
from io import TextIOWrapper
from time import monotonic
from typing import IO, Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.status import Status
from rich.text import Text

from okx_pipeline.errors import PipelineError, UsageError, command
from okx_pipeline.monitor.reading import Reader, Reading
from okx_pipeline.monitor.screen import ASCII, UNICODE, Strokes, frame, head_lines, printable
from okx_pipeline.settings import Settings
from okx_pipeline.storage.database import Database, DatabaseError

READ_EVERY_S: Final = 1.5
PLAIN_EVERY_S: Final = 10.0
"""How often a terminal that cannot be drawn on is shown everything anew."""

LOOK_AT_KEYS_S: Final = 0.2
OLD_AFTER_S: Final = 10.0
PLAIN_ROWS: Final = 40


def console_of(stream: IO[str], **how: Any) -> Console:
    """A console that writes to `stream` and never fails for a character that it does not have."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")
    return Console(file=stream, highlight=False, markup=False, emoji=False, **how)


def strokes_of(console: Console) -> Strokes:
    """The characters that the terminal has."""
    return ASCII if console.options.ascii_only else UNICODE


class Poller:
    """Reads again and again in a thread of its own, so that nobody at the terminal waits for a database."""

    def __init__(self, reader: Reader) -> None:
        self.rows = PLAIN_ROWS
        """Of so many series what landed lately is read, too."""
        self.latest: Reading | None = None
        self.problem: str | None = None
        self.looks = 0
        """How often it has looked; moves on when there is something new to draw."""
        self._reader = reader
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        # A database that does not answer is not waited for.
        self._thread.join(2.0)

    def _run(self) -> None:
        with self._reader:
            while not self._stop.is_set():
                try:
                    self.latest, self.problem = self._reader.read(self.rows), None
                    self.looks += 1
                    self._reader.measure_disk()
                except (PipelineError, DatabaseError, OSError) as problem:
                    self.problem = str(problem).partition("\n")[0]
                    self.looks += 1
                self._stop.wait(READ_EVERY_S)


class Keyboard:
    """Single keys of the terminal, if there is one: not echoed, and without waiting for the end of a line."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        with suppress(termios.error, OSError, ValueError):
            descriptor = sys.stdin.fileno()
            before = termios.tcgetattr(descriptor)
            tty.setcbreak(descriptor)
            # A process that is put to sleep would leave the terminal as it drew on it.
            now = termios.tcgetattr(descriptor)
            now[6][termios.VSUSP] = b"\x00"
            termios.tcsetattr(descriptor, termios.TCSADRAIN, now)
            self._before = before
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            with suppress(termios.error, OSError):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)
            self._before = None

    def pressed(self) -> str:
        """The keys that were pressed since the last look."""
        if self._before is None or not select.select([sys.stdin], [], [], 0)[0]:
            return ""
        try:
            return os.read(sys.stdin.fileno(), 1024).decode(errors="replace")
        except OSError:
            return ""  # the terminal is gone


class Screen:
    """The monitor over the whole of a terminal.

    Parameters
    ----------
    footer
        What the last line says of keys.
    """

    def __init__(self, console: Console, poller: Poller, footer: str) -> None:
        self._console = console
        self._poller = poller
        self._footer = footer
        self._keyboard = Keyboard()
        self._live = Live(console=console, screen=True, auto_refresh=False, get_renderable=self._draw)
        self._drawn: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        self._keyboard.__enter__()
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._live.stop()
        self._keyboard.__exit__()

    def tick(self) -> bool:
        """Draw what is new; False once somebody has pressed q."""
        state = (self._poller.looks, self._console.size, self._is_old())
        if state != self._drawn:
            self._drawn = state
            self._live.refresh()
        return "q" not in self._keyboard.pressed().lower()

    def _is_old(self) -> int:
        """How old what is shown is, in seconds, once that is worth a word."""
        latest = self._poller.latest
        age_s = 0.0 if latest is None else monotonic() - latest.read_s
        return int(age_s) if age_s > OLD_AFTER_S else 0

    def _draw(self) -> RenderableType:
        width, height = self._console.size
        return drawn(self._poller, width, height, strokes_of(self._console), self._is_old(), self._footer)


def drawn(
    poller: Poller, width: int, height: int | None, strokes: Strokes, old_s: int = 0, footer: str = ""
) -> RenderableType:
    """What the poller has, with a word on top where it is old or where it could not be read."""
    above = []
    if poller.problem is not None:
        above.append(Text(printable(poller.problem), "bold red", no_wrap=True, overflow="crop"))
    if old_s:
        above.append(Text(f"what is shown is {old_s} s old", "bold red"))
    if poller.latest is None:
        return Group(*above, *([] if above else [Text("reading …" if strokes is UNICODE else "reading ...")]))
    lines = None if height is None else height - len(above)
    if lines is not None:
        poller.rows = lines
    return Group(*above, frame(poller.latest, width, lines, strokes, footer=footer))


def once(settings: Settings, database: Database) -> str | None:
    """Print everything as it is now, plainly; returns what is wrong, None if nothing is.

    Raises
    ------
    PipelineError
        If the database cannot be read.
    """
    console = console_of(sys.stdout, no_color=True)
    with Reader(settings, database) as reader:
        reader.measure_disk()
        reading = reader.read(PLAIN_ROWS)
    height = console.height if sys.stdout.isatty() else PLAIN_ROWS
    console.print(frame(reading, console.width, height, strokes_of(console)))
    return reading.health.problem


def watch(settings: Settings, database: Database) -> None:
    """Show everything in this terminal until q or Ctrl-C.

    Raises
    ------
    UsageError
        If this is no terminal.
    """
    console = console_of(sys.stdout)
    if not sys.stdout.isatty():
        raise UsageError(f"there is no terminal here to draw on; see: {command('monitor --once')}")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with Poller(Reader(settings, database)) as poller:
        if console.is_dumb_terminal:
            _follow(console, poller, stop)
            return
        with suppress(OSError), Screen(console, poller, "q quits") as screen:
            while screen.tick() and not stop.wait(LOOK_AT_KEYS_S):
                pass


def _follow(console: Console, poller: Poller, stop: threading.Event) -> None:
    """On a terminal that cannot be drawn on: everything anew, again and again, below what stands there."""
    shown_s = -PLAIN_EVERY_S
    while not stop.wait(LOOK_AT_KEYS_S):
        if poller.looks and monotonic() - shown_s >= PLAIN_EVERY_S:
            shown_s = monotonic()
            console.print(drawn(poller, console.width, PLAIN_ROWS, ASCII), Text())


class Board:
    """What `up` shows: lines as they come, and where a terminal watches, below them how everything is.

    Parameters
    ----------
    monitor
        Open the monitor over the whole terminal once everything runs; q closes it.

    Raises
    ------
    UsageError
        If a monitor is asked for where there is no terminal.
    """

    def __init__(self, *, monitor: bool = False) -> None:
        self._console = console_of(sys.stdout)
        # Not the console's word alone: it takes a variable of the environment for a terminal.
        self.is_drawn = sys.stdout.isatty() and not self._console.is_dumb_terminal
        """Whether there is a terminal to draw on."""
        if monitor and not self.is_drawn:
            raise UsageError("there is no terminal here to draw on; leave --monitor out")
        self._monitor = monitor
        self._opened = ExitStack()
        self._status: Status | None = None
        self._poller: Poller | None = None
        self._screen: Screen | None = None
        self._live: Live | None = None
        self._drawn = -1
        self._unsaid: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def say(self, line: str) -> None:
        """Say a line; while the monitor is open, afterwards."""
        if self._screen is not None:
            self._unsaid.append(line)
            return
        # A terminal that was closed is no reason to leave processes behind.
        with suppress(OSError):
            self._console.print(line, soft_wrap=True)
            self._console.file.flush()

    def await_(self, what: str) -> None:
        """Show what is waited for."""
        if not self.is_drawn:
            return
        with suppress(OSError):
            if self._status is None:
                self._status = self._console.status("")
                self._status.start()
            self._status.update(Text(f"waiting for {what}"))

    def show(self, settings: Settings, database: Database) -> None:
        """Everything runs: show how it is from now on."""
        self._end_status()
        if not self.is_drawn:
            return
        self._poller = self._opened.enter_context(Poller(Reader(settings, database)))
        with suppress(OSError):
            if self._monitor:
                self._screen = Screen(self._console, self._poller, "q leaves the monitor, Ctrl-C stops everything")
                self._screen.__enter__()
            else:
                self._show_summary()

    def tick(self) -> None:
        """Draw what is new; to be called often."""
        with suppress(OSError):
            if self._screen is not None and not self._screen.tick():
                self._leave_monitor()
                self._show_summary()
            if self._live is not None and self._poller is not None and self._poller.looks != self._drawn:
                self._drawn = self._poller.looks
                self._live.refresh()

    def close(self) -> None:
        """Leave the terminal as it was found, the last summary on it."""
        self._end_status()
        with suppress(OSError):
            self._leave_monitor()
            if self._live is not None:
                self._live.stop()
        self._live = None
        self._opened.close()

    def _end_status(self) -> None:
        if self._status is not None:
            with suppress(OSError):
                self._status.stop()
            self._status = None

    def _leave_monitor(self) -> None:
        if self._screen is not None:
            screen, self._screen = self._screen, None
            screen.__exit__()
            unsaid, self._unsaid = self._unsaid, []
            for line in unsaid:
                self.say(line)

    def _show_summary(self) -> None:
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._summary)
        self._live.start()

    def _summary(self) -> RenderableType:
        poller = self._poller
        if poller is None or poller.latest is None:
            return Text()
        above = [] if poller.problem is None else [Text(printable(poller.problem), "bold red")]
        _, *lines = head_lines(poller.latest, self._console.width, strokes_of(self._console))
        return Group(*above, *lines)

"""A terminal with a command in it: what it shows, the keys pressed, and how it was left."""

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

WITHIN_S = 300
CODES = re.compile(r"\x1b(?:\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07)")
HOME = "\x1b[H"
ALTERNATE, NORMAL = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """One side of a terminal; the command has the other."""

    def __init__(self, process: "subprocess.Popen[bytes]", own: int, other: int) -> None:
        self.process = process
        self.raw = ""
        self._own = own
        self._other = other
        self.before = termios.tcgetattr(other)

    @property
    def text(self) -> str:
        """Everything that was ever written, without what commands the terminal."""
        self._read(0)
        return CODES.sub("", self.raw)

    @property
    def lines(self) -> list[str]:
        """What the last whole drawing of the screen shows."""
        self._read(0)
        drawn = self.raw.split(HOME)
        return [line.rstrip() for line in CODES.sub("", drawn[-2] if len(drawn) > 2 else drawn[-1]).splitlines()]

    def await_text(self, text: str) -> None:
        """Wait until `text` was written after this call began."""
        seen, deadline = len(self.text), time.monotonic() + WITHIN_S
        while text not in self.text[max(0, seen - len(text)) :]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text[-3000:]}"
            self._read(0.1)
            assert self.process.poll() is None or text in self.text, f"no {text!r} in {self.text[-3000:]}"

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._own, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Make it larger or smaller."""
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Close it, as when its window is closed or the line to it is cut."""
        os.close(self._own)

    def end(self) -> int:
        """The command's exit status, once it has ended."""
        deadline = time.monotonic() + WITHIN_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.text[-3000:]}"
            self._read(0.1)
        self._read(0)
        return self.process.returncode

    @property
    def is_as_it_was(self) -> bool:
        """Whether keys are echoed again as they were, and nothing is left drawn over the screen."""
        drawn_over = self.raw.count(ALTERNATE) - self.raw.count(NORMAL)
        hidden = self.raw.rfind("\x1b[?25l") > self.raw.rfind("\x1b[?25h")
        return termios.tcgetattr(self._other) == self.before and not drawn_over and not hidden

    def _read(self, seconds: float) -> None:
        while select.select([self._own], [], [], seconds)[0]:
            try:
                read = os.read(self._own, 65536)
            except OSError:
                return
            self.raw += read.decode(errors="replace")
            seconds = 0


@contextmanager
def terminal(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    columns: int = 80,
    rows: int = 24,
) -> Iterator[Terminal]:
    """Run a command in a terminal; it is killed at the end if it lives still."""
    own, other = os.openpty()
    fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={"TERM": "xterm-256color", **environment},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        stdin=other,
        stdout=other,
        stderr=other,
    )
    try:
        yield Terminal(process, own, other)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        with suppress(OSError):
            os.close(own)
        os.close(other)

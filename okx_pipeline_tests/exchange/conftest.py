"""What the tests of this room share: OKX's recorded bodies."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest


class _Frame(msgspec.Struct):
    what: str
    frame: msgspec.Raw = msgspec.Raw(b"")


class _Frames(msgspec.Struct):
    frames: list[_Frame]


@pytest.fixture(scope="session")
def recorded(recordings: Path) -> Callable[[str], bytes]:
    """`recorded(what)`: the one body of `frames.json` whose description begins so, character for character."""
    frames = msgspec.json.decode((recordings / "frames.json").read_bytes(), type=_Frames).frames

    def find(what: str) -> bytes:
        (found,) = (frame for frame in frames if frame.what.startswith(what))
        return bytes(found.frame)

    return find

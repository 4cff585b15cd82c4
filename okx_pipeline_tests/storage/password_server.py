"""A PostgreSQL that asks for a password: over TCP, and on a socket in a folder with spaces."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg

from okx_pipeline.storage.embedded import EmbeddedPostgres

OWNER_PASSWORD = "owner's own"  # noqa: S105 - of a server that lives for seconds


@dataclass(frozen=True)
class PasswordServer:
    """Where it is, and as whom to run what belongs to it."""

    port: int
    socket_folder: Path
    prefix: tuple[str, ...]

    def url(self, user: str = "owner", password: str = OWNER_PASSWORD, name: str = "postgres") -> str:
        return f"postgresql://{quote(user)}:{quote(password, safe='')}@127.0.0.1:{self.port}/{name}"

    def socket_url(self, user: str = "owner", password: str = OWNER_PASSWORD, name: str = "postgres") -> str:
        place = f"host={quote(str(self.socket_folder), safe='')}&port={self.port}"
        return f"postgresql://{quote(user)}:{quote(password, safe='')}@/{name}?{place}"


def free_port() -> int:
    """A port of the loopback that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def password_server(folder: Path) -> Iterator[PasswordServer]:
    """Run one in `folder` while the block runs."""
    embedded = EmbeddedPostgres(folder)
    account = embedded._account()
    data, password = folder / "data", folder / "password"
    data.mkdir(mode=0o700)
    # Not in the folder, whose path may be too long for a socket.
    sockets = Path(tempfile.mkdtemp(prefix="a socket folder ", dir="/tmp"))
    for made in (data, sockets):
        if os.geteuid() == 0:
            os.chown(made, account.uid, account.gid)
    password.write_text(OWNER_PASSWORD)
    initdb = ["initdb", "--username=owner", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "--locale=C"]
    run(account.prefix, embedded.bin, [*initdb, "--encoding=UTF8", "-D", str(data)])
    server = PasswordServer(free_port(), sockets, account.prefix)
    settings = {"listen_addresses": "127.0.0.1", "port": server.port, "fsync": "off"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    command = [embedded.bin / "postgres", "-D", data, f"--unix_socket_directories={sockets}", *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*account.prefix, *command], stdout=log, stderr=log, cwd="/")
    try:
        await_server(server.url(), process)
        yield server
    finally:
        process.terminate()  # waits for nobody's transactions: the tests have closed theirs
        process.wait(60)
        shutil.rmtree(data)
        shutil.rmtree(sockets)


def run(prefix: tuple[str, ...], programs: Path, command: list[str]) -> None:
    full = [*prefix, str(programs / command[0]), *command[1:]]
    subprocess.run(full, cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True)


def await_server(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until `url` takes connections, which `process` is to do."""
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "it ended"
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "it does not take connections"
            time.sleep(0.01)
        else:
            return

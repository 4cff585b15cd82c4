"""The pages, asked for over a socket: who is served, under which name, on which address."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from okx_pipeline_tests.e2e.system import WITHIN_S, free_port

OTHER_LOOPBACK = "127.0.0.2"
"""Linux answers on all of 127.0.0.0/8; elsewhere it is no address of the machine."""


@contextmanager
def served(home: Path, *arguments: str, **settings: str) -> Iterator[int]:
    """`okx-pipeline pages` in `home`; yields its port once it listens."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "okx_pipeline", "pages", "--port", str(port), *arguments]
    environment = {"PATH": os.environ["PATH"], "OKX_HOME": str(home), **settings}
    host = arguments[arguments.index("--host") + 1] if "--host" in arguments else "127.0.0.1"
    with subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + WITHIN_S
            while not listens(host, port):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline
            # What listens may not answer yet, and is not yet told to end.
            asked(port, host=host)
            yield port
            process.terminate()
            process.wait(WITHIN_S)
        finally:
            process.kill()


def listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.1)
        return probe.connect_ex((host, port)) == 0


def asked(port: int, path: str = "/", name: str = "127.0.0.1", host: str = "127.0.0.1") -> httpx.Response:
    url = f"http://{host}:{port}{path}"
    return httpx.get(url, headers={"Host": f"{name}:{port}"}, trust_env=False, timeout=WITHIN_S)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a page."""
    site = tmp_path / "quality" / "site"
    site.mkdir(parents=True)
    (site / "index.html").write_text("the page")
    (tmp_path / "secret").write_text("not a page")
    return tmp_path


def test_only_pages_are_served_and_only_under_names_that_are_known(home: Path) -> None:
    with served(home, OKX_PAGES_URL="https://candles.example.com") as port:
        assert asked(port).headers["location"] == "/quality/index.html"
        for name in ("127.0.0.1", "localhost", "candles.example.com"):
            assert asked(port, "/quality/index.html", name).text == "the page"
        assert asked(port, "/quality/index.html", "elsewhere.example.com").status_code == 400
        for path in ("/secret", "/quality/../../secret", "/quality/%2e%2e/%2e%2e/secret"):
            assert asked(port, path).status_code == 404


def test_a_missing_page_is_told_in_words_and_served_once_it_exists(tmp_path: Path) -> None:
    with served(tmp_path) as port:
        for path in ("/reports/", "/reports/index.html", "/reports/2026-08-21.html"):
            answer = asked(port, path)
            assert answer.status_code == 404, path
            assert "The first daily report is written at 01:00 UTC" in answer.text
        for path in ("/quality/", "/quality/index.html", "/quality/x"):
            answer = asked(port, path)
            assert answer.status_code == 404, path
            assert "No day is judged yet" in answer.text
        answer = asked(port)
        assert answer.status_code == 200
        assert "No day is judged yet" in answer.text
        long = "x" * 300
        for path in (
            "/x",
            "/qualityx",
            "/%00",
            "/reports/%00",
            "/quality/%ff",
            f"/reports/{long}",
            "//",
            "/reports//etc",
        ):
            assert asked(port, path).status_code == 404, path
        (tmp_path / "reports").mkdir()
        assert "The first daily report" in asked(port, "/reports/").text
        (tmp_path / "reports" / "index.html").write_text("the reports")
        assert asked(port, "/reports/").text == "the reports"
        answer = asked(port, "/reports/2026-08-21.html")
        assert answer.status_code == 404
        assert "There is no such page" in answer.text


def test_the_ui_is_where_up_started_it_or_where_the_proxy_serves_it(home: Path) -> None:
    with served(home, "--ui-port", "3456") as port:
        assert asked(port, "/quality/ui").headers["location"] == "http://127.0.0.1:3456/"
    with served(home, OKX_PAGES_URL="https://candles.example.com") as port:
        assert asked(port, "/quality/ui").headers["location"] == "https://candles.example.com/"


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of Linux's loopback alone")
def test_it_listens_on_the_address_that_is_asked_for_and_on_no_other(home: Path) -> None:
    with served(home, "--host", OTHER_LOOPBACK) as port:
        assert asked(port, "/quality/index.html", host=OTHER_LOOPBACK).text == "the page"
        assert not listens("127.0.0.1", port)
    with served(home) as port:
        assert not listens(OTHER_LOOPBACK, port)


def test_an_address_of_another_machine_is_one_line(home: Path) -> None:
    command = [sys.executable, "-P", "-m", "okx_pipeline", "pages", "--port", "0", "--host", "192.0.2.1"]
    environment = {"PATH": os.environ["PATH"], "OKX_HOME": str(home)}
    ended = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: port 0 cannot be used")
    assert "is 192.0.2.1 an address of this machine?" in ended.stderr
    assert ended.stderr.count("\n") == 1

"""What is known of the packages that are installed: a list, and an audit that takes no silence for health."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """The targets are those of a clone with its own .venv."""
    if not (REPOSITORY / ".venv" / "bin" / "pip-audit").exists():
        pytest.skip("the repository's own .venv is not here, or older than its lock")


@contextmanager
def service(vulnerable: str) -> Iterator[str]:
    """A vulnerability service that knows of one package."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = [{"id": "TEST-2026-1", "summary": "made up", "affected": []}]
            name = asked["package"]["name"]
            body = json.dumps({"vulns": known} if name == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


def audited(url: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    options = ["--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", str(cache)]
    return subprocess.run(
        [REPOSITORY / ".ci" / "audit", *options],
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_known_vulnerability_is_told(tmp_path: Path) -> None:
    with service("jinja2") as url:
        ended = audited(url, tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert re.search(r"^jinja2 +\S+ +TEST-2026-1", ended.stdout, re.MULTILINE)


def test_where_nobody_can_be_asked_that_is_said_in_a_line(tmp_path: Path) -> None:
    ended = audited("http://127.0.0.1:9/v1/query", tmp_path)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("audit: the vulnerability service could not be asked: ")
    assert ended.stderr.count("\n") == 1


def test_the_list_of_packages_is_that_of_a_deployment_with_its_hashes(tmp_path: Path) -> None:
    lock = (REPOSITORY / "deploy" / "requirements.lock").read_text()
    # As the target runs it; it validates what it writes against CycloneDX's schema, or fails.
    recipe = (REPOSITORY / "Makefile").read_text().partition("\nsbom:")[2].partition("\n\n")[0]
    command = re.search(r"PYTHONWARNINGS.*", recipe.replace("\\\n", ""))
    assert command is not None
    written = tmp_path / "sbom.json"
    here = command[0].replace("$(BIN)", ".venv/bin").replace(".artifacts/sbom.json", f"'{written}'")
    subprocess.run(["sh", "-euc", here], cwd=REPOSITORY, check=True)
    listed = json.loads(written.read_text())
    assert "--validate" in here
    assert listed["bomFormat"] == "CycloneDX"
    assert listed["metadata"]["component"]["name"] == "okx-pipeline"
    assert {(each["name"], each["version"]) for each in listed["components"]} == set(PACKAGE.findall(lock))
    assert all(each["externalReferences"][0]["hashes"] for each in listed["components"])

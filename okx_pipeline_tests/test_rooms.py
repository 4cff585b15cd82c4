"""The house rules: who may import whom, and what may stand where."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import okx_pipeline

PACKAGE = Path(okx_pipeline.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import of the others; a room that is not named may import everything.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "timeframes": {"errors"},
    "ranges": {"timeframes"},
    "candles": {"errors", "timeframes"},
    "settings": {"errors", "timeframes", "candles"},
    "exchange": {"errors", "timeframes", "candles"},
    "storage": {"errors", "timeframes", "ranges", "candles", "settings", "exchange"},
    "history": {"errors", "timeframes", "ranges", "candles", "settings", "exchange", "storage"},
    "alerts": {"errors", "timeframes", "ranges", "candles", "settings", "exchange", "storage"},
    "stream": {"errors", "timeframes", "ranges", "candles", "settings", "exchange", "storage", "history", "alerts"},
    "quality": {"errors", "timeframes", "ranges", "candles", "settings", "exchange", "storage", "history"},
    "maintenance": {
        *("errors", "timeframes", "ranges", "candles", "settings", "exchange", "storage", "history", "quality"),
    },
    "reports": {
        *("errors", "timeframes", "ranges", "candles", "settings", "exchange", "storage", "history", "quality"),
    },
    "replay": {"errors", "timeframes", "candles", "exchange"},
}
OKX_WORDS = re.compile(
    r"\b(instId|instType|instFamily|baseCcy|quoteCcy|ctVal|tickSz|lotSz|listTime|expTime|volCcy|volCcyQuote)\b"
)
SQL = re.compile(
    r"\b(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+\w+(\.\w+)?\s+SET|DELETE\s+FROM|CREATE\s+(TABLE|SCHEMA))\b", re.DOTALL
)


def room_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def texts(module: Path) -> Iterator[str]:
    """String constants that are not docstrings."""
    tree = ast.parse(module.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


modules = pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))


@modules
def test_a_lower_room_never_imports_a_higher_one(module: Path) -> None:
    room = room_of(module)
    others = {name.split(".")[1] for name in imports(module) if name.startswith("okx_pipeline.")}
    if room in BELOW:
        assert others - BELOW[room] - {room} == set()


@modules
def test_only_the_dagster_room_imports_dagster(module: Path) -> None:
    if room_of(module) not in {"defs", "definitions"}:
        assert not [name for name in imports(module) if name.split(".")[0].startswith("dagster")]


@modules
def test_only_the_exchange_room_knows_okx_words(module: Path) -> None:
    if room_of(module) != "exchange":
        assert not [text for text in texts(module) if OKX_WORDS.search(text)]


@modules
def test_only_the_storage_room_writes_sql(module: Path) -> None:
    if room_of(module) != "storage":
        assert not [text for text in texts(module) if SQL.search(text)]
        assert not [name for name in imports(module) if name.split(".")[0] in {"psycopg", "psycopg2"}]


@modules
def test_only_the_settings_read_the_environment(module: Path) -> None:
    if room_of(module) != "settings":
        assert not re.search(r"\bos\.(environ|getenv)\b", module.read_text())


@modules
def test_no_message_writes_out_a_command_that_the_user_may_have_to_type_otherwise(module: Path) -> None:
    # errors.command() knows the program as it was typed; PROGRAM stands in what is stored.
    assert not [text for text in texts(module) if re.search(r"okx-pipeline(`|\b) +[a-z]|python -m okx_pipeline ", text)]


@modules
def test_a_moment_in_a_message_is_written_out(module: Path) -> None:
    # timeframes.iso() writes it as users do; raw milliseconds are for programs.
    raw = [
        ast.unparse(value.value)
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.JoinedStr)
        for value in node.values
        if isinstance(value, ast.FormattedValue) and value.format_spec is None
    ]
    assert not [name for name in raw if re.search(r"_ms$|opens\[\d+\]$", name)]


@modules
def test_every_module_says_what_belongs_in_it(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text()))


def test_no_room_is_a_lumber_room() -> None:
    lumber = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
    assert not [module for module in MODULES if module.stem in lumber]

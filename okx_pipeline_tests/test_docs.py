"""The documentation, held against the program: its blocks run, its links lead somewhere, its names exist.

A fence says how its block is run: ``sh`` by a shell, ``sql`` by psql, ``python`` by Python or, if it holds definitions,
by Dagster, all on a store of real candles. ``console`` is for what needs another machine; of that, and of commands in
running text, the names are checked.
"""

import re
import runpy
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest
from dagster._core.workspace.load_target import WorkspaceFileTarget
from typer.main import get_command

from okx_pipeline.cli import app
from okx_pipeline.definitions import defs as ours
from okx_pipeline.defs import partitions
from okx_pipeline.defs.maintenance.months import months
from okx_pipeline.settings import Settings, read_settings
from okx_pipeline.storage.database import Connection
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline_tests import data_dictionary
from okx_pipeline_tests.test_readme import place, run

__all__ = ["place"]

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
RUN = ("sh", "sql", "python")
NOT_RUN = ("console", "json", "nginx", "yaml", "text")
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SHOWN = (
    ("AS whole, expected", r"t +\| +24 \| +24 \| +0 \| +0 \| +0"),
    # The last hour of the recordings is not due for another minute.
    ("gaps --start 2026-08-01", r"503 checked, 503 present, 0 missing, 0 absent"),
    ("restore okx.backup", r"4 months of series restored"),
)
"""What blocks with such a text show."""

BTC, ETH = "BTC-USDT-SWAP", "ETH-USDT-SWAP"
Place = tuple[Path, dict[str, str]]


class Block(NamedTuple):
    """A fenced block: its page, its language, the line it begins in, what it holds."""

    page: str
    language: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append(Block(page.name, fence[1], text[: fence.start()].count("\n") + 1, fence[2]))
    return found


def prose() -> str:
    return "\n".join(page.read_text() for page in PAGES)


# The README's own test runs its blocks, in their order.
RUNNABLE = [
    block
    for block in blocks()
    if block.language in RUN and block.page != "README.md" and "dg.Definitions(" not in block.text
]


@pytest.fixture(scope="module")
def store(place: Place) -> Iterator[Place]:
    """The README's three weeks of two symbols, as its commands fetch them, in a folder that has the program."""
    folder, _ = place
    (folder / ".venv").symlink_to(Path(sys.prefix))
    # Held, so that the server does not start and stop with each command.
    with EmbeddedPostgres(folder / ".okx") as server:
        # What `okx-pipeline psql` starts.
        (folder / "psql").symlink_to(server.bin / "psql")
        (folder / "url").write_text(server.url)
        for command in (
            "backfill --start 2026-08-01 --end 2026-08-22 --symbols BTC-USDT-SWAP,ETH-USDT-SWAP --timeframes 5m,1h",
            "subscribe BTC-USDT-SWAP ETH-USDT-SWAP --timeframes 5m,1h --since 2026-08-01",
            "validate --start 2026-08-20 --end 2026-08-21",
        ):
            run(place, [sys.executable, "-P", "-m", "okx_pipeline", *shlex.split(command)])
        yield place


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_a_block_runs_as_it_stands(store: Place, block: Block) -> None:
    if block.language == "sh":
        told = run(store, ["sh", "-euc", block.text])
    elif block.language == "sql":
        url = (store[0] / "url").read_text()
        told = run(store, [f"{store[0]}/psql", "-d", url, "-v", "ON_ERROR_STOP=1", "-c", block.text])
    else:
        told = run(store, [sys.executable, "-W", "error", "-c", block.text])
    print(told)
    assert told.strip(), "it shows nothing"
    assert all(re.search(shown, told) for text, shown in SHOWN if text in block.text)
    if block.page == "queries.md":
        assert "(0 rows)" not in told


@pytest.fixture
def own(store: Place, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """What the page on assets has a user write, in its two files, loaded where the store is."""
    folder, _ = store
    (code,) = (block.text for block in blocks() if "dg.Definitions(" in block.text)
    (workspace,) = (block.text for block in blocks() if "load_from:" in block.text)
    (folder / "workspace.yaml").write_text(workspace)
    (folder / "indicators.py").write_text(code)
    monkeypatch.chdir(folder)
    (origin,) = WorkspaceFileTarget([str(folder / "workspace.yaml")]).create_origins()
    assert origin.location_name == "indicators"
    defs = runpy.run_path(str(origin.loadable_target_origin.python_file))["defs"]
    assert isinstance(defs, dg.Definitions)
    return defs


def test_an_asset_of_ones_own_depends_on_ours_day_on_day_and_follows_the_verdict(own: dg.Definitions) -> None:
    both = dg.Definitions.merge(ours, own)
    graph = both.resolve_asset_graph()
    volatility = graph.get(dg.AssetKey("daily_volatility"))
    candles, judged = dg.AssetKey(["okx", "candles"]), dg.AssetKey(["okx", "candle_quality"])
    assert volatility.parent_keys == {candles, judged}
    for parent in volatility.parent_keys:
        assert graph.get(parent).partitions_def == volatility.partitions_def
        assert isinstance(graph.get_partition_mapping(volatility.key, parent), dg.IdentityPartitionMapping)
    key = f"2026-08-20|{BTC}"
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("okx_symbols", [BTC, ETH])
        tick = partial(dg.evaluate_automation_conditions, both, instance, dg.AssetSelection.assets(volatility.key))
        first = tick()
        instance.report_runless_asset_event(dg.AssetMaterialization(candles, partition=key))
        landed = tick(cursor=first.cursor)
        instance.report_runless_asset_event(dg.AssetMaterialization(judged, partition=key))
        then = tick(cursor=landed.cursor)
        assert (first.total_requested, landed.total_requested) == (0, 0)
        assert then.get_requested_partitions(volatility.key) == {key}


def test_an_asset_of_ones_own_materializes_from_the_candles_that_are_held(own: dg.Definitions) -> None:
    keys = [f"2026-08-20|{symbol}" for symbol in (BTC, ETH)]
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("okx_symbols", [BTC, ETH])
        tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[1]}
        assert own.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, tags=tags).success
        records = instance.fetch_materializations(dg.AssetKey("daily_volatility"), limit=10).records
        assert {record.partition_key for record in records} == set(keys)
        for record in records:
            metadata = (record.asset_materialization or pytest.fail("none")).metadata
            assert metadata["hours"].value == 24
            assert 0.05 < float(str(metadata["volatility"].value)) < 5


def test_the_table_of_assets_names_each_with_its_partitions() -> None:
    page = (REPOSITORY / "docs" / "assets.md").read_text()
    named = {
        key: partition.strip("`")
        for keys, partition in re.findall(r"^\| (`okx/[^|]+) \| ([^|]+) \|", page, re.MULTILINE)
        for key in re.findall(r"`(okx/\w+)`", keys)
    }
    graph = ours.resolve_asset_graph()
    assert set(named) == {key.to_user_string() for key in graph.get_all_asset_keys()}
    for key, name in named.items():
        definition = {"none": None, "months": months}.get(name, getattr(partitions, name, None))
        assert graph.get(dg.AssetKey(key.split("/"))).partitions_def == definition, key


def test_every_block_says_how_it_is_run() -> None:
    odd = [f"{block} {block.language!r}" for block in blocks() if block.language not in (*RUN, *NOT_RUN)]
    assert not odd
    assert all(any(text in block.text for block in RUNNABLE) for text, _ in SHOWN)


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in LINK.findall(page.read_text()):
            if re.match(r"https?://", target):
                continue
            path, _, anchor = target.partition("#")
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(found), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_found_from_the_readme() -> None:
    linked = {(REPOSITORY / target.partition("#")[0]).resolve() for target in LINK.findall(PAGES[0].read_text())}
    assert set(PAGES[1:]) <= linked


def test_every_command_and_option_that_is_named_exists() -> None:
    code = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose()) + [
        block.text for block in blocks() if block.language in ("sh", "console")
    ]
    mentioned = re.findall(r"okx-pipeline ([a-z]+)\b([^\n|#;)\"]*)", "\n".join(code))
    assert len(mentioned) > 30
    for name, rest in mentioned:
        assert name in COMMANDS, name
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        if name != "psql":
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known | {"--help"}, f"{name} {rest}"


def test_every_setting_that_is_named_exists_and_every_one_is_named() -> None:
    fields = {f"OKX_{name.upper()}" for name, field in Settings.model_fields.items() if field.validation_alias is None}
    assert set(re.findall(r"\bOKX_[A-Z_]+[A-Z]\b", prose())) == fields
    example = (REPOSITORY / ".env.example").read_text()
    assert set(re.findall(r"^#(OKX_[A-Z_]+)=", example, re.MULTILINE)) == fields


def test_the_example_of_settings_tells_defaults_from_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        str(field.validation_alias or f"OKX_{name.upper()}"): field for name, field in Settings.model_fields.items()
    }
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    defaults = read_settings()
    for before, line in pairwise(lines):
        name, _, value = line.removeprefix("#").partition("=")
        if not re.match(r"#\w+=", line) or name == "OKX_PARQUET_URL":
            continue
        assert (fields[name].default in (None, ())) == (before == "# Unset; for example:"), name
        if before != "# Unset; for example:":
            with monkeypatch.context() as chosen:
                chosen.setenv(name, value)
                assert read_settings() == defaults, name
    assert f"#OKX_PARQUET_URL={Path(defaults.parquet_root).relative_to(Path.cwd())}" in lines


def test_every_table_and_function_that_is_named_exists(connection: Connection) -> None:
    query = (
        "SELECT relname FROM pg_class WHERE relnamespace = 'trading'::regnamespace "
        "UNION SELECT proname FROM pg_proc WHERE pronamespace = 'trading'::regnamespace"
    )
    known = {name for (name,) in connection.execute(query)}
    assert set(re.findall(r"\btrading\.([a-z_]+)\b", prose())) <= known


def test_the_data_dictionary_is_what_the_database_says(connection: Connection) -> None:
    assert data_dictionary.PAGE.read_text() == data_dictionary.page(connection), "make docs"
    assert "None" not in data_dictionary.PAGE.read_text(), "a table or column has no comment"


def test_pictures_are_whole_and_have_a_text_in_their_place() -> None:
    for page in PAGES:
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            picture = ElementTree.parse(page.parent / target).getroot()  # noqa: S314 - our own
            assert picture.tag.endswith("svg")
            assert len(text) > 20, target

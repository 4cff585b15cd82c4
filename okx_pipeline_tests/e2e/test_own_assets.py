"""Assets of a user's own beside ours, as the page on them says: loaded by `up`, in the same graph, following ours."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from okx_pipeline_tests.e2e.system import System, Up, wait_for
from okx_pipeline_tests.test_docs import blocks

pytestmark = [pytest.mark.e2e, pytest.mark.long]

BROKEN = "  - python_file: {relative_path: broken.py, location_name: broken}\n"
SHOWN = """
{
    workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } }
    assetNodes { assetKey { path } dependedByKeys { path } partitionStats { numMaterialized } }
}
"""


def test_the_asset_of_the_page_follows_ours_and_a_location_that_does_not_load_stops_nothing(tmp_path: Path) -> None:
    (code,) = (block.text for block in blocks() if "dg.Definitions(" in block.text)
    (workspace,) = (block.text for block in blocks() if "load_from:" in block.text)
    (tmp_path / "indicators.py").write_text(code)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "workspace.yaml").write_text(workspace + BROKEN)
    settings = {"OKX_WORKSPACE": "workspace.yaml", "OKX_TIMEFRAMES": "1h"}
    since = (datetime.now(tz=UTC) - timedelta(days=3)).date()
    system = System(tmp_path / "home", tmp_path, OKX_HISTORY_START=f"{since}", **settings)
    with system.up("--replay", "synthetic") as up:
        shown = up.graphql(SHOWN)
        loaded = {
            entry["name"]: entry["locationOrLoadError"]["__typename"]
            for entry in shown["workspaceOrError"]["locationEntries"]
        }
        ours = {"okx_pipeline": "RepositoryLocation"}
        assert loaded == {"indicators": "RepositoryLocation", "broken": "PythonError", **ours}
        for upstream in ("okx/candles", "okx/candle_quality"):
            assert {"path": ["daily_volatility"]} in assets(up)[upstream]["dependedByKeys"]
        wait_for(lambda: materialized(up, "okx/candle_quality"), "days that were judged")
        wait_for(lambda: materialized(up, "daily_volatility") >= 2, "days of the user's own asset")


def assets(up: Up) -> dict[str, Any]:
    return {"/".join(node["assetKey"]["path"]): node for node in up.graphql(SHOWN)["assetNodes"]}


def materialized(up: Up, key: str) -> int:
    return int(assets(up)[key]["partitionStats"]["numMaterialized"])

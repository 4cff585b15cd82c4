"""What loading the code location costs: a code server that loads slowly is killed and restarted."""

import subprocess
import sys


def test_loading_the_definitions_imports_nothing_heavy_that_only_some_runs_need() -> None:
    code = "import sys, okx_pipeline.definitions; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"great_expectations", "pandas", "matplotlib", "uvicorn", "ccxt"}.intersection(loaded)


def test_help_imports_neither_dagster_nor_the_database() -> None:
    code = "import sys, okx_pipeline.cli; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"dagster", "psycopg", "pyarrow", "httpx"}.intersection(loaded)

"""Dagster's instance made by one process at a time.

Whoever opens it first makes its tables. Left to themselves the webserver and the daemon of a new home, which start at
once, do so beside each other, and the one that meets a table half made ends.
"""

import fcntl

from dagster import DagsterInstance

from okx_pipeline.settings import Settings


def make_instance(settings: Settings) -> None:
    """Open the instance of the home once, alone, which makes what it lacks; one that is elsewhere is left alone."""
    config = settings.root / "dagster" / "dagster.yaml"
    if not config.is_file():
        return
    with config.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with DagsterInstance.get():
            pass

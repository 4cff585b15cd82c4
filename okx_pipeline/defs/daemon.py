"""Dagster's daemon, as its own command is, on an instance that nobody else is making. Options are Dagster's."""

import sys

from dagster._daemon.cli import main as run

from okx_pipeline.defs.instance import make_instance
from okx_pipeline.errors import ExitStatus, UsageError
from okx_pipeline.settings import read_settings


def main() -> None:
    """Run it until SIGINT or SIGTERM, as the arguments of this process say."""
    try:
        make_instance(read_settings())
    except UsageError as problem:
        sys.stderr.write(f"error: {problem}\n")
        sys.exit(ExitStatus.USAGE)
    run()


if __name__ == "__main__":
    main()

"""Dagster's webserver, as its own command is, behind `OwnPagesOnly`.

Left to itself it runs mutations for whoever asks, by GET as well: a picture in any page that somebody on this machine
looks at could start and delete runs. Options, and everything that is served, are Dagster's.
"""

import os
import sys
from typing import Any

from dagster_webserver import cli

# From where it is put back: Dagster would have to rename it to be served unguarded, and then this fails.
from dagster_webserver.cli import create_app_from_workspace_process_context  # type: ignore[attr-defined]
from starlette.types import ASGIApp

from okx_pipeline.cross_site import OwnPagesOnly
from okx_pipeline.defs.instance import make_instance
from okx_pipeline.errors import ExitStatus, UsageError
from okx_pipeline.pages import known_names
from okx_pipeline.settings import read_settings

GRAPHQL = "/graphql"


def main() -> None:
    """Run it until SIGINT or SIGTERM, as the arguments of this process say."""
    # Of what it makes, as of everything here, nothing is for others on this machine.
    os.umask(0o077)
    try:
        settings = read_settings()
        names = known_names(settings)
    except UsageError as problem:
        sys.stderr.write(f"error: {problem}\n")
        sys.exit(ExitStatus.USAGE)

    def guarded(*arguments: Any, **options: Any) -> ASGIApp:
        application = create_app_from_workspace_process_context(*arguments, **options)
        return OwnPagesOnly(application, names, acting=[GRAPHQL])

    make_instance(settings)
    # There is no option for middleware.
    cli.create_app_from_workspace_process_context = guarded  # type: ignore[attr-defined,assignment]
    cli.main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()

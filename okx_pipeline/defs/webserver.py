"""Dagster's webserver with its own options and pages, behind two additions.

`OwnPagesOnly` guards it. Dagster alone runs mutations for anybody, by GET as well: a picture in any page that somebody
on this machine opens could start and delete runs.

`KnowsSymbols` gives each request the symbols of the partitions. Dagster 1.13.27 reads the states of a partitioned check
without them, and answers with an error where one dimension is dynamic.
"""

import os
import sys
from typing import Any

from dagster import DagsterInstance, partition_loading_context
from dagster._core.instance import CachingDynamicPartitionsLoader
from dagster._core.workspace.context import IWorkspaceProcessContext
from dagster_webserver import cli

# From where it is put back: Dagster would have to rename it to be served unguarded, and then this fails.
from dagster_webserver.cli import create_app_from_workspace_process_context  # type: ignore[attr-defined]
from starlette.types import ASGIApp, Receive, Scope, Send

from okx_pipeline.cross_site import OwnPagesOnly
from okx_pipeline.defs.instance import make_instance
from okx_pipeline.errors import ExitStatus, UsageError
from okx_pipeline.pages import known_names
from okx_pipeline.settings import read_settings

GRAPHQL = "/graphql"


class KnowsSymbols:
    """Answers each request of an application with the dynamic partitions of `instance`, each read once."""

    def __init__(self, application: ASGIApp, instance: DagsterInstance) -> None:
        self._application = application
        self._instance = instance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        with partition_loading_context(dynamic_partitions_store=CachingDynamicPartitionsLoader(self._instance)):
            await self._application(scope, receive, send)


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

    def guarded(workspace: IWorkspaceProcessContext[Any], *arguments: Any, **options: Any) -> ASGIApp:
        application = create_app_from_workspace_process_context(workspace, *arguments, **options)
        return OwnPagesOnly(KnowsSymbols(application, workspace.instance), names, acting=[GRAPHQL])

    make_instance(settings)
    # There is no option for middleware.
    cli.create_app_from_workspace_process_context = guarded  # type: ignore[attr-defined,assignment]
    cli.main()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()

"""The sensor that finds what is wrong and tells whom the settings name."""

import asyncio
from datetime import UTC, datetime
from functools import partial

import dagster as dg

from okx_pipeline.alerts.delivery import deliver
from okx_pipeline.alerts.incidents import Source, look
from okx_pipeline.alerts.sinks import sinks_of
from okx_pipeline.alerts.sources import damaged_archives, detached_partitions, open_gaps, quarantined_rows
from okx_pipeline.defs.alerts.sources import FAILED_RUN, FailedRuns, failed_checks, stale_stream
from okx_pipeline.defs.resources import Pipeline
from okx_pipeline.storage.alert_sources import note_daemon
from okx_pipeline.storage.alerts import forget_old


@dg.sensor(
    name="okx_alerts",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Keeps what is wrong as incidents, and tells a webhook and Telegram of each once, and when it is over.",
)
def alerts(context: dg.SensorEvaluationContext, pipeline: Pipeline) -> dg.SensorResult:
    """Incidents are kept whether anybody is told or not: `status` shows the open ones.

    A sink that does not answer costs a tick some seconds, and is told at a later one.
    """
    settings = pipeline.settings()
    sinks = sinks_of(settings)
    # Runs that failed before the first tick are history.
    since = datetime.fromisoformat(context.cursor) if context.cursor else datetime.now(tz=UTC)
    runs = FailedRuns(context.instance, since)
    assert context.repository_def is not None
    sources = [
        Source("failed_check", partial(failed_checks, context.instance, context.repository_def)),
        Source(FAILED_RUN, runs.look),
        Source("stale_stream", stale_stream),
        Source("quarantined_rows", quarantined_rows),
        Source("detached_partition", detached_partitions),
        Source("damaged_archive", damaged_archives),
        Source("open_gaps", partial(open_gaps, hours=settings.alert_gap_hours)),
    ]
    with pipeline.database() as database:
        with database.connect() as connection:
            note_daemon(connection)
            incidents = look(connection, sources, [sink.name for sink in sinks])
            forget_old(connection)
        delivered = asyncio.run(deliver(database, sinks))
    told = "; ".join(map(str, delivered)) or (
        "nobody is told: set OKX_ALERT_WEBHOOK_URL, or OKX_TELEGRAM_TOKEN and OKX_TELEGRAM_CHAT"
    )
    return dg.SensorResult(cursor=runs.since.isoformat(), skip_reason=f"{len(incidents)} incidents open; {told}")

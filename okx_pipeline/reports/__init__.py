"""Reports: what people read of a day. No Dagster, no SQL."""

"""Quality: what is missing, what disagrees, what cannot be believed; and how each is mended. No Dagster, no SQL."""

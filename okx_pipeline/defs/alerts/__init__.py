"""Alerts as Dagster raises them: what its instance and the store say is wrong, told by one sensor."""

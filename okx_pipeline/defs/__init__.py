"""Dagster: partitions, resources, then one folder a stage. What they do stands in a room without Dagster."""

"""The live stage: the sidecar's landings as Dagster sees them, and the sensor that watches over it."""

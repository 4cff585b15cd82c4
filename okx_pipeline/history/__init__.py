"""History: the wanted past from the exchange's REST API into the store. No Dagster, no SQL, no field of OKX's."""

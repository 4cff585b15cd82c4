"""PostgreSQL and Parquet: where candles and what is known about them are kept."""

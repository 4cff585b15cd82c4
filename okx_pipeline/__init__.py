"""OKX candles you can trust: exact, live and back to listing, in PostgreSQL and Parquet."""

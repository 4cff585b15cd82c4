"""The sidecar: confirmed candles from the exchange's WebSocket into the store, live; what is missed comes from REST."""

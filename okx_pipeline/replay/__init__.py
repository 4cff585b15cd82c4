"""A stand-in for OKX on loopback: recorded or synthetic candles served as OKX serves them, with faults on demand.

Nothing outside this folder needs it to work; it speaks OKX's words through `exchange.protocol` and `exchange.messages`.
"""

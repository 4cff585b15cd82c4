"""The stream and the store at a glance, at a terminal: read often and cheaply, and drawn.

Everything is read from PostgreSQL. What is right or wrong with candles is decided in the rooms below.
"""

"""Alerts: incidents found, remembered, and told to a webhook and to Telegram, each once.

A source says what is wrong now; what opens and resolves follows from the table. Dagster's sensor and the sidecar both
look and deliver, each from its own sources.
"""

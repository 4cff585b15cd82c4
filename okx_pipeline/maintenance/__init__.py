"""Months looked after for years: partitions ahead, whole months settled, retention, pruning, backup."""

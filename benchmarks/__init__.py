"""Benchmarks: each measures a ratio against a named limit within one run; none is a timed test."""

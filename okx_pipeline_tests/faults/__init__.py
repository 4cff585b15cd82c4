"""Faults, one test each, judged by a checker that knows nothing of the program: see docs/faults.md."""

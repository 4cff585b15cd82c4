"""The stage that brings the past: instruments, candles of closed days, and when they run."""

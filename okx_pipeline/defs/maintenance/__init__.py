"""The stage that keeps the store for years: months looked after, and what grows cut back."""

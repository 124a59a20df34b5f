"""Integration metrics."""

"""Measurements of each stage on this machine: `scgpt-ray benchmark`, and two programs for a bare GPU machine."""

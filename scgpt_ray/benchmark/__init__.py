"""Measurements of each stage on this machine: `scgpt-ray benchmark`, and a program for a bare GPU machine."""

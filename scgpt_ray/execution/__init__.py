"""Executors of the steps of a pipeline: this process, or Ray."""

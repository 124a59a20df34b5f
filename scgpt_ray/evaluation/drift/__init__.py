"""Drift of embeddings: new cells against earlier ones that they should resemble, with thresholds."""

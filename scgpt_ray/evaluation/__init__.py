"""Evaluation of labels and embeddings: metrics, effects of factors, plots, and HTML reports."""

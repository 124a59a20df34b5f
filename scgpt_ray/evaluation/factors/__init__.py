"""Batch effects of type I and type II: how factors change counts and embeddings."""

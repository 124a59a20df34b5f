"""Batch effects: what each factor does to counts and embeddings, type I and type II."""

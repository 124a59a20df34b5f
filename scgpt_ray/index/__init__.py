"""The faiss index: one trained template, shards that share it, search, and recall against exact search."""

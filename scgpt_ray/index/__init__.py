"""The faiss index: a trained template, shards built from it, search, and recall against exact search."""

"""Sources of cells (SOMA, .h5ad), gene harmonisation, and partitions."""

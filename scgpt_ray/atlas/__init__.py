"""Where cells come from: SOMA and h5ad locators, gene harmonisation, and the plan that numbers partitions."""

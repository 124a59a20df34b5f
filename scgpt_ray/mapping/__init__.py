"""From neighbours to labels: votes and their confidence."""

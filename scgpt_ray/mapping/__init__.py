"""From neighbours to labels: votes, what they are worth, when to say `Unknown`, and roll-up along an ontology."""

"""From neighbours to labels: votes, their calibration, rejection as `Unknown`, and roll-up along an ontology."""

"""From counts to tokens: rules, kernels, vocabulary. Imports no torch."""

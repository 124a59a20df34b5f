"""From counts to tokens: rules, kernels, vocabulary; without torch."""

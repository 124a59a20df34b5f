"""Pretraining and continual pretraining: the network with gradients, its objectives, and the training loop."""

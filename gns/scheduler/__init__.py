"""A policy in a training loop, where ``CosineAnnealingLR`` stood."""

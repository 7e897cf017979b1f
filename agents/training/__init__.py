"""Training a scheduling policy."""

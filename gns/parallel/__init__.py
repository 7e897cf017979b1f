"""Training runs spread over several processes."""

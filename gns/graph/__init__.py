"""The layer graph of any ``nn.Module``."""

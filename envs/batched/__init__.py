"""Many training runs side by side."""

"""What commands that work for hours need: settings, progress, checkpoints, stopping."""

"""Adapters to training frameworks. ``import gns`` imports none of them, nor their frameworks."""

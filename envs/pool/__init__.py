"""Training distributions: many different tasks drawn from a seed."""

from envs.pool.draw import PoolConfig, draw_pool

__all__ = ["PoolConfig", "draw_pool"]

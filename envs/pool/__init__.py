"""Training distributions: many different tasks drawn from a seed."""

from envs.pool.config import PoolConfig
from envs.pool.draw import draw_pool, draw_task

__all__ = ["PoolConfig", "draw_pool", "draw_task"]

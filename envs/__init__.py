"""Training runs as Gymnasium environments. Importing it registers ``gns/LearningRate-v0``."""

import gymnasium as gym

from envs.env_config import EnvConfig
from envs.learning_rate_env import LearningRateEnv
from envs.padding import PadGraph, unpad
from envs.tasks import Task, get_task, known_tasks, register_task
from envs.training_run import TrainingRun

__all__ = [
    "EnvConfig",
    "LearningRateEnv",
    "PadGraph",
    "Task",
    "TrainingRun",
    "get_task",
    "known_tasks",
    "register_task",
    "unpad",
]

if "gns/LearningRate-v0" not in gym.registry:
    gym.register(id="gns/LearningRate-v0", entry_point="envs.learning_rate_env:LearningRateEnv")

"""The task registry. Importing it registers the built-in tasks: each module beside this one that registers some."""

import importlib
import pkgutil

from envs.tasks.base import Split, Task, TrainingData, get_task, known_tasks, register_task

__all__ = ["Split", "Task", "TrainingData", "get_task", "known_tasks", "register_task"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    if _module.name != f"{__name__}.report":  # hands out the test splits, and the evaluation alone imports it
        importlib.import_module(_module.name)

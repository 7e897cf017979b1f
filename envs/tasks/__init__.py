"""The task registry. Importing it registers the built-in tasks."""

from envs.tasks import digits as _digits  # noqa: F401
from envs.tasks import glue as _glue  # noqa: F401
from envs.tasks import hf_images as _hf_images  # noqa: F401
from envs.tasks import images as _images  # noqa: F401
from envs.tasks import mnist1d as _mnist1d  # noqa: F401
from envs.tasks import squad as _squad  # noqa: F401
from envs.tasks import vae as _vae  # noqa: F401
from envs.tasks.base import Split, Task, TrainingData, get_task, known_tasks, register_task

__all__ = ["Split", "Task", "TrainingData", "get_task", "known_tasks", "register_task"]

"""The test splits: for reporting only.

The evaluation imports this module after every choice is made. Nothing in the environment does, and a test holds that.
"""

from __future__ import annotations

from envs.tasks.base import _TEST_SPLITS, Split, Task, get_task
from gns.errors import UnknownNameError


def load_test_split(task: str | Task) -> Split:
    """Return the test split of a task.

    :param task: its name, or the task with changed settings: a test split follows what its data depend on
    :raises UnknownNameError: if there is no such task
    """
    name = task if isinstance(task, str) else task.name
    if name not in _TEST_SPLITS:
        raise UnknownNameError("task", name, _TEST_SPLITS)
    settings = (task if isinstance(task, Task) else get_task(name)).for_loaders()
    return _TEST_SPLITS[name](**settings)

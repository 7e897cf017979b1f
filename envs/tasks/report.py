"""The test splits: for reporting only.

The evaluation imports this module after every choice is made. Nothing in the environment does, and a test holds that.
"""

from __future__ import annotations

from envs.tasks.base import _TEST_SPLITS, Split
from gns.errors import UnknownNameError


def load_test_split(task_name: str) -> Split:
    """Return the test split of a task.

    :raises UnknownNameError: if there is no such task
    """
    if task_name not in _TEST_SPLITS:
        raise UnknownNameError("task", task_name, _TEST_SPLITS)
    return _TEST_SPLITS[task_name]()

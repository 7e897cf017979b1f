"""Settings for all tests: one thread, as collection and evaluation run."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture
def root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def compose(root):
    """Compose a root configuration with overrides, as the command line does."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    def make(name: str, *overrides: str):
        with initialize_config_dir(str(root / "configs"), version_base=None):
            return hydra_compose(name, overrides=list(overrides))

    return make

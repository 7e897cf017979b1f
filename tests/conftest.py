"""Settings for all tests: one thread, as collection and evaluation run; no network; made-up data from the Hub."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
REAL_DATA_ROOT = os.environ.get("GNS_DATA_ROOT")
_FOLDER = tempfile.TemporaryDirectory(prefix="gns-tests-")
os.environ["GNS_DATA_ROOT"] = str(Path(_FOLDER.name) / "hub")
os.environ["HF_DATASETS_CACHE"] = str(Path(_FOLDER.name) / "cache")
torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

SLOW = ("test_resuming.py", "test_ray.py", "test_suite.py", "test_commands.py", "test_documents.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest files, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


@pytest.fixture(scope="session", autouse=True)
def hub() -> Path:
    """The made-up data root, see :mod:`conformance`."""
    from conformance import make_hub
    from text_hub import make_text_hub

    make_hub(Path(os.environ["GNS_DATA_ROOT"]))
    make_text_hub(Path(os.environ["GNS_DATA_ROOT"]))
    return Path(os.environ["GNS_DATA_ROOT"])


@pytest.fixture
def root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def compose(root):
    """Compose a root configuration with overrides, as the command line does."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from agents.runtime.settings import store_task_defaults

    store_task_defaults()

    def make(name: str, *overrides: str):
        with initialize_config_dir(str(root / "configs"), version_base=None):
            return hydra_compose(name, overrides=list(overrides))

    return make


@pytest.fixture(autouse=True)
def denormals():
    """Training flushes denormals for the rest of its process; the next test finds floating point as it should be."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def no_network(monkeypatch):
    """Whatever connects to another machine fails, and is noted: in this process, whose client starts a local one."""
    tried, connect = [], socket.socket.connect

    def refuse(self, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            tried.append(address)
            raise OSError("no network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried

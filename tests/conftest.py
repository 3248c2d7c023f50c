"""Tests import the five modules from the project's root, wherever pytest was started."""
import importlib
import os
import signal
import sys
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# side by side, each process has a core of its own
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(ROOT))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, so that runs/ is the test's own; no gym and no Ctrl-C from another test."""
    import envs
    import grpo
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(envs, "GYMS", dict(envs.GYMS))
    monkeypatch.setattr(grpo, "interrupted", False)
    monkeypatch.setattr(grpo, "this_program", lambda: pytest.fail("--workers=2 would start pytest again: use `two`"))
    yield tmp_path
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def two(here, monkeypatch):
    """two("userrl.py", argv): its main(argv) here; the processes that it starts run the file with the same."""
    import grpo

    def run(file, argv):
        monkeypatch.setattr(grpo, "this_program", lambda: [str(ROOT / file), *argv])
        monkeypatch.setattr(grpo, "calls", 0)
        return importlib.import_module(file.removesuffix(".py")).main(argv)
    return run


def pytest_configure(config):
    # groups count with this way of dealing out alone
    if config.getoption("dist", "no") == "load":
        config.option.dist = "loadgroup"
    config.addinivalue_line("markers", "xdist_group(name): by one process, where several share the tests")


def pytest_collection_modifyitems(items):
    """Side by side (pytest-xdist's -n 2), what needs the audit goes to one process, so that it is played once."""
    for item in items:
        if "audit_of" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("audit"))


@pytest.fixture(scope="session")
def audit_of():
    """audit_of(gym) -> {"expert" or shortcut: mean return over 200 test tasks}, played once a session."""
    import audit
    return lru_cache(audit.audit)

"""Tests import the five modules from the project's root, wherever pytest was started."""
import fcntl
import importlib
import json
import os
import signal
import sys
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


@pytest.fixture(scope="session")
def audit_of(tmp_path_factory):
    """audit_of(gym) -> {"expert" or shortcut: mean return over 200 test tasks}.

    Each is played once, also where several processes share the tests: who comes second waits for the first.
    """
    import audit
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def result(gym: str) -> dict[str, float]:
        with open(folder / f"audit-{gym}.json", "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if not (text := file.read()):
                text = json.dumps(audit.audit(gym))
                file.write(text)
        return json.loads(text)
    return result

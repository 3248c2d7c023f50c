"""What both programs share: help, plugging in from outside, and processes that never wait for one that is gone."""
import ast
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

import grpo
import userlm_r1
import userrl
from test_userrl import ECHO, LIVE, MY_MODEL, SMALL, rows

ROOT = Path(grpo.__file__).parent


def python(*argv, **env):
    """A script in a process of its own, from which the five modules can be imported."""
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=100,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **env})


def own_imports(nodes) -> set:
    """Which of the five modules these statements import."""
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return {"envs", "rewards", "grpo", "userrl", "userlm_r1"}.intersection(names)


def test_no_module_imports_one_above_it():
    """userrl.py and userlm_r1.py imported each other; under --user=userlm:… the first was there twice. Now self-play
    alone, when it is asked for, fetches the other program's training."""
    trees = {name: ast.parse((ROOT / f"{name}.py").read_text()) for name in ("envs", "rewards", "grpo", "userrl",
                                                                             "userlm_r1")}
    ground = {"grpo", "envs", "rewards"}
    first = {name: own_imports(tree.body) for name, tree in trees.items()}
    later = {name: own_imports(ast.walk(tree)) - first[name] for name, tree in trees.items()}
    assert first == {"envs": set(), "rewards": set(), "grpo": set(), "userrl": ground, "userlm_r1": ground}
    assert later == {"envs": set(), "rewards": set(), "grpo": set(), "userrl": {"userlm_r1"}, "userlm_r1": set()}


@pytest.mark.parametrize("program", (userrl, userlm_r1))
@pytest.mark.parametrize("argv", (["--help"], ["-h"], ["help"], ["eval", "--help"]))
def test_help_lists_every_command_and_every_setting(program, argv, capsys):
    """--help printed a page of examples, `eval --help` an error."""
    assert program.main(argv) == 0
    out = capsys.readouterr().out
    for name in program.COMMANDS:
        assert re.search(rf"^  {name} +\S.+", out, re.M)
    for field in fields(program.Settings):
        [line] = re.findall(rf"^  --{field.name}=.*", out, re.M)
        assert line.startswith(f"  --{field.name}={field.default}")
        assert len(line.split("  ")) > 2, f"{line} says nothing"
    assert f"--lr={program.Settings.lr}" in out and "for the tiny model; a real checkpoint wants 1e-6" in out


# ---- from outside

def test_a_model_of_ones_own(here, capsys):
    Path("my_model.py").write_text(MY_MODEL)
    assert userrl.main(["sft", "--name=a", *SMALL, "--model=my_model:small", "--gyms=telepathy"]) == 0
    assert " 268 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("command", ("sft", "eval"))
def test_a_wrong_model_of_the_user_leaves_no_folder(here, capsys, command):
    assert userlm_r1.main([command, "--model=/no/such", "--workers=1"]) == 2
    assert "/no/such" in capsys.readouterr().err and not Path("runs").exists()


# A gym, and a user that leaves a note in every process, are the script's own.
SCRIPT = ECHO + """
import os, sys, grpo, userrl

class Noted(envs.ScriptedUser):
    def answer(self, queries):
        open(f"spoke-{grpo.rank()}", "w").close()
        return super().answer(queries)

if __name__ == "__main__":
    envs.GYMS["echo"] = Echo
    envs.ScriptedUser = Noted
    userrl.main(["demo", "--name=a", *sys.argv[1:]])
    open(f"end-{os.getpid()}", "w").close()
"""


def test_what_a_script_plugs_in_reaches_every_process(here):
    """Process 2 was always userrl.py: it died of an unknown gym while process 1 waited, or spoke as the usual user."""
    Path("mine.py").write_text(SCRIPT)
    out = python("mine.py", *SMALL, "--gyms=echo", "--hold_out=", "--workers=2", "--sft_steps=1", "--steps=2")
    assert out.returncode == 0 and not out.stderr, out.stderr
    assert {path.name for path in Path().glob("spoke-*")} == {"spoke-0", "spoke-1"} and len(rows("a")) == 3
    assert len(list(Path().glob("end-*"))) == 1                 # the rest of the script is the first process's


def test_a_process_that_helps_takes_part_in_one_call(here, monkeypatch, capsys):
    """A script that trains three times starts a second process three times, and each of them runs the whole script."""
    monkeypatch.setattr(grpo, "calls", 0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("GRPO_CALL", "2")
    assert userrl.main(["--help"]) == 0 and not capsys.readouterr().out         # done by the first process
    with pytest.raises(SystemExit):
        userrl.main(["--help"])
    assert "commands" in capsys.readouterr().out


def test_ctrl_c_during_the_imports_is_no_traceback(monkeypatch):
    """They take seconds, and Ctrl-C in the midst of them showed a page of torch. Afterwards all is as before."""
    seen = []
    real = signal.signal
    monkeypatch.setattr(signal, "signal", lambda *args: (seen.append(args), real(*args)))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    source = (ROOT / "grpo.py").read_text()
    exec(source[:source.index("import contextlib")], {})
    assert seen == [(signal.SIGINT, signal.SIG_DFL)]
    real(signal.SIGINT, signal.default_int_handler)


def test_too_little_memory_is_one_line(here, capsys, monkeypatch):
    def start(*args):
        return torch.zeros(2**50)
    monkeypatch.setattr(userrl, "start", start)
    assert userrl.main(["sft"]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("userrl.py: not enough memory: lower --rows")


def test_a_terminal_is_not_obeyed_and_needs_no_unicode(here, monkeypatch):
    """What a model said could clear the screen; where "±" cannot be printed, the run ended with its table."""
    assert userrl.talk_lines([["agent", "\x1b[2Jred\x07\u202e é"], ["user", "a\tb\nc"]], []) == [
        "agent ?[2Jred?? é", "user  a?b … (+1 lines)"]
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    assert userrl.main(["eval", "--model=expert", "--gyms=telepathy", "--eval_tasks=2", "--workers=1"]) == 0
    sys.stdout.flush()
    assert b"macro average" in raw.getvalue() and b" ? " in raw.getvalue()


def test_another_number_of_threads_is_said(here, capsys, monkeypatch):
    """With one process, the sums of a matrix product depend on the machine's cores: a run that went on elsewhere
    differed silently from the one that it was compared with."""
    small = [*SMALL, "--gyms=telepathy", "--steps=1", "--sft_steps=1"]
    assert userrl.main(["demo", "--name=a", *small]) == 0
    assert userrl.main(["demo", "--name=a", "--resume=True"]) == 0
    assert "threads" not in capsys.readouterr().out
    now = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert userrl.main(["demo", "--name=a", "--resume=True"]) == 0
    assert f"! begun with {now} threads, now 64" in capsys.readouterr().out


# ---- processes

def test_a_process_that_ends_before_it_joins_is_not_waited_for(here):
    Path("mine.py").write_text(SCRIPT.replace("    envs.GYMS", "    if grpo.rank() == 0: envs.GYMS"))
    out = python("mine.py", *LIVE, "--gyms=echo", "--workers=2")
    assert out.stderr.count("\n") == 1 and "another process of this run ended before it joined" in out.stderr
    assert "unknown gym 'echo'" in out.stderr and not Path("runs").exists()


def test_a_process_does_not_wait_for_a_first_one_that_is_gone(here):
    store = dist.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    env = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": str(store.port)}
    process = subprocess.Popen([sys.executable, str(ROOT / "userrl.py"), "demo", *SMALL, "--gyms=telepathy"], env=env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not store.check(["here 1"]):
        time.sleep(0.05)
    del store
    began = time.time()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and time.time() - began < 10 and "Traceback" not in err, err


def test_processes_meet_on_this_machine_only():
    """The port of the rendezvous was open to the whole network."""
    store = grpo.meeting_place(2)
    socket.create_connection(("127.0.0.1", store.port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port))     # another address of this machine


# A process that helps, as far as it is before its imports, where it sleeps for longer than the test may.
SLEEPER = """
import sys, time
exec(sys.argv[1])
print("ready", file=sys.stderr, flush=True)
time.sleep(600)
"""


def test_either_process_ends_the_other_at_any_moment(monkeypatch):
    """One that died during the start left the other in a handshake for minutes; one that played on alone noticed only
    at its next sum."""
    source = (ROOT / "grpo.py").read_text()
    first = ["-c", SLEEPER, source[:source.index("import contextlib")]]
    process = grpo.spawn(first, dict(os.environ))
    while not os.fstat(process.errors.fileno()).st_size and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None
    os.close(process.pipe)                                      # as the system does when the first process dies
    assert process.wait(timeout=60) == 3
    # and the other way round
    said, naps = [], []
    monkeypatch.setattr(grpo.time, "sleep", naps.append)
    monkeypatch.setattr(grpo.os, "_exit", said.append)
    dead, fine = grpo.spawn(["-c", "import os; os.abort()"], dict(os.environ)), grpo.spawn(["-c", ""], dict(os.environ))
    grpo.watch([fine, dead])
    assert said == [3] and naps.count(5) == 1
    grpo.leave([fine, dead])
    grpo.watch([fine, dead])                                    # parted: nothing to watch
    assert said == [3] and naps.count(5) == 1


@pytest.mark.parametrize("rank, size", [(None, "2"), ("0", None), ("2", "2"), ("0", "x"), ("0.5", "2"), ("-1", "2")])
def test_half_a_torchrun_is_refused(here, capsys, monkeypatch, rank, size):
    """WORLD_SIZE=2 alone, as batch systems set it, made one process play half of the tasks."""
    monkeypatch.setenv("MASTER_PORT", "1")
    for key, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(key, raising=False) if value is None else monkeypatch.setenv(key, value)
    assert userrl.main(["demo", *SMALL]) == 2
    err = capsys.readouterr().err
    assert err == f"userrl.py: RANK={rank} and WORLD_SIZE={size} are set, but not as torchrun sets them: unset both\n"
    assert not Path("runs").exists()


def test_ctrl_c_while_processes_meet_ends_both(monkeypatch):
    monkeypatch.setattr(grpo, "interrupted", True)
    started = []
    real = grpo.spawn
    monkeypatch.setattr(grpo, "spawn", lambda *args: started.append(real(*args)) or started[-1])
    with pytest.raises(KeyboardInterrupt):
        grpo.join(2, ["-c", "import time; time.sleep(600)"])
    assert [process.poll() for process in started] == [-signal.SIGKILL]


def test_under_torchrun_only_the_first_process_speaks(monkeypatch, capsys):
    """On four GPUs every line, and the table, stood there four times."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    for rank, said in {"0": "hello\n", "1": ""}.items():
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr(sys, "stdout", sys.stdout)          # the test's own again when it is over
        assert grpo.join(2, []) == []
        print("hello")
        assert capsys.readouterr().out == said


def test_without_a_script_one_process_is_enough(monkeypatch):
    """In a notebook, or under python -c, there is nothing that a second process could run."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    with pytest.raises(ValueError, match="--workers=1"):
        grpo.this_program()


def test_ctrl_c_while_settings_are_read_is_not_lost():
    """As a KeyboardInterrupt that fell into a __del__ it was "ignored", and the run began: now and then, in 1 of 25."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ValueError), grpo.dying_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            raise ValueError
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with grpo.dying_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

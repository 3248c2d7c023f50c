"""The attack: what a policy, a person, a disk or a machine can do to a run, thousands of times; all rows must say 0.

    python tests/attack.py               every row, about an hour on two cores
    python tests/attack.py text resume   these rows; --n=50 changes how many a row tries, --seed=1 which

A case fails when it ends in a traceback, in more than one line, takes too long, or goes on silently with other numbers.
It leaves out what the suite tests once and for all: the other half of these cases are there, as tests.
"""
import contextlib
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
os.environ["HF_HUB_OFFLINE"] = "1"      # half of the odd names would be looked up there, for half a minute each

import envs  # noqa: E402
import grpo  # noqa: E402
import test_load  # noqa: E402
import test_text  # noqa: E402
import userlm_r1  # noqa: E402
import userrl  # noqa: E402
from test_userrl import ECHO, LIVE, damaged  # noqa: E402

LIMIT = 0.05                            # seconds that a turn may compute
RUN = ["demo", *LIVE, "--workers=1"]
PAIR = ["demo", *LIVE, "--workers=2"]


# ---------------------------------------------------------------------------------------------- one case

def call(main, *argv: str) -> tuple[int | None, str, str]:
    """(exit status, stdout, stderr) of a program's main, called here; status None: a traceback, then in stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(argv))
        except SystemExit as end:
            status = end.code
        except BaseException:                                           # whatever it is, it is what we look for
            status = None
            traceback.print_exc()
    grpo.interrupted = False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return status, out.getvalue(), err.getvalue()


def clear(status: int | None, err: str) -> bool:
    """It ended well, or with one line."""
    return status == 0 and not err or status in (2, 3, 130) and err.count("\n") <= 1


def numbers(name: str) -> tuple:
    """What two equal runs have in common: metrics, evaluations and weights."""
    path = Path("runs", name)
    weights = (path / "checkpoint/model.safetensors").read_bytes()
    return (path / "metrics.jsonl").read_text(), json.loads((path / "eval.json").read_text()), weights


def slow(step) -> bool:
    began = time.process_time()
    step()
    return time.process_time() - began > LIMIT


# ---------------------------------------------------------------------------------------------- rows: (case, failed?)

def text(rng, n):
    """hostile actions in the gyms and in calls: a turn within 50 ms, and its reply can be encoded"""
    places = [(gym, classic) for gym in test_text.FIRST for classic in (False, True)]
    for (gym, classic), said in itertools.product(places, rng.sample(test_text.HOSTILE, len(test_text.HOSTILE))):
        env = envs.make(gym, classic=classic, max_turns=10_000, max_answers=10_000)
        for choice in env.choices:
            env.reset()
            env.step(test_text.FIRST[gym])
            action, heard = f"[{choice}] {said}"[:envs.MAX_ACTION], []

            def step():
                heard[:] = env.step(action)
            # a second try: the machine may have been busy
            late = slow(step) and slow(step)
            json.dumps([heard[0], heard[4]], ensure_ascii=False).encode()
            yield f"{gym} {action[:60]!r}", late
    for said in test_text.HOSTILE:
        env = userlm_r1.CallEnv(userlm_r1.make_task("call", 0, "train"))
        env.reset()
        reply = f"<answer>\nsay: {said}\n</answer>"
        late = slow(lambda: userlm_r1.drive(env.turn(reply)))
        yield f"call {said[:60]!r}", late and slow(lambda: userlm_r1.read_reply(reply))


def tasks(rng, n):
    """damaged task files: one line, or a task that can be played"""
    entries = {"travel": test_load.trip(), "turtle": test_load.story(), "function": test_load.RULE,
               "persuade": test_load.CLAIM, "intention": test_load.party(), "telepathy": test_load.lion(),
               "search": test_load.QUESTION}
    for _ in range(n):
        gym = rng.choice(list(entries))
        entry = test_load.damaged(entries[gym], rng)
        Path("tasks.json").write_text(json.dumps([entry]))
        try:
            try:
                [task] = envs.load_tasks(gym, "tasks.json")
                env = envs.make(gym, task=task)
                env.reset()
            except ValueError as error:
                yield f"{gym}: {error}", "\n" in str(error)
                continue
            for action in test_load.ACTIONS:
                reply, *_, info = env.step(action)
                (reply + json.dumps(info, ensure_ascii=False)).encode()
            yield gym, False
        except Exception:
            yield f"{gym} {entry}: {traceback.format_exc()}", True


ODD = ["", "x", "-1", "0", "1", "2", "inf", "nan", "-inf", "1e-320", "1e400", "9" * 20, "True", "None", "a,b", ":",
       "a:", "..", "/", "~", "runs/none", "x" * 5000, "\ud800", "é", "--", "[1]", "travel.x=1",
       "m@http://127.0.0.1:1/v1"]
EVAL = ["eval", "--model=expert", "--gyms=telepathy", "--eval_tasks=1", "--workers=1"]


def commands(rng, n):
    """odd command lines: one line each"""
    for number in range(n):
        program = rng.choice((userrl, userlm_r1, envs))
        keys = [*vars(program.Settings())] if program is not envs else ["index", "split", "n", "gyms", "env", "seed"]
        argv = [f"--{rng.choice(keys)}={rng.choice(ODD)}"]
        # what costs minutes when it is accepted is typed wrong instead
        if program is userrl:
            argv = [*EVAL, f"--name=c{number}", *argv]
        elif program is userlm_r1:
            argv = ["eval", "--model=/no/such/run", *argv]
        else:
            argv = [rng.choice(["travel", "golf", "", "play", "--", "search"]), *argv]
        status, _, err = call(program.main, *argv)
        yield " ".join(argv), not clear(status, err)


def whole(name: str, argv: list[str]):
    """The numbers of a finished run; copies of it as it stood after its fourth SFT step and its second RL step."""
    real = grpo.Run.finish_step

    def keep(run, step, last, phase, **state):
        real(run, step, last, phase, **state)
        if (phase, step) in (("sft", 4), ("rl", 2)):
            shutil.copytree(run.path, f"stopped-{phase}")
    grpo.Run.finish_step = keep
    status, _, err = call(userrl.main, *argv, f"--name={name}")
    grpo.Run.finish_step = real
    assert status == 0, err
    return numbers(name)


KINDS = ("gone", "empty", "cut", "flipped", "noise", "list", "folder", "line")


def spoil(path: Path, kind: str, rng) -> None:
    data = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "line":
        path.write_bytes(data[:len(data) // 2] + b"\n{]\xff\n" + data[len(data) // 2:])
    elif kind != "gone":
        path.write_bytes(damaged(data, kind, rng))


def resume(rng, n):
    """a run folder with one file damaged, then resumed: the same numbers, or it is said"""
    expected = whole("whole", RUN)
    for _ in range(n):
        stopped = rng.choice(["stopped-sft", "stopped-rl"])
        shutil.rmtree("runs/r", ignore_errors=True)
        shutil.copytree(stopped, "runs/r")
        file = rng.choice([path for path in sorted(Path("runs/r").rglob("*")) if path.is_file()])
        kind = rng.choice(KINDS)
        spoil(file, kind, rng)
        status, out, err = call(userrl.main, "demo", "--name=r", "--resume=True")
        silent = status == 0 and "! " not in out and numbers("r") != expected
        yield f"{stopped} {file} {kind}: {status} {err[-300:]}", not clear(status, err) or silent


def evals(rng, n):
    """a finished run with one file damaged, then evaluated: the same returns, or it is said"""
    call(userrl.main, *RUN, "--name=whole")
    argv = ["eval", "--model=runs/e", "--gyms=intention", "--eval_tasks=2", "--workers=1", "--max_turns=3"]
    shutil.copytree("runs/whole", "runs/e")
    call(userrl.main, *argv, "--name=good")
    expected = json.loads(Path("runs/good/eval.json").read_text())
    for _ in range(n):
        shutil.rmtree("runs/e", ignore_errors=True)
        shutil.rmtree("runs/other", ignore_errors=True)
        shutil.copytree("runs/whole", "runs/e")
        file = rng.choice([path for path in sorted(Path("runs/e").rglob("*")) if path.is_file()])
        kind = rng.choice(KINDS)
        spoil(file, kind, rng)
        status, out, err = call(userrl.main, *argv, "--name=other")
        silent = status == 0 and json.loads(Path("runs/other/eval.json").read_text()) != expected
        yield f"{file} {kind}: {status} {err[-300:]}", not clear(status, err) or silent


def disk(rng, n):
    """no file may grow beyond a limit, as on a full disk: one line, and with room again the same numbers"""
    expected = whole("whole", RUN)
    for _ in range(n):
        shutil.rmtree("runs/d", ignore_errors=True)
        most = int(10 ** rng.uniform(0, 5.5))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
        try:
            status, _, err = call(userrl.main, *RUN, "--name=d")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        bad = not clear(status, err)
        yield f"{most} bytes: {status} {err[-600:]}", bad or status != 0 and not goes_on("d", RUN, expected)


def goes_on(name: str, argv: list[str], expected: tuple) -> bool:
    """Resumed, or begun anew where nothing was begun, the run ends with the expected numbers."""
    if Path("runs", name, "config.json").exists():
        status, _, _ = call(userrl.main, "demo", f"--name={name}", "--resume=True")
    else:
        shutil.rmtree(Path("runs", name), ignore_errors=True)
        status, _, _ = call(userrl.main, *argv, f"--name={name}")
    return status == 0 and numbers(name) == expected


# ---------------------------------------------------------------------------------------------- processes

# The first process notes every file operation in its run, or kills itself at one of them, or after some seconds.
DRIVER = """
import os, signal, sys, threading
OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
die_at, after, count = int(os.environ.get("DIE_AT", 0)), float(os.environ.get("DIE_AFTER", 0)), 0

def note(event, args):
    global count
    if event not in OPERATIONS or "/runs/" not in os.path.abspath(str(args[0])):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    count += 1
    if count == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if not die_at:
        os.write(log, f"{event} {os.path.relpath(str(args[0]))}\\n".encode())

if "RANK" not in os.environ:
    if after:
        threading.Timer(after, os.kill, [os.getpid(), signal.SIGKILL]).start()
    elif "DIE_AT" in os.environ:
        log = os.open("operations", os.O_WRONLY | os.O_CREAT)
        sys.addaudithook(note)
import userrl
sys.exit(userrl.main(sys.argv[1:]))
"""


def driver(*argv: str, **env) -> subprocess.CompletedProcess:
    Path("driver.py").write_text(DRIVER)
    return subprocess.run([sys.executable, "driver.py", *argv], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **env})


def killed(name: str, expected: tuple, **env) -> tuple[bool, str]:
    """(failed, what was seen) of a run of two processes that is killed, then resumed."""
    shutil.rmtree(Path("runs", name), ignore_errors=True)
    driver(*PAIR, f"--name={name}", **env)
    again = ["demo", f"--name={name}", "--resume=True"]
    if not Path("runs", name, "config.json").exists():                  # nothing was begun
        shutil.rmtree(Path("runs", name), ignore_errors=True)
        again = [*PAIR, f"--name={name}"]
    end = driver(*again)
    same = end.returncode == 0 and numbers(name) == expected
    return not same, f"{env}: {end.returncode} {end.stderr[-400:]}"


def operations(rng, n):
    """two processes, the first killed at each distinct file operation, then resumed: bit for bit"""
    driver(*PAIR, "--name=pair", DIE_AT="0")
    expected, seen = numbers("pair"), {}
    for place, line in enumerate(Path("operations").read_text().splitlines(), 1):
        seen.setdefault(line, []).append(place)
    # the first time, and once later
    places = sorted({times[0] for times in seen.values()} | {rng.choice(times) for times in seen.values()})
    for place in places[:n] if n < len(places) else places:
        failed, what = killed("k", expected, DIE_AT=str(place))
        yield what, failed


def kills(rng, n):
    """two processes, the first killed at a random moment, then resumed: bit for bit"""
    began = time.time()
    driver(*PAIR, "--name=pair")
    expected, seconds = numbers("pair"), time.time() - began
    for _ in range(n):
        failed, what = killed("k", expected, DIE_AFTER=f"{rng.uniform(0, seconds):.3f}")
        yield what, failed


def interrupts(rng, n):
    """Ctrl-C at a random moment of the first ten seconds: no traceback, and it ends"""
    # what a shell started in the background ignores Ctrl-C, and so would its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for _ in range(n):
        shutil.rmtree("runs/i", ignore_errors=True)
        process = subprocess.Popen([sys.executable, str(ROOT / "userrl.py"), *PAIR, "--name=i", "--steps=500"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, "PYTHONPATH": os.getcwd()})
        moment = rng.uniform(0.15, 10)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            err = "Traceback: it did not end"
        yield f"{moment:.2f} s: {err[-500:]}", "Traceback" in err


ROWS = {"text": (text, 0), "tasks": (tasks, 2000), "commands": (commands, 460), "resume": (resume, 1000),
        "evals": (evals, 800), "disk": (disk, 40), "operations": (operations, 10_000), "kills": (kills, 50),
        "interrupts": (interrupts, 20)}


def main(argv: list[str]) -> int:
    options = dict(item.removeprefix("--").split("=", 1) for item in argv if item.startswith("--"))
    chosen = [item for item in argv if not item.startswith("--")] or [*ROWS]
    if unknown := {*chosen} - {*ROWS} | {*options} - {"n", "seed"}:
        print(f"attack.py: unknown {', '.join(sorted(unknown))}; rows are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    print(f"{'':12}{'tried':>7}{'failed':>8}")
    bad = 0
    for name in chosen:
        case, count = ROWS[name]
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            Path("echo_gym.py").write_text(ECHO)
            tried = failed = 0
            for what, wrong in case(random.Random(options.get("seed", 0)), int(options.get("n", count))):
                tried += 1
                failed += wrong
                if wrong:
                    print(f"! {name}: {what}", file=sys.stderr, flush=True)
        print(f"{name:12}{tried:7d}{failed:8d}   {case.__doc__}", flush=True)
        bad += failed
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

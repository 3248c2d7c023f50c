"""The command line as its users meet it: it learns, resumes bit for bit, repeats itself, and survives bad input."""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import envs
import grpo
import rewards
import userrl

ROOT = Path(userrl.__file__).parent
SMALL = """--hidden=32 --layers=1 --vocab_size=400 --demos=12 --sft_steps=6 --sft_tokens=600 --facts=4 --steps=5
    --tasks=3 --group=4 --rows=12 --eval_tasks=3 --max_turns=4 --max_new_tokens=12 --save_every=2 --sample_every=3
    --context=700 --workers=1""".split()
# Any text is answered and earns something in this gym, so that RL has a gradient from its first step.
ECHO = """
import zlib
import envs

class Echo(envs.Env):
    name, choices, system_prompt = "echo", ("action",), "Say anything."

    def start(self):
        return "Hello."

    def expert(self, rng, slip):
        return "[action] hello"

    def turn(self, action):
        reply = yield from self.speak("Go on.")
        _, _, done, truncated, info = yield from super().turn("not for the rules")
        return reply, zlib.crc32(action.encode()) % 5 / 4, done, truncated, info

    @staticmethod
    def make_task(split, index):
        return {"id": f"echo-{split}-{index}"}
"""
LIVE = [*SMALL, "--gyms=echo_gym:Echo,intention", "--hold_out="]


@pytest.fixture
def echo(here):
    Path("echo_gym.py").write_text(ECHO)


@pytest.fixture
def whole(echo, tmp_path_factory):
    """runs/a is a demo of LIVE, which is played once a session."""
    kept = tmp_path_factory.getbasetemp() / "whole"
    if not kept.exists():
        assert userrl.main(["demo", "--name=a", *LIVE]) == 0
        shutil.copytree("runs/a", kept)
    else:
        shutil.copytree(kept, "runs/a")


def metrics(name: str) -> str:
    return Path("runs", name, "metrics.jsonl").read_text()


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in metrics(name).splitlines()]


def evals(name: str) -> dict:
    return json.loads(Path("runs", name, "eval.json").read_text())


def test_demo_end_to_end(here, capsys):
    assert userrl.main(["demo", "--name=a", "--gyms=all", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "macro average" in out and "untrained" in out and "expert" in out
    table = evals("a")
    assert list(table) == ["untrained", "SFT", "RL", "demonstrator", "expert"]
    assert list(json.loads(Path("runs/a/talks.json").read_text())) == list(table)
    assert table["demonstrator"]["macro"]["return"] < table["expert"]["macro"]["return"]
    assert out.index("\nRL gained most in ") < out.index("\nSFT: return ") < out.index("\nRL: return ")
    for row in table.values():
        for gym in envs.GYMS:
            keys = {"return", "ci95", "success", "turns", "effective_turns", "time_weighted", "n"}
            assert keys <= set(row["gyms"][gym])
    assert [(x["phase"], x["step"]) for x in rows("a")] == (
        [("sft", i) for i in range(1, 7)] + [("rl", i) for i in (1, 2, 3, 4, 5)])
    sample = json.loads(Path("runs/a/samples.jsonl").read_text().splitlines()[0])
    assert len(sample["rewards"]) == len(sample["credits"]) == len(sample["advantages"]) == len(sample["tokens"])
    assert "expert" in Path("runs/a/report.html").read_text()


def test_the_same_seed_writes_the_same_metrics(whole):
    """In the eight gyms a policy of this size earns nothing, so every step of RL had been without a gradient here."""
    for name, seed in {"b": 0, "c": 1}.items():
        assert userrl.main(["demo", f"--name={name}", f"--seed={seed}", *LIVE]) == 0
    assert metrics("a") == metrics("b") != metrics("c")
    learned = [row for row in rows("a") if row["phase"] == "rl"]
    assert len(learned) == 5 and all(row["grad_norm"] > 0 for row in learned)


def test_evaluation_does_not_move_the_training_stream(whole):
    """Evaluating once drew from the generator that training sampled from, so eval_tasks changed the run."""
    assert userrl.main(["demo", "--name=b", *LIVE, "--eval_tasks=7"]) == 0
    assert metrics("a") == metrics("b")


def test_validation_does_not_move_the_training_stream(whole):
    """Off by default; a curve over the trained gyms, before the first step, every second one, and after the last."""
    assert userrl.main(["demo", "--name=b", *LIVE, "--eval_every=2", "--val_tasks=2"]) == 0
    assert [row for row in rows("b") if row["phase"] != "val"] == rows("a")
    curve = [row for row in rows("b") if row["phase"] == "val"]
    assert [row["step"] for row in curve] == [0, 2, 4, 5]
    for row in curve:
        assert row["return"] == pytest.approx((row["echo"] + row["intention"]) / 2)
    assert len({row["echo"] for row in curve}) > 1
    assert evals("a") == evals("b") and not Path("runs/a/best").exists()


def test_the_best_policy_of_the_validations_is_kept(echo, capsys, monkeypatch):
    """Not the last, which the table shows; and of two that are equally good the earlier."""
    real, finish, weights = userrl.evaluate, grpo.Run.finish_step, {}
    earned = iter([0.5, 0.25, 0.75, 0.75, None, 0.5])           # before the first step, and after each of five

    def evaluate(s, policy, user, tasks, split="test"):
        if split == "val":
            return {"gyms": {}, "macro": {"return": next(earned), "ci95": 0.125}}
        return real(s, policy, user, tasks, split)

    def finish_step(run, step, last, phase, **state):
        weights[phase, step] = run.model.state_dict()["model.norm.weight"].tolist()
        finish(run, step, last, phase, **state)
    monkeypatch.setattr(userrl, "evaluate", evaluate)
    monkeypatch.setattr(grpo.Run, "finish_step", finish_step)
    assert userrl.main(["demo", "--name=a", *LIVE, "--eval_every=1"]) == 0
    model, _, _, state = grpo.load_checkpoint("runs/a/best")
    assert model.state_dict()["model.norm.weight"].tolist() == weights["rl", 2] != weights["rl", 3]
    assert state == {"phase": "val", "step": 2, "best": 0.75, "last": 0.75}
    out = capsys.readouterr().out
    assert "val   2/5 | return 0.750 ± 0.125 () on validation tasks | the best so far\n" in out
    assert "val   3/5 | return 0.750 ± 0.125 () on validation tasks\n" in out
    assert "the policy of RL step 2 was best: 0.750, the last one 0.500;\nit is in runs/a/best" in out


def test_a_gym_is_not_called_like_another_number(echo, capsys, monkeypatch):
    """Under --echo the return of this gym, echo, was overwritten by a cross-entropy, in its log and its alarms."""
    assert userrl.main(["demo", "--name=a", *LIVE, "--echo=0.1"]) == 2
    assert capsys.readouterr().err.startswith("userrl.py: a gym may not be called 'echo', like ")
    assert userrl.main(["train", "--name=a", *LIVE, "--eval_every=1", "--val_tasks=1", "--steps=1"]) == 0
    written = set().union(*rows("a"))
    assert written - {"echo", "intention"} == set(userrl.COLUMNS)
    monkeypatch.setitem(envs.GYMS, "turns", envs.IntentionGym)
    with pytest.raises(ValueError, match="'turns'"):
        userrl.Settings().check()


TWO_SPLITS = """
import envs
TASKS = {"train": [{"id": "a"}], "test": [{"id": "b"}]}

class Two(envs.Env):
    name, choices, system_prompt = "two", ("action",), "Say anything."

    def start(self):
        return "Hello."

    @staticmethod
    def make_task(split, index):
        return TASKS[split][0]
"""


def test_a_gym_without_validation_tasks_is_one_clear_line(here, capsys):
    Path("two_splits.py").write_text(TWO_SPLITS)
    assert userrl.main(["demo", *SMALL, "--gyms=two_splits:Two", "--eval_every=5"]) == 2
    err = capsys.readouterr().err
    assert err == "userrl.py: --eval_every: two has no validation tasks: KeyError('val')\n"
    assert not Path("runs").exists()
    userrl.Settings(gyms="two", hold_out="").check()            # off, nobody asks for them


MY_MODEL = """
import grpo

def small():
    return grpo.tiny_policy(["hello world"], vocab_size=300, hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8)
"""


def test_a_gym_without_an_expert(here, capsys):
    """RL needs none; but when all steps were done, measuring the expert ended the run with a traceback, no table."""
    Path("two_splits.py").write_text(TWO_SPLITS)
    Path("my_model.py").write_text(MY_MODEL)
    plug = [*SMALL, "--gyms=two_splits:Two", "--eval_tasks=1"]
    for argv in (["train"], ["sft", "--model=my_model:small"]):
        assert userrl.main([*argv, *plug]) == 2
        assert capsys.readouterr().err.startswith("userrl.py: two has no expert: ")
    assert userrl.main(["train", "--name=a", *plug, "--model=my_model:small", "--steps=1"]) == 0
    assert "expert: not measured: two has no expert\n" in capsys.readouterr().out
    assert evals("a")["RL"]["macro"]["return"] == 0


# The first process kills itself as soon as it has logged so many steps.
CUT = """
import os, signal, sys
import grpo, userrl

log_step, steps = grpo.Run.log_step, int(sys.argv[1])

def log_and_die(*row):
    global steps
    logged, steps = log_step(*row), steps - 1
    if not steps and grpo.rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return logged

grpo.Run.log_step = log_and_die
sys.exit(userrl.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("workers, at", ((1, "12"), (2, "9")))
def test_killed_and_resumed_it_writes_the_same_metrics(echo, two, workers, at):
    """kill -9 between checkpoints: the half-written tail is dropped, the same steps come again, bit for bit.

    Rows 1 to 6 are SFT's, 7 the first validation, 10 that after RL step 2, where a checkpoint is due: 9 goes on from
    SFT, 12 from there.
    """
    small = [*LIVE, f"--workers={workers}", "--eval_every=2", "--val_tasks=2"]
    assert two("userrl.py", ["demo", "--name=whole", *small]) == 0
    Path("cut.py").write_text(CUT)
    command = [sys.executable, "cut.py", at, "demo", "--name=cut", *small]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, stdout=subprocess.DEVNULL, env=env, timeout=90)
    assert process.returncode == -signal.SIGKILL and metrics("cut") != metrics("whole")
    log = Path("runs/cut/metrics.jsonl")
    with open(log, "a") as f:
        f.write('{"phase": "rl", "st')                          # what a kill in the middle of a write leaves
    assert two("userrl.py", ["demo", "--name=cut", "--resume=True"]) == 0
    assert metrics("cut") == metrics("whole")
    assert evals("cut") == evals("whole")
    for file in ("talks.json", "best/trainer.json", "best/model.safetensors"):
        assert Path("runs/cut", file).read_bytes() == Path("runs/whole", file).read_bytes()
    # two processes had one thread each, and left the next run alone with one: other last bits
    assert torch.get_num_threads() == grpo.THREADS


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(whole, capsys, monkeypatch):
    real = grpo.Run.finish_step

    def press(run, step, last, phase, **state):
        if phase == "rl" and step == 3:                         # between two checkpoints
            grpo.on_interrupt()
        real(run, step, last, phase, **state)
    monkeypatch.setattr(grpo.Run, "finish_step", press)
    monkeypatch.setattr(userrl, "ALARM_EVERY", 5)
    monkeypatch.setattr(userrl, "alarms", lambda rows, s: [f"{len(rows)} rows, {rows[0]['return']}"])
    assert userrl.main(["demo", "--name=b", *LIVE]) == 130
    assert "--name=b --resume=True" in capsys.readouterr().out
    assert json.loads(Path("runs/b/checkpoint/trainer.json").read_text())["state"]["step"] == 3
    monkeypatch.setattr(grpo.Run, "finish_step", real)
    monkeypatch.setattr(grpo, "interrupted", False)
    assert userrl.main(["demo", "--name=b", "--resume=True"]) == 0
    alarm = [line for line in capsys.readouterr().out.splitlines() if line.startswith("   ! ")]
    assert alarm == [f"   ! 5 rows, {rows('b')[6]['return']}"]          # those before Ctrl-C are not forgotten
    assert metrics("a") == metrics("b")


def test_sft_then_train_then_eval_and_the_other_options(echo, capsys):
    """A run folder is a model, too: it was a name that no hub knew."""
    assert userrl.main(["sft", "--name=cold", *LIVE, "--gyms=intention,echo_gym:Echo"]) == 0
    # it named the gym "echo", which `play` does not know
    assert capsys.readouterr().out.endswith(" play --gyms=echo_gym:Echo --model=runs/cold\n")
    options = """--combine=loo --normalize=mean --gamma=1 --kl=0.1 --updates=2 --ratio=sequence --aggregate=constant
        --resample=1 --steps=2""".split()
    capsys.readouterr()
    assert userrl.main(["train", "--name=warm", "--model=runs/cold", *LIVE, *options]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("rl    1/2"))
    assert " kl old " in line and " kl ref " in line and "failed" not in line
    options = "--gyms=telepathy --eval_tasks=2 --eval_temperature=0 --workers=1".split()
    assert userrl.main(["eval", "--model=runs/warm/checkpoint", *options]) == 0
    assert "  runs/wa…int, T 0\n" in capsys.readouterr().out     # it was cut from the left
    assert userrl.main("eval --model=demonstrator --slip=1 --gyms=search --eval_tasks=2 --workers=1".split()) == 0
    assert "  demonst…, slip 1\n" in capsys.readouterr().out
    options = "--gym=travel --tier=all --choice=multi --eval_tasks=8 --samples=2 --workers=1".split()
    assert userrl.main(["eval", "--model=expert", *options]) == 0
    out = capsys.readouterr().out
    tiers = "22 2222 33 233 333 44 334 444 overall".split()
    assert "pass@2" in out and all(f"\n{tier} " in out for tier in tiers)
    assert Path("runs/eval/eval.json").exists() and Path("runs/eval-3/eval.json").exists()


def test_a_run_that_must_fit(echo, capsys):
    """LoRA in bf16 with recomputed layers, through both phases: RL begins where SFT ended, which is its reference."""
    assert userrl.main(["sft", "--name=cold", *LIVE, "--steps=1", "--sft_steps=2"]) == 0
    fit = """--steps=2 --sft_steps=2 --lora=2 --dtype=bfloat16 --checkpointing=True --kl=0.1 --lr=0.01 --clip_dual=3
        --weight_decay=0.01""".split()
    assert userrl.main(["demo", "--name=fit", "--model=runs/cold", *LIVE, *fit]) == 0
    first, second = (row for row in rows("fit") if row["phase"] == "rl")
    assert first["kl_ref"] == 0 < second["kl_ref"] and first["grad_norm"] > 0
    assert not Path("runs/fit/reference").exists()
    plain, _ = grpo.load_policy("runs/fit", "cpu")
    assert plain.dtype == grpo.torch.bfloat16 and not grpo.lora_rank(plain)
    again, _, optimizer, _ = grpo.load_checkpoint("runs/fit", "cpu")
    assert grpo.lora_rank(again) == 2 and optimizer.options["weight_decay"] == 0.01


def test_the_paper_in_one_setting():
    """Fidelity: 16 tasks an optimiser step, 270 batches, the five trained gyms in proportion to their tasks."""
    _, s = grpo.parse(["train", "--preset=paper", "--lr=2e-6"], userrl.Settings, userrl.COMMANDS)
    assert (s.tasks, s.group, s.tasks // s.updates, s.steps, s.lr) == (128, 8, 16, 270, 2e-6)
    assert (s.clip_low, s.clip_high, s.clip_dual, s.kl, s.temperature, s.weight_decay) == (.2, .2, 3, 0, 1, .01)
    dealt = [gym for gym, _ in userrl.deal(s, {}, 2426)]
    assert {gym: dealt.count(gym) for gym in dict.fromkeys(dealt)} == pytest.approx(
        {"travel": 925, "tau": 500, "turtle": 423, "persuade": 378, "function": 200}, rel=0.08)
    turns = {gym: userrl.make_env(s, gym, 0, "train", None).max_turns for gym in envs.GYMS}
    assert turns == {**dict.fromkeys(envs.GYMS, 16), "tau": 30}
    assert userrl.make_env(s, "travel", 0, "train", None).preference_reward == .8


def test_play_both_chairs(here, capsys, monkeypatch):
    said = iter(["[action] Is it big?", "nonsense", ""])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(said))
    assert userrl.main(["play", "--gyms=telepathy"]) == 0
    out = capsys.readouterr().out
    assert "an empty line ends it" in out and "turn 2 of 16" in out
    assert userrl.main(["sft", "--name=cold", *SMALL, "--gyms=telepathy", "--eval_tasks=1"]) == 0
    said = iter(["I think of an animal.", "Yes.", ""])
    capsys.readouterr()
    assert userrl.main(["play", "--gyms=telepathy", "--model=runs/cold"]) == 0
    out = capsys.readouterr().out
    assert "an empty line ends it" in out and out.count("agent  ") >= 2


BAD = """
    dance | choose from demo, sft
    --stepz=3 | did you mean --steps
    --steps=many | --steps takes int
    --resume=perhaps | --resume takes bool
    steps=3 | choose from
    demo steps=3 | look like --key=value
    demo --gyms=golf | unknown gym 'golf'
    demo --gyms= | --gyms names no gym
    eval --model=expert --gyms= | --gyms names no gym
    demo --name=x --resume=True | nothing to resume
    eval --model=/no/such/place | /no/such/place
    eval | --model
    train --model=/no/such | /no/such
    train --model=expert | expert
    demo --turn=magic | turn
    demo --combine=magic | combine
    demo --ratio=golden | ratio
    demo --group=1 | group
    demo --tier=999 | tier
    eval --model=expert --gyms=travel --tier=22,999 | unknown tier '999'
    demo --steps=-1 | steps
    demo --temperature=0 | temperature
    demo --gamma=2 | gamma
    demo --lr=inf | --lr may be at most 1000000000, not inf
    demo --eval_temperature=1e-320 | --eval_temperature is 0 (greedy) or at least 0.001
    demo --workers=1000 | --workers may be at most 64
    demo --wrong=999999999 | --wrong may be at most 100
    demo --seed=99999999999999999999 | --seed may be at most
    sft --gyms=travel --context=64 | --context: 64 tokens are full before the first turn
    demo --echo=-0.1 | --echo must be at least 0, not -0.1
    sft --sft_echo=-1 | --sft_echo must be at least 0, not -1.0
    demo --workers=0 | workers
    demo --minutes=5 | --minutes sets --sft_steps and --steps: leave out --minutes or --sft_steps
    demo --minutes=nan | --minutes must be from 0 to 10000
    demo --minutes=-1 | --minutes must be from 0 to 10000
    demo --minutes=inf | --minutes must be from 0 to 10000
    train --preset=paper --minutes=5 | --minutes and --preset both count the steps
    train --preset=book | --preset is one of quick, paper, not 'book'
    train --clip_dual=0.5 | --clip_dual is above 1
    train --dtype=float16 | --dtype is one of float32, bfloat16, not 'float16'
    train --lora=8 | --lora corrects a model that has learned already
    demo --eval_every=-1 | --eval_every must be at least 0
    demo --eval_every=2 --val_tasks=0 | --val_tasks must be at least 1
    demo --reading=1 | reading
    demo --facts=0 | facts
    demo --user_noise=7 | user_noise
    demo --name=../x | name
    demo --persona=pirate | pirate
    demo --hold_out=golf | hold_out
    demo --gyms=travel --hold_out=travel | --hold_out leaves no gym to train in
    train --gyms=tau | --hold_out leaves no gym to train in
    demo --device=meta | meta
    demo --device=abacus | abacus
    demo --user=claude | 'MODULE:ARGUMENT'
    demo --user=no_such_module:x | No module named 'no_such_module'
    demo --user=envs:x | module envs has no load_user
    demo --user=userlm:/no/such | /no/such
    demo --gyms=no_such_module:Gym | No module named 'no_such_module'
    demo --gyms=envs:NoGym | module 'envs' has no attribute 'NoGym'
    demo --gyms=envs:play | no subclass of envs.Env
    demo --gyms=../envs:Env | unknown gym '../envs:Env'
    train --model=envs:no_model | module envs has no no_model
    demo --env=travel.search_reward | is not gym.option=value
    demo --env=golf.wind=3 | choose from travel, turtle
    demo --env=travel.wind=3 | choose from classic, max_turns
    demo --env=travel.search_reward=much | travel.search_reward takes float
    demo --env=travel.classic=7 | travel.classic takes bool
    demo --env=search.top=2.5 | search.top takes int
    demo --env=travel.tier=999 | 999
    """


@pytest.mark.parametrize("argv, says", [row.strip().split(" | ") for row in BAD.strip().splitlines()])
def test_bad_input_is_one_clear_line(here, capsys, argv, says):
    """... and leaves no run folder behind: a wrong --model or --user had made one."""
    first, *rest = argv.split()
    assert userrl.main([first, *SMALL, *rest] if first in userrl.COMMANDS else [first]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err
    assert not list(here.glob("runs/*"))


def test_minutes_are_steps(echo, capsys):
    """A budget by the clock would break "same seed, same metrics": the defaults, 900 and 64, are scaled."""
    def steps(*argv):
        _, s = grpo.parse(["demo", *argv], userrl.Settings, userrl.COMMANDS)
        return s.sft_steps, s.steps
    assert steps() == steps("--minutes=0") == steps("--minutes=10") == (900, 64)
    assert steps("--minutes=5") == (450, 32) and steps("--minutes=15") == (1350, 96)
    assert steps("--minutes=0.01") == (1, 1)
    # the default, too, may not be asked for beside it
    with pytest.raises(ValueError, match="--minutes sets .* or --steps"):
        steps("--minutes=5", "--steps=42")
    small = [item for item in LIVE if "steps=" not in item]
    assert userrl.main(["demo", "--name=a", *small, "--minutes=0.1"]) == 0
    whole = metrics("a")
    assert len(whole.splitlines()) == 9 + 1                             # 1 % of each, and at least one
    for more in ([], ["--minutes=0.1"]):
        assert userrl.main(["demo", "--name=a", "--resume=True", *more]) == 0
    assert metrics("a") == whole
    capsys.readouterr()
    assert userrl.main(["demo", "--name=a", "--resume=True", "--minutes=1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unwritable_run_folder(here, capsys):
    Path("runs").write_text("a file where the folder should be")
    assert userrl.main(["demo", *SMALL]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_is_never_overwritten(echo, capsys):
    assert userrl.main(["sft", "--name=a", *LIVE]) == 0
    before = metrics("a")
    assert userrl.main(["sft", "--name=a", *LIVE]) == 2
    assert "--resume=True" in capsys.readouterr().err and metrics("a") == before


def test_a_run_is_resumed_by_one_process_at_a_time(echo, capsys):
    """The same run, resumed twice at once, had every step twice. A lock dies with its process, and leaves no file."""
    assert userrl.main(["sft", "--name=a", *LIVE, "--sft_steps=1"]) == 0
    files = sorted(Path("runs/a").rglob("*"))
    hold = "import fcntl, os, sys; fcntl.flock(os.open('runs/a', 0), 2); print(1, flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    capsys.readouterr()
    for argv in (["sft", "--name=a", "--resume=True"], ["sft", "--name=a", *LIVE]):
        assert userrl.main(argv) == 2
    assert capsys.readouterr().err.startswith("userrl.py: runs/a is in use: another process works on this run\n")
    Path("runs/a/config.json").rename("c")                              # it has only just begun
    assert userrl.main(["sft", "--name=a", *LIVE]) == 2 and "in use" in capsys.readouterr().err
    Path("c").rename("runs/a/config.json")
    other.kill()
    other.communicate()
    assert userrl.main(["sft", "--name=a", "--resume=True"]) == 0
    assert sorted(Path("runs/a").rglob("*")) == files


def test_a_resumed_run_refuses_other_settings(echo, capsys):
    """--resume=True --steps=400 once went on with the old number of steps and said nothing."""
    assert userrl.main(["sft", "--name=a", *LIVE]) == 0
    assert userrl.main(["sft", "--name=a", "--resume=True", "--sft_steps=9"]) == 2
    assert "--sft_steps was 6" in capsys.readouterr().err
    config = json.loads(Path("runs/a/config.json").read_text())
    Path("runs/a/config.json").write_text(json.dumps({**config, "seed": 1}))
    assert userrl.main(["sft", "--name=a", "--resume=True"]) == 2
    assert "config.json is not what was written" in capsys.readouterr().err
    del config["checksum"]                                      # older runs have none
    # without a setting that came later: its default went on with the run, whatever it had been before
    older = {key: value for key, value in config.items() if key != "slip"}
    for other in (older, {**config, "colour": 3}, {**config, "slip": "much"}):
        Path("runs/a/config.json").write_text(json.dumps(other))
        assert userrl.main(["sft", "--name=a", "--resume=True"]) == 2
        assert "another version" in capsys.readouterr().err


def test_half_a_checkpoint_is_one_clear_line(echo, capsys):
    assert userrl.main(["sft", "--name=a", *LIVE]) == 0
    weights, marker = (Path("runs/a/checkpoint", name) for name in ("model.safetensors", "trainer.json"))
    whole = marker.read_bytes()
    marker.write_bytes(whole[:20])
    capsys.readouterr()
    assert userrl.main(["sft", "--name=a", "--resume=True"]) == 2       # and not all of it anew
    assert "trainer.json is missing or damaged" in capsys.readouterr().err
    marker.write_bytes(whole)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert userrl.main(["sft", "--name=a", "--resume=True"]) == 2
    assert userrl.main(["eval", "--model=runs/a/checkpoint", "--workers=1"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and "runs/a/checkpoint" in err


def damaged(data: bytes, kind: str, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    if kind == "cut":
        return data[:at]
    if kind == "flipped":
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
    return {"empty": b"", "list": b"[3]", "noise": rng.randbytes(50)}[kind]


def test_a_damaged_run_goes_on_exactly_or_says_why(echo, capsys, monkeypatch):
    """Weights with a flipped bit were taken; evaluations that could not be read were overwritten; a bad line in
    metrics.jsonl took the good ones after it along; without reference/ today's policy was the reference; all silent.
    Other damage was a traceback."""
    quick = [*LIVE, "--gyms=echo_gym:Echo", "--sft_steps=1", "--steps=2", "--tasks=1", "--eval_tasks=1", "--demos=2",
             "--vocab_size=300", "--save_every=1", "--name=a"]
    real, again = grpo.Run.finish_step, ["demo", "--name=a", "--resume=True"]

    def press(run, step, last, phase, **state):
        grpo.interrupted = (phase, step) == ("rl", 1)
        real(run, step, last, phase, **state)
    monkeypatch.setattr(grpo.Run, "finish_step", press)
    assert userrl.main(["demo", *quick]) == 130
    monkeypatch.setattr(grpo.Run, "finish_step", real)
    grpo.interrupted = False
    shutil.copytree("runs/a", "stopped")
    assert userrl.main(again) == 0
    whole = metrics("a"), evals("a")
    rng, statuses = random.Random(1), set()
    files = sorted(str(path.relative_to("stopped")) for path in Path("stopped").rglob("*") if path.is_file())
    assert {"checkpoint/trainer.json", "reference/model.safetensors", "eval.json", "talks.json"} <= set(files)
    for file in files:
        for kind in rng.sample(["gone", "cut", "flipped", "empty", "list", "noise"], 1 if "/" in file else 3):
            shutil.rmtree("runs/a")
            shutil.copytree("stopped", "runs/a")
            path = Path("runs/a", file)
            if kind == "gone":
                path.unlink()
            else:
                path.write_bytes(damaged(path.read_bytes(), kind, rng))
            capsys.readouterr()
            status = userrl.main(again)
            out, err = capsys.readouterr()
            said = [line for line in out.splitlines() if line.startswith(f"! runs/a/{file}")]
            assert status == 2 or said or (metrics("a"), evals("a")) == whole, (file, kind)
            assert err.count("\n") == (status == 2), (file, kind, err)
            assert status == 0 or file.split("/")[0] in err, (file, kind, err)
            statuses.add((status, bool(said)))
    assert statuses == {(2, False), (0, True), (0, False)}


def test_drills_are_cut_from_demonstrations():
    """Each is a request and at most three turns in a row, ends with the agent, and stands so in a demonstration."""
    s = userrl.Settings(gyms="intention,telepathy", hold_out="", demos=6, slip=0.3)
    user = envs.ScriptedUser()
    whole = [userrl.demonstration(s, number, s.max_turns, user) for number in range(12)]
    cut = userrl.drills(s, 7, 30, user)
    assert cut == userrl.drills(s, 7, 30, user) != userrl.drills(s, 8, 30, user)
    assert len(cut) == 30
    for talk in cut:
        said = [m for m in talk if m["role"] == "assistant"]
        assert 1 <= len(said) <= 3 and talk[-1] is said[-1]
        begin = 1 if [m["role"] for m in talk[:2]] == ["user", "user"] else 0
        homes = [w for w in whole if w[1] == talk[0]
                 and any(w[i:i + len(talk) - begin] == talk[begin:] for i in range(len(w)))]
        assert homes
    distances = {len(talk) for talk in cut}
    assert distances == {2, 3, 4, 5, 6, 7}


def test_each_demonstration_is_of_a_task_of_its_own(monkeypatch):
    """A gym that --gyms named twice for twice the share had each of its demonstrations twice."""
    asked, real = [], userrl.make_env

    def make_env(s, gym, index, split, user):
        asked.append((gym, index))
        return real(s, gym, index, split, user)
    monkeypatch.setattr(userrl, "make_env", make_env)
    s = userrl.Settings(gyms="telepathy,intention,telepathy", hold_out="", demos=3)
    for number in range(9):
        userrl.demonstration(s, number, 1, envs.ScriptedUser())
    assert asked == [("telepathy", 0), ("intention", 0), ("telepathy", 1),
                     ("telepathy", 2), ("intention", 1), ("telepathy", 0),
                     ("telepathy", 1), ("intention", 2), ("telepathy", 2)]


def test_tasks_are_dealt_by_signal():
    """Two gyms whose rollouts differ by 3 : 1 get tasks 3 : 1; one without any signal keeps a twentieth of the most."""
    s = userrl.Settings(gyms="travel,intention,search", hold_out="", demos=100, mixture="signal")
    mixture = {"spread": {"travel": 0.6, "intention": 0.2, "search": 0.0}}
    first = userrl.deal(s, mixture, 10)
    assert first[0] == ("travel", 100) and len(set(first)) == 10
    drawn = first + userrl.deal(s, mixture, 820)
    count = {g: sum(gym == g for gym, _ in drawn) for g in ("travel", "intention", "search")}
    for gym, expected in {"travel": 600, "intention": 200, "search": 30}.items():
        assert abs(count[gym] - expected) <= 2
    indices = [i for g, i in drawn if g == "intention"]
    assert indices == list(range(100, 100 + count["intention"]))        # no task twice
    equal = userrl.deal(userrl.Settings(gyms="travel,travel,search", hold_out="", mixture="equal"), {}, 9)
    assert [g for g, _ in equal].count("travel") == 6


def test_a_gym_held_out_is_evaluated_but_not_trained(here):
    assert userrl.main(["demo", "--name=a", *SMALL, "--gyms=intention,telepathy", "--hold_out=telepathy"]) == 0
    assert all("telepathy" not in row for row in rows("a")) and any("intention" in row for row in rows("a"))
    assert set(evals("a")["RL"]["gyms"]) == {"intention", "telepathy"}


def test_a_gym_held_out_by_default_can_be_evaluated_and_played(here, capsys, monkeypatch):
    """`eval --gyms=tau` and `play --gyms=tau` said that --hold_out leaves no gym to train in."""
    assert "tau" in userrl.listed(userrl.Settings().hold_out)
    assert userrl.main("eval --model=expert --gyms=tau --eval_tasks=1 --workers=1".split()) == 0
    assert "\ntau (1 tasks)" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda prompt="": "")
    assert userrl.main(["play", "--gyms=tau"]) == 0


def test_options_of_a_gym():
    """search_reward could be set from Python only."""
    s = userrl.Settings(env="travel.search_reward=0, travel.preference_reward=.8, travel.tier=33, function.level=2")
    travel, turtle = (userrl.make_env(s, gym, 0, "train", None) for gym in ("travel", "turtle"))
    assert (travel.search_reward, travel.preference_reward, travel.task["tier"]) == (0.0, 0.8, "33")
    assert turtle.max_answers == 2
    assert userrl.env_options(s, "function") == {"level": 2}


def test_the_paper_trains_and_tests_travel_by_other_rewards():
    """--preset=paper measured held-out trips with the rewards of training."""
    _, s = grpo.parse(["train", "--preset=paper", "--model=runs/x"], userrl.Settings, userrl.COMMANDS)
    paid = {split: userrl.make_env(s, "travel", 0, split, None) for split in ("train", "val", "test")}
    assert {split: (env.search_reward, env.preference_reward) for split, env in paid.items()} == {
        "train": (0.0, 0.8), "val": (0.2, 0.6), "test": (0.2, 0.6)}
    with pytest.raises(ValueError, match="split:gym.option=value"):
        userrl.env_options(userrl.Settings(env="exam:travel.search_reward=0"), "travel")


# ---- what is reported

def episode(*earned, **more):
    return {"task": "t", "rewards": list(earned), "status": "done", "solved": False, "error": "", **more}


def test_summary_by_hand():
    """Two gyms, three episodes: macro averages the gyms, micro the episodes; a failed user is counted, not scored."""
    out = userrl.summarise({
        "a": [episode(0, 1, 0, task="1", solved=True), episode(0, 0, task="2")],
        "b": [episode(2, task="3", status="left"),
              episode(9, task="4", status="user_error", error="server down")]}, "u")
    a, b = out["gyms"]["a"], out["gyms"]["b"]
    assert (a["return"], a["success"], a["turns"], a["n"]) == (0.5, 0.5, 2.5, 2)
    assert (a["effective_turns"], a["time_weighted"]) == (1.0, 0.25)
    assert (b["return"], b["n"], b["user_errors"], b["user_error"]) == (2, 1, 1, "server down")
    assert a["ended"] == {"done": 2, "truncated": 0, "length": 0, "left": 0, "user_error": 0}
    assert b["ended"] == {"done": 0, "truncated": 0, "length": 0, "left": 1, "user_error": 1}
    assert out["macro"]["return"] == 1.25 and out["micro"]["return"] == 1.0
    assert a["ci95"] == rewards.mean_ci([1, 0])[1] and "user_error" not in a


def test_a_gym_whose_user_always_failed_has_no_numbers(capsys):
    """The table died on it, at the end of a long run; its reason stood nowhere."""
    broken = episode(status="user_error", error="server down")
    out = userrl.summarise({"a": [episode(1), episode(2)], "b": [broken]}, "u")
    assert out["gyms"]["b"]["return"] is None and out["macro"]["return"] is None
    userrl.print_table({"a long name of a policy": out})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("  a long …a policy") and "nan" not in "".join(lines)      # of one task: no interval
    assert lines[2].split()[:3] == ["a", "(1", "tasks)"]
    assert [line.split()[-1] for line in lines[3:7]] == ["-"] * 4       # b, macro, micro, solved
    assert lines[7].startswith("ended: user error") and lines[7].endswith("  33 %")
    assert lines[-1] == "a long name of a policy, b: 1 episodes left out, their user failed: server down"
    # with two samples a task, one of which was lost, pass@1 has no number; and columns may differ in their user
    two = userrl.summarise({"a": [episode(1), {**broken}], "b": [episode(1), {**broken}]}, "another", samples=2)
    userrl.print_table({"one": out, "two": two})
    lines = capsys.readouterr().out.splitlines()
    assert "(one: u)" in lines and "(two: another)" in lines and "pass@" not in "".join(lines)


def test_why_conversations_ended():
    """A user who left counted as a conversation that was done."""
    model, tokenizer = grpo.tiny_policy(["a b c"], vocab_size=300, hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8)

    def endings(context=1000, **settings):
        s = userrl.Settings(gyms="telepathy", hold_out="", max_new_tokens=4, **settings)
        engine = grpo.Engine(model, tokenizer, rows=8, max_len=context)
        table = userrl.evaluate(s, engine, None, 2)["gyms"]["telepathy"]["ended"]
        return {how: n for how, n in table.items() if n}
    assert endings(max_turns=3) == {"truncated": 2}
    assert endings(patience=2) == {"left": 2}
    assert endings(max_turns=30, context=400) == {"length": 2}


def test_a_step_line_tells_what_did_not_end_well():
    row = {"return": 0.5, "dead": 0.25, "turns": 3.0,
           "ended": {"done": 5, "truncated": 2, "length": 0, "left": 1, "user_error": 0}}
    line = userrl.step_line(row, {"reason": ""})
    assert "dead  25 % turns  3.0, turn limit 25 %, user left 12 % | kl old" in line and "failed" not in line
    row["ended"] = userrl.counted(["done", "done", "user_error"])
    line = userrl.step_line(row, {"reason": "no line"})
    assert "turns  3.0 | kl old" in line and line.endswith(" | the user failed 1 times: no line")


LONG = [["user", f"Line {i} of the user\nand more"] if i % 2 == 0 else ["agent", f"[action] {i}"] for i in range(17)]
BOTH = """
RL gained most in b (+0.250 a task). First held-out task, before and after, with rewards:
SFT: return 0.00, ended: turn limit
  user  Line 0 of the user … (+1 lines)
  agent [action] 1                                                                            0.00
  user  Line 2 of the user … (+1 lines)
  agent [action] 3                                                                            0.00
  user  Line 4 of the user … (+1 lines)
  agent [action] 5                                                                            0.00
  user  Line 6 of the user … (+1 lines)
  … 5 more lines
  user  Line 12 of the user … (+1 lines)
  agent [action] 13                                                                           0.00
  user  Line 14 of the user … (+1 lines)
  agent [action] 15                                                                           0.00
  user  Line 16 of the user … (+1 lines)
RL: return 0.50, ended: done
  user  Hi.
  agent [answer] yes                                                                          0.50
  user  Right.
"""


def test_one_task_before_and_after(here, capsys):
    """The first task of the gym with the largest gain, whatever it shows; nothing where nothing can be compared."""
    def column(a, b):
        return {"gyms": {"a": {"return": a}, "b": {"return": b}, "c": {"return": None}}}
    run = grpo.Run(userrl.Settings(name="x", workers=1), "demo")
    run.path.mkdir(parents=True)
    run.evals = {"untrained": column(0, 0), "SFT": column(0.5, 0.25), "RL": column(0.6, 0.5), "expert": column(2, 2)}
    userrl.before_and_after(run)
    assert capsys.readouterr().out == ""                        # no talks were kept
    short = {"history": [["user", "Hi."], ["agent", "[answer] yes"], ["user", "Right."]], "rewards": [0.5],
             "status": "done"}
    before = {"history": LONG, "rewards": [0.0] * 8, "status": "truncated"}
    kept = {"SFT": before, "RL": short, "expert": short}
    run.write("talks.json", {name: {"a": talk, "b": talk} for name, talk in kept.items()})
    userrl.before_and_after(run)
    assert capsys.readouterr().out == BOTH
    # measured again, since its user had failed, RL stands behind the expert: that was taken for the policy before RL
    run.evals["RL"] = run.evals.pop("RL")
    userrl.before_and_after(run)
    assert capsys.readouterr().out == BOTH
    del run.evals["RL"]
    userrl.before_and_after(run)
    assert capsys.readouterr().out == ""


def steps(count, **more) -> list[dict]:
    """Rows of RL steps in which all is well; a list gives each step its own value."""
    found = []
    for i in range(count):
        row = {"return": 0.5, "travel": 0.5, "dead": 0.25, "entropy": 0.4, "kl": 1e-9}
        row["ended"] = userrl.counted(["done"])
        for key, value in more.items():
            row[key] = value[i] if isinstance(value, list) else value
        found.append(row)
    return found


FALLING = [0.5, 0.7] * 5 + [0.5, 0.6] * 5 + [0.3, 0.5] * 5


@pytest.mark.parametrize("rows, says", [
    (steps(30), ""), (steps(4, dead=1.0), ""), (steps(0), ""),
    # five steps at 0.4, then five at 0.02; a low entropy that began low is no collapse, nor is a fall to 0.1
    (steps(10, entropy=[0.4] * 5 + [0.02] * 5), "entropy collapsed, from 0.40 to 0.020: .*--kl"),
    (steps(10, entropy=[0.04] * 5 + [0.02] * 5), ""), (steps(10, entropy=[2.0] * 5 + [0.1] * 5), ""),
    (steps(9, entropy=[0.4] * 4 + [0.02] * 5), ""),
    # the thirds' means 0.6 and 0.4, both of variance 0.1 / 9, so the error is sqrt(2 * 0.1 / 9 / 10) = 0.047
    (steps(30, travel=FALLING), r"returns fall, by 0.200 ± 0.047 in 30 steps: lower --lr"),
    (steps(40, travel=[0.9] * 10 + FALLING), "returns fall, by 0.200 ± 0.047 in 30 steps"),     # only the last thirty
    (steps(18, travel=FALLING[:9] + FALLING[-9:]), ""), (steps(30, travel=FALLING[::-1]), ""),
    # another gym rises as much; a gym of which nothing is known; the mean alone falls, since the mixture changed
    (steps(30, travel=FALLING, search=FALLING[::-1]), ""), (steps(30, travel=[0.5] + [None] * 29), ""),
    (steps(30, **{"return": FALLING}), ""),
    (steps(6, dead=[0.0, 0.5, 1.0, 0.5, 0.75, 1.0]), "75 % of the groups are dead.*--group"),
    (steps(6, dead=[1.0, 0.5, 1.0, 0.5, 0.75, 0.9]), ""),
    (steps(5, kl=[0.0, 0.0, 0.0, 0.0, 0.01]), r"sampler and trainer disagree, kl old 2.0e-03"),
    (steps(5, ended=userrl.counted(["done"] * 3 + ["user_error"])), "the user failed in 25 % of the conv.*--user"),
    (steps(5, ended=userrl.counted(["done"] * 4 + ["user_error"])), ""),
])
def test_alarms_by_hand(rows, says):
    found = userrl.alarms(rows, userrl.Settings())
    assert len(found) == bool(says) and re.match(says, " ".join(found)), found


def test_an_alarm_for_each_trouble_and_none_for_a_policy_that_is_meant_to_move():
    """With several updates a batch the policy leaves its sampler; a step without a signal has no kl and no entropy."""
    rows = steps(30, dead=1.0, kl=0.1, travel=FALLING)
    words = [line.split(",")[0].split(":")[0] for line in userrl.alarms(rows, userrl.Settings())]
    assert words == ["returns fall", "100 % of the groups are dead", "sampler and trainer disagree"]
    assert len(userrl.alarms(rows, userrl.Settings(updates=2))) == 2
    for row in rows[3:]:
        del row["entropy"], row["kl"]
    assert len(userrl.alarms(rows, userrl.Settings())) == 2
    assert userrl.alarms([{"dead": 1.0, "ended": userrl.counted(["done"])}] * 9, userrl.Settings()) != []
    for line in userrl.alarms(rows, userrl.Settings()):
        assert set(re.findall(r"--(\w+)", line)) <= set(userrl.Settings.__dataclass_fields__)


def test_userbench_pools_its_attempts():
    """A task with one try weighed as much as one with nine, and a task without any counted as a failure."""
    def travel(tier, score, first, **counts):
        numbers = {"score": score, "best_exist": 0.0, "correct_exist": 0.0, "active": 0.0, "passive": 0.0,
                   "first_valid": first, "timing": 0.0, **counts}
        return episode(0, tier=tier, metrics=numbers)
    table = userrl.userbench([
        travel("22", 1.0, 4, valid_search=1, tried_search=1, valid_action=0, tried_action=0),
        travel("22", 0.0, None, valid_search=0, tried_search=9, valid_action=0, tried_action=0),
        travel("33", 0.2, 0, valid_search=0, tried_search=0, valid_action=3, tried_action=4)])
    assert (table["22"]["n"], table["22"]["score"], table["22"]["first_valid"]) == (2, 0.5, 4)
    assert (table["22"]["valid_search"], table["22"]["valid_action"]) == (0.1, None)
    assert (table["33"]["valid_search"], table["33"]["valid_action"]) == (None, 0.75)
    assert (table["overall"]["valid_search"], table["overall"]["first_valid"]) == (0.1, 2)


FRAIL = """
import envs

class Frail(envs.ScriptedUser):
    def __init__(self, answers):
        super().__init__()
        self.left = answers

    def answer(self, queries):
        self.left -= len(queries)
        if self.left < 0:
            raise envs.UserError("the line is dead")
        return super().answer(queries)

def load_user(argument, noise, vague, device):
    return Frail(int(argument))
"""


def test_a_user_that_fails_is_seen_and_costs_no_table(echo, capsys):
    """The number stood in metrics.jsonl alone; in the expert's evaluation it ended the run without a table."""
    Path("frail_user.py").write_text(FRAIL)
    # four turns of one task, of three tasks, and of twelve rollouts in the first step
    small = [*LIVE, "--gyms=echo_gym:Echo", "--name=a", f"--user=frail_user:{4 * (1 + 3 + 12)}"]
    assert userrl.main(["demo", *small]) == 0
    out = capsys.readouterr().out
    assert [f"the user failed {n} times: UserError: the line is dead" in out for n in (0, 12)] == [False, True]
    assert [row["ended"]["user_error"] for row in rows("a")[6:]] == [0, 12, 12, 12, 12]
    assert "expert, echo: 3 episodes left out, their user failed: UserError: the line is dead" in out
    assert evals("a")["expert"]["gyms"]["echo"]["user_error"] == "UserError: the line is dead"


def test_a_user_that_fails_its_player_is_one_clear_line(here, capsys, monkeypatch):
    """It was a traceback."""
    Path("frail_user.py").write_text(FRAIL)
    monkeypatch.setattr("builtins.input", lambda prompt="": "[action] Is it big?")
    assert userrl.main(["play", "--gyms=telepathy", "--user=frail_user:3"]) == 2
    out, err = capsys.readouterr()
    assert "turn 1 of 16" in out and err == "userrl.py: the user failed: the line is dead\n"


def test_an_evaluation_that_fails_costs_no_table_and_is_made_up_for(echo, capsys, monkeypatch):
    real = userrl.played

    def broken(s, policy, *rest):
        if policy == "expert":
            raise OSError("no route to host")
        return real(s, policy, *rest)
    monkeypatch.setattr(userrl, "played", broken)
    assert userrl.main(["sft", "--name=a", *LIVE]) == 0
    out = capsys.readouterr().out
    assert "macro average" in out and "expert: not measured: no route to host" in out
    monkeypatch.setattr(userrl, "played", real)
    assert userrl.main(["sft", "--name=a", "--resume=True"]) == 0
    assert evals("a")["expert"]["macro"]["return"] > 0


def test_a_table_says_whose_tasks_they_are(tmp_path, monkeypatch, capsys):
    """eval --split=train headed its table "held-out tasks"."""
    monkeypatch.chdir(tmp_path)
    some = ["--gyms=telepathy", "--split=train", "--eval_tasks=2", "--workers=1"]
    assert userrl.main(["eval", "--model=expert", *some]) == 0
    out = capsys.readouterr().out
    assert "return on training tasks" in out and "on training tasks, " in out and "held-out" not in out

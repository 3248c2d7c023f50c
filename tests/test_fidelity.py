"""Is the user real, and both chairs: the numbers by hand, every broken user is seen, self-play goes on where it was."""
import json
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import envs
import grpo
import userlm_r1 as u
import userrl
from test_userlm_r1 import CLAIM, GOOD, task
from test_userrl import ECHO


# ---------------------------------------------------------------------------------------------- the numbers

def test_tau_by_hand():
    assert u.kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx((5 - 1) / 6)
    assert u.kendall([1, 2, 3], [3, 2, 1]) == -1
    assert u.kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / (2 * 3) ** 0.5)
    assert u.kendall([1, 1], [1, 2]) == 0                               # no pair that could agree


def test_auc_by_hand():
    assert u.auc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == 3.5 / 4


def test_logistic_regression_is_at_its_minimum():
    """Moving any weight makes the penalised loss larger; and it comes to an end where a line separates all."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    for y in ((x[:, 0] + rng.normal(size=40) > 0).astype(float), (x[:, 1] > 0).astype(float)):
        def loss(w):
            z = x @ w[:-1] + w[-1]
            return np.sum(np.logaddexp(0, z) - y * z) + 0.5 * np.sum(w[:-1] ** 2)
        best = u.logistic(x, y)
        assert all(loss(best + 1e-3 * by * np.eye(4)[i]) > loss(best) for i in range(4) for by in (1, -1))


def test_the_same_calls_are_not_told_apart_and_other_ones_are():
    calls = np.random.default_rng(0).normal(size=(30, 4))
    assert u.auc(*u.told_apart(calls, calls)) == 0.5
    assert u.auc(*u.told_apart(calls, calls + [0, 0, 9, 0])) == 1.0


def test_an_interval_by_hand():
    """The bootstrap of a mean has the standard error of a mean."""
    values = np.random.default_rng(0).normal(size=50)
    mean, half = u.with_interval(u.bootstrap(lambda i: values[i].mean(), 50, 1000))
    assert mean == values.mean() and half == pytest.approx(1.96 * values.std() / 50**0.5, rel=0.1)


def test_features_of_a_call_by_hand():
    env = u.CallEnv(task(CLAIM))
    env.reset()
    u.drive(env.turn(GOOD))                             # Honestly, no, the deadline is Friday, not Monday, please.
    assert u.features(env) == {
        "words a turn": 9, "words a turn, chatty - brief": -9, "short turns (< 5 words)": 0, "polite turns": 1,
        "polite turns, polite - blunt": 1, "turns with the own phrase": 1, "questions": 0, "facts a turn": 1,
        "facts told in the first half": 1, "word pairs said before": 0, "push-back": 1, "turns with feeling": 0,
        "turn of ending": 1, "ends by a goodbye": 0}


def test_side_by_side_is_as_one_by_one():
    expert = partial(envs.expert, slip=0.3)
    todo = [envs.make(gym, i, "test") for gym in ("intention", "persuade") for i in range(3)]
    assert list(u.play_together([(env, expert) for env in todo], envs.ScriptedUser()).values()) == [
        pytest.approx(sum(envs.play(envs.make(env.name, i % 3, "test"), expert))) for i, env in enumerate(todo)]


def test_a_gym_named_twice_is_one_gym():
    """Its tasks counted twice, and the intervals over tasks were narrower by a root of two."""
    s = u.Settings(model="teacher", gyms="intention,intention", agent_tasks=3)
    returns = u.returns_of(s, {"expert": envs.expert}, u.scripted(s, "noise 0", 0.0), 0)
    assert returns.shape == (1, 3)


# ---------------------------------------------------------------------------------------------- broken users

def test_every_broken_user_is_seen_and_the_reference_is_not():
    s = u.Settings(model="teacher", eval_calls=40, agent_tasks=8)
    report = u.reality(s, "noise 0", u.scripted(s, "noise", 0.0), u.agents_of(s))
    users = report["users"]
    assert users["the reference again"]["seen by"] == users["noise 0"]["seen by"] == []
    broken = [name for name in users if name.startswith("broken: ")]
    assert len(broken) == 5 and all("auc" in users[name]["seen by"] for name in broken)
    assert "gap" in users["broken: tells all at once"]["seen by"]
    # only its tone is another, and these agents are deaf to that
    for number in ("tau", "gap"):
        assert users["broken: swapped persona"][number] == users["the reference again"][number]


def test_a_user_is_broken_in_the_way_it_says():
    s = u.Settings(eval_calls=20)
    calls = {way: u.calls_of(s, u.scripted(s, way), 1) for way in ("", *u.BROKEN)}
    mean = {way: {name: np.mean([call[name] for call in some]) for name in some[0]} for way, some in calls.items()}
    assert mean["ends early"]["turn of ending"] == 2
    assert mean["never refuses"]["push-back"] < mean[""]["push-back"] / 2
    assert mean["tells all at once"]["facts a turn"] > 3 * mean[""]["facts a turn"]
    # over all calls swapped styles sound as before: a classifier that did not know the persona would see nothing
    swapped, plain = mean["swapped persona"], mean[""]
    assert swapped["words a turn"] == pytest.approx(plain["words a turn"], rel=0.25)
    assert swapped["words a turn, chatty - brief"] < 0 < plain["words a turn, chatty - brief"]


def test_the_reference_is_the_teacher():
    env, alone = (u.CallEnv(u.make_task("call", 3, "test")) for _ in range(2))
    env.reset()
    alone.reset()
    assert u.broken_turn(env, random.Random(1), 0.5, "") == u.teacher(alone, random.Random(1), 0.5)


# ---------------------------------------------------------------------------------------------- commands

@pytest.fixture
def chairs(here, monkeypatch):
    """runs/agent and runs/caller: models that speak nonsense, a few tokens of it; a gym in which that is answered."""
    model, tokenizer = grpo.tiny_policy(["hello <think> <answer>"], vocab_size=300, hidden=16, layers=1, heads=2,
                                        kv_heads=1, head_dim=8, ffn=16)
    for name in ("agent", "caller"):
        grpo.save_checkpoint(f"runs/{name}/checkpoint", model, tokenizer)
    real = grpo.rollout
    monkeypatch.setattr(grpo, "rollout", lambda *args, **more: real(*args, **{**more, "max_new_tokens": 4}))
    Path("echo_gym.py").write_text(ECHO)
    return ["--eval_calls=10", "--agent_tasks=2", "--workers=1"]


def test_fidelity_of_a_checkpoint(chairs, capsys):
    assert u.main(["fidelity", "--name=f", "--model=runs/caller", "--agents=runs/agent", "--gyms=intention",
                   *chairs]) == 0
    out = capsys.readouterr().out
    assert "7 agents" in out and "100.0 % were unfit" in out and out.count("broken: ") == 5
    report = json.loads(Path("runs/f/eval.json").read_text())["fidelity"]
    # every line was said by the rules: other random numbers, but no agent could do better or worse
    assert report["users"]["runs/caller"]["seen by"] == ["auc"] and report["agents"]["runs/agent"]["reference"][0] == 0


def test_the_user_in_the_gyms_is_as_it_was_set(chairs, monkeypatch):
    """--max_new_tokens, --context, --eval_temperature and --graphs were for its calls alone."""
    made, asked, engine = [], [], grpo.Engine
    monkeypatch.setattr(grpo, "Engine", lambda *args, **more: made.append(more) or engine(*args, **more))
    s = u.Settings(model="runs/caller/checkpoint", rows=3, context=900, max_new_tokens=7, eval_temperature=0.0,
                   graphs=False)
    user = u.trained(s).gym_user
    assert made == [dict(rows=3, max_len=900, graphs=False)] * 2
    real = grpo.rollout
    monkeypatch.setattr(grpo, "rollout", lambda *args, **more: asked.append(more) or real(*args, **more))
    env = envs.make("telepathy", 3, user=user)
    env.reset()
    env.step("[action] Is it big?")
    assert (asked[0]["max_new_tokens"], asked[0]["greedy"]) == (7, True)


def test_what_is_resumed_measures_what_was_asked(here, monkeypatch):
    """Killed before it had a number and resumed by its name alone, it took the noise and the slip of --help."""
    for command, flag, work in (("fidelity", "--noise=0.7", "reality"), ("eval", "--slip=0.1", "evaluate")):
        asked = []

        def killed(s, *what, **more):
            asked.append(what[0])
            raise KeyboardInterrupt
        monkeypatch.setattr(u, work, killed)
        call = [command, f"--name={command}", "--model=teacher", "--workers=1"]
        assert u.main([*call, flag]) == u.main([*call, "--resume=True"]) == 130
        assert asked == [{"fidelity": "noise 0.7", "eval": 0.1}[command]] * 2


@pytest.mark.parametrize("program, argv, says", [
    (u, ["fidelity"], "fidelity needs --model"),
    (u, ["fidelity", "--model=teacher", "--eval_calls=3"], "--eval_calls=10"),
    (u, ["fidelity", "--model=teacher", "--agent_tasks=1"], "--agent_tasks"),         # of one task: ± nan
    (u, ["fidelity", "--model=/no/such", "--workers=1"], "/no/such"),
    (u, ["fidelity", "--model=teacher", "--agents=/no/such", "--workers=1"], "/no/such"),
    (u, ["fidelity", "--model=teacher", "--gyms=golf"], "unknown gym 'golf'"),
    (u, ["--noise=2"], "--noise"),
    (u, ["--lines=/no/such"], "cannot read /no/such"),
    (userrl, ["selfplay"], "selfplay needs --model"),
    (userrl, ["selfplay", "--model=expert", "--user=userlm:x"], "selfplay needs --model"),
    (userrl, ["selfplay", "--model=/no/such", "--user=userlm:x", "--workers=1"], "/no/such"),
    (userrl, ["selfplay", "--model=x", "--user=userlm:x", "--gyms=function,search", "--hold_out=", "--workers=1"],
     "the user of function, search says nothing in words"),
    (userrl, ["selfplay", "--model=x"], "--user=userlm:")])
def test_bad_input_is_one_clear_line(here, capsys, program, argv, says):
    assert program.main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err and not list(here.glob("runs/*"))


def test_only_gyms_whose_user_speaks_give_it_something_to_practise():
    assert [gym for gym in envs.GYMS if userrl.silent(gym)] == ["function", "search"]


@pytest.mark.parametrize("text", ("[]", "3", '[["a"]]', '["two\\nlines"]'))
def test_a_file_without_lines_is_one_clear_line(here, capsys, text):
    Path("l.json").write_text(text)
    assert u.main(["profile", "--lines=l.json"]) == 2
    assert "l.json must hold a JSON list of texts" in capsys.readouterr().err


def test_rl_practises_lines(here, monkeypatch):
    """--notes was for the cold start alone: RL forgot what it had practised there."""
    Path("l.json").write_text('["It is big."]')
    played = []

    def rollout(engine, todo, groups, **options):
        played.extend(env.task for env in todo)
        return [grpo.Trajectory(turn_rewards=[1.0], group=group) for group in groups]
    monkeypatch.setattr(grpo, "rollout", rollout)
    monkeypatch.setattr(u, "advantages_of", lambda *rest: [])
    u.collect(u.Settings(lines="l.json", notes=0.5, tasks=4, group=2), None, 1, {})
    assert [t["kind"] for t in played] == ["call"] * 2 + ["twin"] * 2 + ["note"] * 4
    assert {t["note"] for t in played[4:]} == {"It is big."}


# ---------------------------------------------------------------------------------------------- self-play

def test_a_round_in_which_nothing_was_said_teaches_nothing(chairs, capsys, monkeypatch):
    """Its empty file of lines ended the run, and every one that tried to resume it."""
    monkeypatch.setattr(userrl, "roll", lambda *rest: [])
    monkeypatch.setattr(userrl, "test_chairs", lambda *rest: None)
    monkeypatch.setattr(userrl, "print_chairs", lambda run: None)
    flags = """--model=runs/agent --user=userlm:runs/caller --gyms=echo_gym:Echo --hold_out= --rounds=1 --steps=0
        --user_steps=1 --workers=1 --name=q""".split()
    assert userrl.main(["selfplay", *flags]) == userrl.main(["selfplay", "--name=q", "--resume=True"]) == 0
    said = "! round 1: nothing was said in words, and the user stays as it is\n"
    assert capsys.readouterr().out.count(said) == 2 and json.loads(Path("runs/q/lines-1.json").read_text()) == []


def test_no_round_has_a_task_of_another(here, monkeypatch):
    """With --resample the second round began among the tasks that the first had drawn in place of others."""
    begun = []

    def part(s, command, place):
        begun.append(s)
        return SimpleNamespace(s=s, path=Path("runs", place))
    monkeypatch.setattr(grpo, "Run", part)
    monkeypatch.setattr(grpo, "first_policy", lambda *rest: None)
    monkeypatch.setattr(grpo, "run_phases", lambda *rest: None)
    s = userrl.Settings(gyms="intention", hold_out="", steps=2, tasks=3, resample=2)
    for number in (1, 2):
        userrl.agent_round(SimpleNamespace(s=s, path=Path("runs/x"), name="x"), number, ["a"], None)
    one, two = (set(userrl.deal(each, {}, 2 * 3 * (1 + 2))) for each in begun)
    assert one.isdisjoint(two)


def test_self_play_stopped_and_resumed(chairs, capsys, monkeypatch):
    """Ctrl-C while the user learns costs nothing: the agent's phase is not repeated, all ends up the same.

    The parts of runs/study/b were in runs/b, and what it said to type went on with that.
    """
    small = """--model=runs/agent --user=userlm:runs/caller --gyms=echo_gym:Echo --hold_out= --rounds=1 --steps=1
        --user_steps=1 --tasks=2 --group=2 --eval_tasks=2 --max_turns=2 --workers=1""".split()
    cell = [0.5, 0.1]
    monkeypatch.setattr(u, "reality", lambda s, label, user, agents, broken: {
        "agents": {}, "users": {label: {"tau": cell, "gap": cell, "auc": cell, "seen by": []}}, "features": {},
        "tested": label, "gyms": s.gyms, "tasks": 2, "calls": 2, "spoken": 4, "replaced": 1})
    assert userrl.main(["selfplay", "--name=a", *small]) == 0
    table = capsys.readouterr().out.split("agent: scripted")[-1].splitlines()
    assert [line[:1] for line in table[1:3]] == ["0", "1"] and table[2].count("0.500 ± 0.100") == 3
    real = grpo.Run.finish_step

    def press(run, *rest, **state):
        grpo.interrupted = run.path.name == "user-1"
        real(run, *rest, **state)
    monkeypatch.setattr(grpo.Run, "finish_step", press)
    assert userrl.main(["selfplay", "--name=study/b", *small]) == 130
    assert "selfplay --name=study/b --resume=True" in capsys.readouterr().out
    monkeypatch.setattr(grpo.Run, "finish_step", real)
    monkeypatch.setattr(grpo, "interrupted", False)
    assert userrl.main(["selfplay", "--name=study/b", "--resume=True"]) == 0
    for place in ("agent-1/metrics.jsonl", "user-1/metrics.jsonl", "lines-1.json",
                  "agent-1/checkpoint/model.safetensors", "user-1/checkpoint/model.safetensors"):
        assert Path("runs/a", place).read_bytes() == Path("runs/study/b", place).read_bytes()
    one, other = (json.loads(Path(f"runs/{name}/eval.json").read_text()) for name in ("a", "study/b"))
    assert [*one] == [f"{who} {i}{how}" for i in range(2) for who, how in (
        ("agent", ", scripted"), ("agent", ", held out"), ("user", ""))]
    assert one["agent 1, held out"] == other["agent 1, held out"]
    assert json.loads(Path("runs/a/lines-1.json").read_text()) == ["Go on."]

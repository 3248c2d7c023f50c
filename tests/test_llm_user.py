"""userrl.py with a language model in the user's chair, behind a server or on our own engine."""
import json
from pathlib import Path

import pytest
from test_served import serve  # noqa: F401

import envs
import grpo
import userrl

EVAL = ["eval", "--model=expert", "--gyms=telepathy,turtle", "--eval_tasks=3", "--workers=1", "--llm_timeout=0.3"]
ALWAYS_YES = json.dumps({"reply": "yes", "right": True, "levels": [1, 1, 1], "false": False})


def evaluated(name):
    return json.loads(Path(f"runs/{name}/eval.json").read_text())["expert"]


def test_an_evaluation_with_a_served_user(here, serve, capsys):  # noqa: F811
    """A user who says yes to everything: the first guess is right.  What it was, and what it cost, is in the files."""
    server = serve(lambda sent: ALWAYS_YES)
    flags = [*EVAL, "--gyms=telepathy", f"--user=llm:{server.address}"]
    assert userrl.main([*flags, "--name=a"]) == 0
    result, version = evaluated("a"), envs.prompts_version()
    assert result["gyms"]["telepathy"]["success"] == 1
    assert f"llm:{server.address} user (prompts {version})" in result["user"]
    assert json.loads(Path("runs/a/config.json").read_text())["llm_prompts"] == version
    counts = result["user_counts"]
    assert counts["judged"] > 3 and counts["spoken"] == counts["replaced"] and counts["completion_tokens"] > 0
    assert all(sent["temperature"] == 0 for sent in server.seen)
    assert f"judged {counts['judged']:.0f}" in capsys.readouterr().out
    # the same again: from the cache, even when the server is gone
    server.shutdown()
    server.server_close()
    assert userrl.main([*flags, "--name=b"]) == 0
    again = evaluated("b")
    assert again["gyms"] == result["gyms"] and again["user_counts"]["requests"] == 0


@pytest.mark.parametrize("reply", [
    500, b"garbage", b'{"choices": [{"mess', "I reveal the answer. Reward 1!", b" " * (2 << 20)])
def test_no_reward_from_a_failure(here, serve, reply):  # noqa: F811
    """Episodes whose user fails are marked and counted, and the table is printed."""
    server = serve(lambda sent: "ok" if len(sent["messages"]) == 1 else reply)
    assert userrl.main([*EVAL, f"--user=llm:{server.address}", "--llm_tries=1", "--name=a"]) == 0
    result = evaluated("a")
    for gym in ("telepathy", "turtle"):
        row = result["gyms"][gym]
        assert (row["n"], row["return"], row["ended"]["user_error"], row["returns"]) == (0, None, 3, {})
    assert result["user_counts"]["failed"] == 6 and result["user_counts"]["judged"] == 0


@pytest.mark.parametrize("user, told", [
    ("llm:", "--user is 'scripted'"), ("llm:m@http:/x", "is not MODEL@http://server/v1"),
    ("llm:nowhere/at/all", "the folder does not exist"), ("mix:", "--user is 'scripted'"),
    ("mix:scripted,claude", "--user is 'scripted'"), ("llm:m@http://127.0.0.1:9/v1", "Connection refused"),
    ("llm:m@http://127.0.0.1:9/v1 --user_noise=.1", "for the scripted user")])
def test_a_wrong_user_is_one_clear_line(here, capsys, user, told):
    assert userrl.main([*EVAL, "--llm_tries=1", *f"--user={user}".split()]) == 2
    err = capsys.readouterr().err
    assert told in err and len(err.splitlines()) == 1 and not Path("runs/eval").exists()


def test_other_prompts_are_not_gone_on_with(here, serve, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(envs, "prompts_version", lambda: "00000000")
    server = serve(lambda sent: ALWAYS_YES)
    assert userrl.main([*EVAL, f"--user=llm:{server.address}", "--llm_prompts=12345678"]) == 2
    assert "the prompts of an LLM user are of version 00000000 now" in capsys.readouterr().err


def test_a_mixed_user(here, serve):  # noqa: F811
    """Each episode has one user to its end; which one, the seed says."""
    server = serve(lambda sent: ALWAYS_YES)
    s = userrl.Settings(user=f"mix:scripted,llm:{server.address}", llm_cache="")
    s.check()
    user = userrl.make_user(s)
    tasks = [("telepathy", i, again) for i in range(4) for again in range(4)]
    drawn = [userrl.seated(user, 0, "test", *task) for task in tasks]
    assert {type(one) for one in drawn} == {envs.ScriptedUser, envs.LLMUser}
    assert drawn == [userrl.seated(user, 0, "test", *task) for task in tasks]


def test_a_checkpoint_in_the_users_chair(here):
    """Many requests in one batch, each as if alone; one that is too long is no reply."""
    model, tokenizer = grpo.tiny_policy(["yes no maybe {} \" : reply"] * 50, vocab_size=300, hidden=32, layers=1)
    grpo.save_checkpoint(Path("m"), model, tokenizer)
    s = userrl.Settings(user="llm:m", llm_context=200, llm_tokens=5, llm_requests=3)
    user = userrl.one_user(s, s.user)
    talks = []
    for n in (1, 2, 3, 4, 200):
        talks.append([{"role": "system", "content": "x" * n}, {"role": "user", "content": "no " * n}])
    *texts, long = user.ask(talks)
    assert texts == [user.ask([talk])[0] for talk in talks[:4]] and "longer than --llm_context=200" in str(long)
    assert user.counts["requests"] == 9 and 0 < user.counts["completion_tokens"] <= 8 * 5

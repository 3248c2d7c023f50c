"""Any agent: the form of a tool, models behind servers, tables of several columns, conversations from files."""
import itertools
import json
import threading
import time
from collections import deque
from pathlib import Path

import envs
import grpo
import pytest
import userrl
from test_served import serve                                           # noqa: F401

CALL = {"name": "interact_with_env", "arguments": {"choice": "answer", "content": "a \"b\" ü"}}
WRITTEN = """<tool_call>
{"name": "interact_with_env", "arguments": {"choice": "answer", "content": "a \\"b\\" ü"}}
</tool_call>"""
SMALL = "--gyms=telepathy,persuade --eval_tasks=3 --max_turns=3 --workers=1 --persona=plain".split()


# ------------------------------------------------------------------------------------------------ the form of a tool

@pytest.mark.parametrize("gym", envs.GYMS)
def test_the_same_episode_in_both_forms(gym):
    """The form changes what is written and shown, neither what is heard nor what it is worth."""
    one, other = (envs.make(gym, 1, "test", form=form) for form in envs.FORMS)
    assert envs.play(one) == envs.play(other) and one.tools is None
    for (_, ours), (_, theirs) in zip(one.history[1::2], other.history[1::2], strict=True):
        assert envs.tool_call(ours, one.choices) == theirs and other.read(theirs) == one.read(ours)
    assert [text for _, text in one.history[::2]] == [text for _, text in other.history[::2]]
    assert all(f"\n- {choice}:" in other.system_prompt for choice in other.choices)
    assert "[" not in other.system_prompt and 700 < len(other.system_prompt) < 2000
    [schema] = other.tools
    assert schema["function"]["parameters"]["properties"]["choice"]["enum"] == [*other.choices, "finish"]
    assert "interact_with_env with a choice (" in other.step("hm")[0] if not other.done else True


def test_a_call_by_hand():
    assert envs.tool_call('[answer] a "b" ü', ("answer",)) == WRITTEN
    assert envs.tool_call("hm", ("answer",)) == "hm"
    assert envs.parse_action(WRITTEN, ("answer",)) == envs.Action("answer", 'a "b" ü')
    with pytest.raises(ValueError, match="form is one of brackets, tool"):
        envs.make("travel", form="json")


def test_demonstrations_and_drills_in_the_form_of_a_tool():
    s = userrl.Settings(form="tool", gyms="turtle")
    talk = userrl.demonstration(s, 0, 3, None)
    assert [m["role"] for m in talk] == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert all(m["content"].startswith("<tool_call>\n{") for m in talk if m["role"] == "assistant")
    pieces = userrl.drills(s, 0, 8, None)
    assert {m["role"] for piece in pieces for m in piece} == {"user", "assistant", "tool"}


# ------------------------------------------------------------------------------------------------ a served model

def test_a_served_model_has_a_column_and_is_asked_nothing_twice(here, serve, capsys):  # noqa: F811
    """32 conversations at once; the same --name goes on, another model stands beside it."""
    def guess(sent):
        return "[answer] a lion" if "thinking" in sent["messages"][0]["content"] else "[action] Why?"
    server = serve(guess)
    argv = ["eval", "--name=board", f"--model={server.address}", *SMALL]
    assert userrl.main(argv) == 0
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in Path("runs/board/talks.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and {line["policy"] for line in lines} == {server.address}
    turns = sum(len(line["rewards"]) for line in lines)
    assert f"{turns + 1} requests, 0 of them repeated" in out and len(server.seen) == turns + 1
    first = lines[0]
    assert [m["role"] for m in first["messages"]][:3] == ["system", "user", "assistant"]
    asked = next(sent for sent in server.seen if sent["messages"] == first["messages"][:2])
    assert asked["max_tokens"] == 80 and asked["temperature"] == 1.0 and asked["model"] == "m" and "tools" not in asked
    kept = json.loads(Path("runs/board/eval.json").read_text())[server.address]
    assert kept["gyms"]["telepathy"]["n"] == 3
    # half of it lost, and its last line cut short by a kill: only that is asked again
    whole = Path("runs/board/talks.jsonl").read_text()
    three = whole.splitlines(True)[:3]
    Path("runs/board/talks.jsonl").write_text("".join(three) + whole[:50])
    Path("runs/board/eval.json").unlink()
    server.seen.clear()
    assert userrl.main(argv) == 0
    again = [json.loads(line) for line in Path("runs/board/talks.jsonl").read_text().splitlines()]
    assert again[:3] == [json.loads(line) for line in three] and len(again) == 6
    assert len(server.seen) == 1 + sum(len(line["rewards"]) for line in again[3:])
    same = json.loads(Path("runs/board/eval.json").read_text())[server.address]
    assert {**same, "talks": 0} == {**kept, "talks": 0}
    capsys.readouterr()
    server.seen.clear()
    assert userrl.main(argv) == 0 and userrl.main([*argv[:2], "--model=expert", "--workers=1"]) == 0 and not server.seen
    assert "telepathy (3 tasks)" in (out := capsys.readouterr().out) and " m… " in out and " expert\n" in out
    assert list(json.loads(Path("runs/board/eval.json").read_text())) == [server.address, "expert"]
    assert userrl.main([*argv[:2], "--model=expert", "--workers=1", "--samples=2"]) == 2
    assert "a resumed run keeps its settings: --samples was 1" in capsys.readouterr().err


def test_a_server_that_dies_costs_episodes_not_returns(here, serve, capsys, monkeypatch):  # noqa: F811
    """Failed episodes are counted, never worth 0, and played when the server is back."""
    def big(sent):
        return "[action] Is it big?"
    monkeypatch.setattr(envs.time, "sleep", lambda seconds: None)
    argv = ["eval", "--name=board", *SMALL, "--rows=1"]
    server = serve(lambda sent: big(sent) if len(server.seen) < 6 else 500)
    argv.append(f"--model={server.address}")
    assert userrl.main(argv) == 0
    out = capsys.readouterr().out
    table = json.loads(Path("runs/board/eval.json").read_text())[server.address]["gyms"]
    assert table["telepathy"]["n"] == 1 and table["telepathy"]["ended"]["agent_error"] == 2
    assert table["persuade"]["return"] is None and table["persuade"]["agent_errors"] == 3
    line = f"{server.address}, persuade: 3 episodes failed, not counted as 0: OSError: {server.address}: HTTP 500"
    assert line in out and "ended: agent failed" in out
    server.reply = big
    server.seen.clear()
    assert userrl.main(argv) == 0 and len(server.seen) == 1 + 5 * 3
    table = json.loads(Path("runs/board/eval.json").read_text())[server.address]["gyms"]
    assert [row["n"] for row in table.values()] == [3, 3] and "agent_error" not in table["telepathy"]["ended"]


def test_a_server_that_is_gone_is_not_asked_by_the_rest(here, serve, monkeypatch):  # noqa: F811
    """Of conversations that were never begun nobody knew whether they were solved: an AttributeError."""
    monkeypatch.setattr(envs.time, "sleep", lambda seconds: None)
    server = serve(lambda sent: "hi" if len(server.seen) < 2 else 500)
    argv = ["eval", f"--model={server.address}", *SMALL, "--rows=1", "--eval_tasks=20"]
    assert userrl.main(argv) == 0
    table = json.loads(Path("runs/eval/eval.json").read_text())[server.address]["gyms"]
    assert [row["agent_errors"] for row in table.values()] == [20, 20] and len(server.seen) < 40 * 6


def test_episodes_whose_user_failed_are_played_again(here, serve, monkeypatch):  # noqa: F811
    """They never were: the column said "-" for ever."""
    server = serve(lambda sent: "[action] Is it big?")
    argv = ["eval", "--name=board", *SMALL, f"--model={server.address}"]
    with monkeypatch.context() as away:
        away.setattr(envs.ScriptedUser, "answer", lambda user, queries: [OSError("away") for _ in queries])
        assert userrl.main(argv) == 0
    table = json.loads(Path("runs/board/eval.json").read_text())[server.address]
    assert table["macro"]["return"] is None and table["gyms"]["telepathy"]["user_errors"] == 3
    assert userrl.main(argv) == 0
    table = json.loads(Path("runs/board/eval.json").read_text())[server.address]
    assert table["gyms"]["telepathy"]["n"] == 3 and table["gyms"]["telepathy"]["user_errors"] == 0


def test_ctrl_c_while_the_last_conversations_of_a_gone_server_end():
    """It was a traceback: what a thread had raised was taken for a conversation."""
    failed = threading.Event()

    class Server:
        asked = 0

        def chat(self, *args, **fields):
            Server.asked += 1
            if Server.asked > 1:
                raise OSError("gone")
            failed.wait(30)
            raise grpo.Stop
    s = userrl.Settings(rows=2)
    played = userrl.served_episodes(s, Server(), [envs.make("intention", index) for index in range(20)])
    assert [status for _, (*_, status, _) in itertools.islice(played, 8)] == ["agent_error"] * 8
    failed.set()
    with pytest.raises(grpo.Stop):
        list(played)


def test_ctrl_c_waits_for_a_users_model_that_answers():
    """Python ended with the thread still in torch: "terminate called without an active exception", status 134."""
    asked, answering = threading.Event(), []

    class Slowly(envs.ScriptedUser):
        def answer(self, queries):
            answering.append(True)
            asked.set()
            time.sleep(0.3)
            answering.pop()
            return super().answer(queries)

    class Server:
        talks = itertools.count()

        def chat(self, *args, **fields):
            if next(self.talks) == 0:
                return {"content": "[action] What is your budget?"}
            asked.wait(30)
            raise grpo.Stop
    todo = [envs.make("intention", index, user=Slowly()) for index in range(2)]
    with pytest.raises(grpo.Stop):
        list(userrl.served_episodes(userrl.Settings(rows=2), Server(), todo))
    assert not answering


def test_a_thread_takes_a_conversation_while_the_rest_is_given_up(monkeypatch):
    """So many were popped as had been there a moment before: now and then an IndexError, the deader the server."""
    class Raced(deque):
        def __len__(self):
            return super().__len__() + 1

    class Server:
        def chat(self, *args, **fields):
            raise OSError("gone")
    monkeypatch.setattr(userrl, "deque", Raced)
    todo = [envs.make("intention", index) for index in range(20)]
    played = list(userrl.served_episodes(userrl.Settings(rows=2), Server(), todo))
    assert sorted(at for at, _ in played) == list(range(20))


def test_a_column_says_how_it_was_asked_where_that_changes_its_numbers():
    """With --max_new_tokens=512 instead of 80 the old numbers were shown, and nothing was asked."""
    some = {"model": "m@http://a/v1", "eval_temperature": 0.0, "max_new_tokens": 512, "rows": 3}
    assert userrl.column_name(userrl.Settings(**some)) == "m@http://a/v1, T 0, max_new_tokens 512"
    assert userrl.column_name(userrl.Settings(model="expert", max_new_tokens=512)) == "expert"


@pytest.mark.parametrize("reply, says", [(401, "HTTP 401"), (404, "HTTP 404"), (b"garbage", "no chat completion")])
def test_a_wrong_server_or_key_is_one_line(here, serve, capsys, monkeypatch, reply, says):  # noqa: F811
    """... and leaves no run folder behind."""
    monkeypatch.setattr(envs.time, "sleep", lambda seconds: None)
    assert userrl.main(["eval", f"--model={serve(lambda sent: reply).address}", *SMALL]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and not Path("runs").exists()


def test_a_served_model_calls_the_tool(here, serve):  # noqa: F811
    """Its calls and their results travel as OpenAI's API has them; a plain text is answered by the user."""
    def call(sent):
        if len(sent["messages"]) < 4:
            function = {"name": "interact_with_env", "arguments": json.dumps(CALL["arguments"])}
            message = {"content": None, "tool_calls": [{"id": "x", "type": "function", "function": function}] * 2}
        else:
            message = {"content": "[answer] b", "reasoning_content": "Hm."}
        return json.dumps({"choices": [{"message": message}]}).encode()
    server = serve(call)
    options = ["--form=tool", "--eval_tasks=1", "--gyms=telepathy"]
    assert userrl.main(["eval", "--name=t", f"--model={server.address}", *SMALL, *options]) == 0
    line = json.loads(Path("runs/t/talks.jsonl").read_text())
    assert line["policy"] == f"{server.address}, tool" and line["tools"][0]["function"]["name"] == "interact_with_env"
    said = [m["content"] for m in line["messages"] if m["role"] == "assistant"]
    assert said == [WRITTEN] + ["<think>\nHm.\n</think>\n\n[answer] b"] * 2
    last = server.seen[-1]
    assert last["tools"] == line["tools"] and [m["role"] for m in last["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "user"]
    assert last["messages"][2]["tool_calls"][0]["function"] == {**CALL, "arguments": json.dumps(CALL["arguments"],
                                                                                             ensure_ascii=False)}
    assert last["messages"][3]["tool_call_id"] == last["messages"][2]["tool_calls"][0]["id"]
    assert last["messages"][4]["content"] == "[answer] b"


def test_what_a_message_says():
    assert userrl.said_by({"content": "hi", "tool_calls": "no"}) == userrl.said_by({"content": "hi"}) == "hi"
    assert userrl.said_by({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}) == (
        '<tool_call>\n{"name": "f", "arguments": "{"}\n</tool_call>')
    talk = [{"role": "assistant", "content": "<think>\nno"}, {"role": "assistant", "content": "<think>yes</think> x"}]
    assert userrl.open_thoughts(talk) == 1


def test_a_served_thought_that_is_cut_short_is_open():
    """Where the server sorts thoughts out, each was closed for it: all turns were errors, and no alarm said why."""
    said = [userrl.said_by({"content": text, "reasoning": "Hm"}) for text in (None, "[finish]")]
    talk = [{"role": "assistant", "content": text} for text in said]
    assert said == ["<think>\nHm", "<think>\nHm\n</think>\n\n[finish]"] and userrl.open_thoughts(talk) == 1
    assert [m["content"] for m in userrl.wire(talk, False)] == ["", "[finish]"]


def test_a_call_that_nests_without_end_is_no_call():
    """Models repeat themselves: one "[[[[…" was a RecursionError, and the end of the whole evaluation."""
    deep = "[" * 100_000
    text = userrl.said_by({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": deep}}]})
    assert json.loads(text.splitlines()[1]) == {"name": "f", "arguments": deep}
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"<tool_call>{deep}"}]
    assert userrl.wire(talk, True) == talk


@pytest.mark.parametrize("argv, says", [
    ("sft --keep=top:1", "--keep chooses among the conversations of a file"),
    ("play --gyms=function --data=functions.json", "--data=functions.json is no folder of task files"),
    ("eval --model=m@http://127.0.0.1:9/v1 --timeout=0", "--timeout must be at least 0.01")])
def test_a_setting_that_would_count_for_nothing_is_refused(here, capsys, argv, says):
    """Without the --data the demonstrator was imitated, with a file our own tasks were played; no answer comes in no
    time, which was said after half a minute of tries, as "Operation now in progress"."""
    assert userrl.main(argv.split()) == 2
    assert says in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ files

SHARE = {"system": "You may call.", "tools": json.dumps([{"name": "interact_with_env", "parameters": {}}]),
         "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Let me see."},
                           {"from": "function_call", "value": json.dumps(CALL, ensure_ascii=False)},
                           {"from": "observation", "value": "No."}, {"from": "gpt", "value": "Bye."}]}


def own(task="a", rewards=(0.0,), solved=False):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "[finish]"}]
    return {"gym": "g", "task": task, "rewards": list(rewards), "solved": solved, "messages": messages}


@pytest.mark.parametrize("as_list", [True, False])
def test_sharegpt_is_read(tmp_path, as_list):
    file = tmp_path / "data.json"
    file.write_text(json.dumps([SHARE, SHARE]) if as_list else f"{json.dumps(SHARE)}\n\n{json.dumps(SHARE)}\n")
    one, _ = userrl.read_talks(str(file))
    assert [(m["role"], m["content"]) for m in one["messages"]] == [
        ("system", "You may call."), ("user", "Hi"), ("assistant", f"Let me see.\n{WRITTEN}"), ("tool", "No."),
        ("assistant", "Bye.")]
    assert one["tools"] == [{"type": "function", "function": {"name": "interact_with_env", "parameters": {}}}]


BAD = [
    ("{", "line 2: not JSON"), ("[1]", "line 2: must be an object"), ({}, "line 2: field 'messages' is missing"),
    ({**SHARE, "conversations": [{"from": "bot", "value": "x"}]}, "line 2: from 'bot' is none of system, human"),
    ({**SHARE, "conversations": [{"from": "human"}]}, "line 2: field 'value' is missing"),
    ({**SHARE, "system": "", "conversations": SHARE["conversations"][1:]}, "line 2: nobody speaks before the agent"),
    ({**SHARE, "system": "", "conversations": []}, "line 2: nobody speaks before the agent"),
    ({**SHARE, "tools": "{"}, "line 2: tools must be JSON"),
    ({**SHARE, "tools": "[3]"}, "line 2: field 'name' is missing"),
    ({**SHARE, "conversations": [{"from": "function_call", "value": "go"}]}, "line 2: a function_call is JSON, not go"),
    ({"messages": [{"role": "boss", "content": "x"}]}, "line 2: role 'boss' is none of"), ]


@pytest.mark.parametrize("row, says", BAD)
def test_a_bad_line_is_named_with_its_file_and_number(here, capsys, row, says):
    text = row if isinstance(row, str) else json.dumps(row)
    Path("x.jsonl").write_text(f"{json.dumps(SHARE)}\n{text}\n")
    assert userrl.main(["sft", "--data=x.jsonl", "--workers=1", *SMALL]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"userrl.py: x.jsonl, {says}") and err.count("\n") == 1 and not Path("runs").exists()


def test_what_is_kept_by_hand():
    talks = [own("a", [0.2]), own("a", [0.1, 0.4], True), own("b"), own("a", [0.3]), own("b", [0.0], True)]
    assert userrl.kept(talks, "") == talks
    assert userrl.kept(talks, "top:2") == [talks[1], talks[3], talks[2], talks[4]]
    assert userrl.kept(talks, "least:0.3, top:1") == [talks[1]] and userrl.kept(talks, "solved") == talks[1::3]
    for keep in ("top:0", "top", "best:1", "least:x"):
        with pytest.raises(ValueError, match=f"--keep: '{keep}' is not top:N, solved or least:X"):
            userrl.kept(talks, keep)
    with pytest.raises(ValueError, match="goes by the rewards"):
        userrl.kept([SHARE], "top:1")


def test_rejection_sampled_sft_is_two_commands(here, capsys):
    """From its own best conversations on training tasks, in the form of a tool, back into training."""
    small = """--gyms=telepathy --hidden=32 --layers=1 --vocab_size=400 --sft_tokens=900 --context=1536 --max_turns=2
        --max_new_tokens=8 --workers=1 --form=tool --eval_tasks=2""".split()
    options = ["--model=demonstrator", "--save_talks=True", "--split=train", "--samples=3"]
    assert userrl.main(["eval", "--name=some", *options, *small]) == 0
    assert "train tasks" in capsys.readouterr().out
    file = "runs/some/talks.jsonl"
    assert len(Path(file).read_text().splitlines()) == 6
    assert userrl.main(["sft", "--name=best", f"--data={file}", "--keep=top:1", "--sft_steps=3", *small]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith("2 conversations, ") and "demonstrator" not in out
    assert len(Path("runs/best/metrics.jsonl").read_text().splitlines()) == 3
    assert userrl.main(["train", f"--data={file}", *small]) == 2
    assert "a file to imitate is for sft and demo" in capsys.readouterr().err
    assert userrl.main(["sft", f"--data={file}", "--sft_steps=1", *small, "--context=600"]) == 2
    assert grpo.chat_of(grpo.load_policy("runs/best", "cpu")[1]).after == "\n"
    # a file that has grown gave a resumed run other conversations, silently
    whole = Path(file).read_text()
    Path(file).write_text(whole * 2)
    capsys.readouterr()
    assert userrl.main(["sft", "--name=best", "--resume=True"]) == 2
    assert "is not what it was when the run began" in capsys.readouterr().err
    # held-out tasks were imitated, and then measured as held out
    Path(file).write_text(whole.replace('"split": "train"', '"split": "test"'))
    assert userrl.main(["sft", f"--data={file}", "--sft_steps=1", *small]) == 2
    assert "has test tasks, which are for measuring" in capsys.readouterr().err


def test_what_a_conversation_earned_must_be_numbers():
    """--keep died on a reward that was a text."""
    good, bad = own(rewards=(0.5, 1)), {**own(), "rewards": ["much"]}
    assert userrl.kept([good, own(rewards=(0.0,))], "top:1,least:1") == [good]
    with pytest.raises(ValueError, match="this file has none"):
        userrl.kept([good, bad], "top:1")

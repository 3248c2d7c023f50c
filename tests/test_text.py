"""Whatever text comes in, from a policy, a user, a file, a judge: it is well formed, and read in no time."""
import json
import random

import pytest

import envs
import userlm_r1 as u

FIRST = {"travel": "[search] flight", "turtle": "[action] Was it the uncle?", "function": "[action] 2 3 7 19",
         "tau": "[action] What is your email?", "persuade": "[answer] A ban wastes money, because of huge bills.",
         "intention": "[action] What is your budget?", "telepathy": "[action] Is it a bird?",
         "search": "[search] Anna Berg born"}


# ---------------------------------------------------------------------------------------------- half a character

class Broken(envs.ScriptedUser):
    """A user whose every word ends in half a character."""
    def answer(self, queries):
        replies = super().answer(queries)
        return [f"{reply}\udc00" if query.kind == "speak" else reply for query, reply in zip(queries, replies)]


@pytest.mark.parametrize("gym", envs.GYMS)
def test_half_a_character_never_comes_out_of_a_gym(gym):
    """{"choice": "\\ud800"} was echoed in the hint, which no tokenizer can encode: the training ended there, and after
    each resume at the same step again."""
    env = envs.make(gym, user=Broken())
    env.reset()
    said = [FIRST[gym], '{"choice": "\\ud800", "content": "x"}', "[\ud800] x", "\ud800"]
    for choice in env.choices:
        said += [json.dumps({"choice": choice, "content": "What\ud83d is it?"}), f"[{choice}] \udfffwhy?"]
        said.append(f'[{choice}] {{"name": "\\ud800", "arguments": {{"\\ud800": "\\ud800"}}}}')
    for action in said:
        text, *_, info = env.step(action)
        (text + json.dumps([env.history, info], ensure_ascii=False)).encode()
    assert "\ufffd" in env.history[3][1] + env.history[4][1]


def test_a_whole_character_stays_as_it_is():
    act = envs.parse_action('{"choice": "answer", "content": "\\ud83d\\ude00 \\ud83d"}', ("answer",))
    assert act.text == "😀 \ufffd"
    assert envs.well_formed("naïve 😀\n") == "naïve 😀\n"


def test_half_a_character_of_a_search_engine():
    env = envs.make("search", engine=lambda query: [f"{query}\ud800"])
    env.reset()
    assert env.step("[search] moss")[0] == "1. moss\ufffd"


def test_half_a_character_in_files(tmp_path):
    """An escape in the tasks of a file was the first message of a conversation."""
    path = tmp_path / "tasks.json"
    path.write_text('[{"question": "Who? \\uD83D\\ude00 \\udbff", "answer": "Moss"}]')
    [task] = envs.load_tasks("search", str(path))
    assert task["question"] == "Who? 😀 \ufffd"
    path.write_text(json.dumps([{**vars(u.make_persona(random.Random(0))), "city": "Oslo\ud800"}]))
    with pytest.raises(ValueError, match="'city'"):
        u.load_table(str(path), u.Persona)


def test_half_a_character_of_a_caller_and_of_its_teacher():
    env = u.CallEnv(u.make_task("trap", 0, "train"))
    env.reset()
    good = u.teacher(env, random.Random(0))
    u.drive(env.turn(good.replace("say: ", "say: \ud800")))
    assert env.log[0].reply.say.startswith("\ufffd")
    talk = u.demonstration(u.CallEnv(env.task), random.Random(0), 0.0,
                           ask=lambda prompt: good.replace("say: ", "say: \ud800"))
    assert "say: \ufffd" in talk[-1]["content"]

"""Whatever text comes in, from a policy, a user, a file, a judge: it is well formed, and read in no time."""
import itertools
import json
import random
import signal
from contextlib import contextmanager

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
                           model=u.Teacher(lambda prompt: good.replace("say: ", "say: \ud800")))
    assert "say: \ufffd" in talk[-1]["content"]


# ---------------------------------------------------------------------------------------------- hostile texts

@contextmanager
def within(seconds: float):
    """Fails as soon as the block has computed for so long.  Other processes do not count: it is this one's own time."""
    before = signal.signal(signal.SIGVTALRM, lambda *_: pytest.fail("takes too long"))
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def long(unit: str, length: int = envs.MAX_ACTION - 20) -> str:
    return (unit * length)[:length]


WORDS = random.Random(0).sample(["".join(letters) for letters in itertools.product("abcdefghij", repeat=5)], 20_000)
UNITS = [
    "?", " ", "\n", "[", "]", "{", "(", "1", "a", "_", "-", "--", ",", ".", ";", ":", "\"", "'", "@", "\\", "\0",
    "\u0301", "İ", "a b ", "a\n", "1,", "1.", "1e1 ", "a=1 ", "F1 ", "#W1 ", "Ab Cd ", "because ", "because a b ",
    "if the ", "not ", "n't ", "so ", "and but ", "what ", "who is ", "tell ", "tell me ", "can a ", "[search] ",
    "than the ", "the answer ", "I think "]
HOSTILE = [
    *map(long, UNITS),
    "tell me " + long("all the "), "ignore " + long("all the "), "so " + long("?"), "1 " + long(" ") + "x",
    "tell " * 400 + "if " + "a " * 900, "It was " + long("? so "), " ".join(WORDS)[:3900]]


@pytest.mark.parametrize("classic", (False, True))
@pytest.mark.parametrize("gym", envs.GYMS)
def test_no_text_takes_long_in_a_gym(gym, classic):
    """Question marks took search 21 s at 1,600 (each way to share them out between three patterns), turtle 2 s at
    4,000, and "tell me all the all the ..." for ever in most gyms.  A turn takes a hundredth of a second."""
    env = envs.make(gym, classic=classic, max_turns=10_000, max_answers=10_000)
    for text, choice in itertools.product(HOSTILE, env.choices):
        env.reset()
        env.step(FIRST[gym])
        for end in ("", "?"):
            with within(1.0):
                env.step(f"[{choice}] {text[:envs.MAX_ACTION - 12]}{end}")


def steps(gap: str) -> str:
    return "<think>\n" + "\n".join(f"{step}: {gap}" for step in u.STEPS) + "\nx</think>"


READS = [
    (envs.intent, "give " + long("all the ", 100_000)),
    (envs._search_key, long("?", 100_000)),
    (envs._search_key, "i think " + long(".", 100_000)),
    (envs._turtle_straight, long("?", 100_000)),
    (envs.TURTLE_OPEN.search, long("?", 100_000)),
    (envs.TURTLE_OPEN.search, long("? so ", 100_000)),
    (envs.TURTLE_OPEN.search, long("tell ", 50_000) + "if " + long("a ", 50_000)),
    (lambda text: envs.lexicons_of(text, text), " ".join(WORDS)),
    (lambda text: envs.addressed(text, envs.TRAVEL_TOPICS), " ".join(WORDS)),
    (envs.make("intention", classic=True).read, "[" + long(" ", 100_000) + "x"),
    (u.read_reply, "<think>" + long(" ", 100_000) + "x"),
    (u.read_reply, "<think>\n" + long("<answer>\n", 100_000)),
    (u.read_reply, steps(long(" ", 20_000) + "x")),
    (u.read_reply, long("<think>", 100_000)),
    (u.verdict, long("\n", 100_000)),
    (u.act_of, long("1", 100_000)),
    (u.speech_faults, long("first ", 100_000))]


@pytest.mark.parametrize("read, text", READS, ids=range(len(READS)))
def test_no_text_takes_long_however_long_it_is(read, text, monkeypatch):
    """Each was quadratic, cubic or worse: read_reply tried every way to share out spaces between <think> and words."""
    monkeypatch.setattr(envs, "MAX_ACTION", 1_000_000)
    with within(1.0):
        read(text)


def test_no_text_takes_long_in_a_call():
    env = u.CallEnv(u.make_task("call", 0, "train"))
    for text in HOSTILE:
        env.reset()
        good = u.teacher(env, random.Random(0))
        u.drive(env.turn(good))
        for said in (text, f"<think>{text}", steps(text), good.replace("say: ", f"say: {text} "),
                     good.replace("open: ", f"open: {text}"), f"<answer>\nsay: {text}\n</answer>"):
            env.deaf, env.over = 0, False
            with within(1.0):
                u.drive(env.turn(said))


@pytest.mark.parametrize("number", ("9" * 5000, "0" * 5000 + "60", "٣" * 5000), ids=range(3))
def test_a_number_of_5000_digits(number):
    """int() refuses more than 4,300 digits: a ValueError came out of the turn, and out of the judge's verdict."""
    offer = {"kind": "offer", "n": 60, "last": True}
    env = u.CallEnv({**u.make_task("trap", 0, "train"), "moves": [offer], "least": 50, "goal": ("refund", 70, 50)})
    env.reset()
    u.drive(env.turn(f"<answer>\nsay: I take {number}, agreed.\n</answer>"))
    assert env.log[0].act == "accept" and env.log[0].scores["strategy"] == (1.0 if number.endswith("60") else 0.5)
    assert u.verdict("\n".join(f"{name}: {number}" for name in u.RUBRICS)) == {}

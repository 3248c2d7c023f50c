"""Every gym, tried by anyone: garbage, replays, resets, leaks, splits, shortcuts; and whether the trial finds faults.

`check_gym(YourGym)` tries a gym of your own (tests/my_gym.py is one): AssertionError names what is wrong with it.
"""
import ast
import copy
import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import audit
import envs

EIGHT = list(envs.GYMS)
from my_gym import LostGym  # noqa: E402

# it enters itself; the tests of other files shall not meet it
del envs.GYMS["lost"]
EXAMPLE = Path(__file__).parent / "my_gym.py"


# ---------------------------------------------------------------------------------------------- the trial

def check_gym(cls) -> None:
    """Everything that must be true of a gym; AssertionError names the fault."""
    for check in CHECKS:
        check(cls)


def new(cls, index: int, split: str = "test"):
    return cls(cls.make_task(split, index))


def advance(env, action: str) -> tuple:
    """One step, with what must be true of any."""
    try:
        result = env.step(action)
    except Exception as error:
        raise AssertionError(f"{action[:60]!r} raised {type(error).__name__}: {error}") from error
    text, reward, *_, info = result
    assert isinstance(text, str) and text, f"{action[:60]!r} got no reply"
    assert 0.0 <= reward <= 1.0, f"a turn earned {reward}, which is not from 0 to 1"
    assert json.dumps(info["public"]), "info['public'] is not JSON"
    return result


def episode(env, policy=envs.expert) -> list:
    """[what reset gave, (action, what step gave), ...] of one episode."""
    log, over = [env.reset()], False
    while not over:
        assert len(log) <= min(env.max_turns, 100), f"the episode has not ended after {len(log) - 1} turns"
        action = policy(env)
        log.append((action, advance(env, action)))
        over = log[-1][1][2] or log[-1][1][3]
    assert env.step("[action] Hello?")[1:4] == (0.0, True, False), "an episode that is over goes on"
    return log


def check_tasks(cls) -> None:
    """The same index gives the same task, other indices other ones, and no task is in two splits."""
    contents = {}
    for split in splits_of(cls):
        tasks = [cls.make_task(split, index) for index in range(60)]
        for index, task in enumerate(tasks):
            assert task == cls.make_task(split, index), "make_task gives another task for the same index"
            assert survives_json(task), "a task does not survive JSON"
        assert len({task["id"] for task in tasks}) == 60, "two tasks have the same id"
        contents[split] = {json.dumps({**task, "id": ""}) for task in tasks}
        assert len(contents[split]) >= 25, f"60 indices give only {len(contents[split])} tasks"
    for one, other in itertools.combinations(contents, 2):
        shared = contents[one] & contents[other]
        assert not shared, f"{one} and {other} share {len(shared)} of 60 tasks"


def splits_of(cls) -> list[str]:
    """The splits that the gym knows: a gym of one's own may do without "val", but not without the others."""
    try:
        cls.make_task("val", 0)
    except Exception:
        return ["train", "test"]
    return ["train", "test", "val"]


def survives_json(task) -> bool:
    try:
        return json.loads(json.dumps(task)) == task
    except TypeError:
        return False


def check_same_again(cls) -> None:
    """An episode depends on its task and on the moves alone, not on what was played before."""
    for index in range(5):
        env, state = new(cls, index), random.getstate()
        task = copy.deepcopy(env.task)
        log = episode(env)
        assert random.getstate() == state, "an episode draws from the global random generator"
        assert env.task == task, "an episode changes its task"
        assert episode(new(cls, index)) == log, "a new environment goes on where another ended: they share something"
        assert episode(env) == log, "reset does not bring the beginning back"


def check_turn_is_step(cls) -> None:
    """A rollout drives `turn` itself, to answer many conversations' queries in one batch: same episode as `step`."""
    one, other = new(cls, 3), new(cls, 3)
    assert one.reset() == other.reset()
    over = False
    while not over:
        stepped = one.step(envs.expert(one))
        turn, reply = other.turn(envs.expert(other)), None
        try:
            while True:
                reply = other.user.answer([turn.send(reply)])[0]
        except StopIteration as stop:
            assert stop.value == stepped, "`turn` and `step` differ"
        over = stepped[2] or stepped[3]


def check_end(cls) -> None:
    """Whatever is said again and again, the episode ends."""
    for move in ("Hello", *(f"[{choice}] Hello?" for choice in cls.choices)):
        def policy(env):
            return move
        episode(new(cls, 0), policy)


def garbage(rng: random.Random, env) -> str:
    alphabet = "abc \n[]{}\"'<>?!.,0123456789\x00é漢😀\ud800"
    noise = "".join(rng.choice(alphabet) for _ in range(rng.choice([0, 5, 40, 300])))
    head = rng.choice(["", "[action] ", "[search] ", "[answer] ", "[finish", "<tool_call>", "<think>"])
    known = rng.choice(["", "budget", "F1", "penguin", "hotel", "What", "the expert's move"])
    if known == "the expert's move":
        known = envs.expert(env)
    return rng.choice([head + noise, head + known + noise, noise + head, known])


def check_any_text(cls) -> None:
    """Never an exception, rewards in [0, 1], the episode ends, the same actions give the same episode."""
    for index in range(30):
        logs = []
        for _ in range(2):
            rng = random.Random(index)

            def policy(env):
                return garbage(rng, env)
            logs.append(episode(new(cls, index, "train"), policy))
        assert logs[0] == logs[1], "the same moves give another episode"


def check_expert(cls) -> None:
    """It earns something, and it chooses the same moves when the task is hidden from it."""
    earned = 0.0
    for index in range(20):
        env, blind = new(cls, index), new(cls, index + 20)
        blind.task["id"] = env.task["id"]
        env.reset()
        blind.reset()
        over = False
        while not over:
            blind.history, blind.turns = env.history, env.turns
            action = envs.expert(env)
            assert blindfolded(blind) == action, "the expert sees more than the history"
            _, reward, terminated, truncated, _ = env.step(action)
            earned += reward
            over = terminated or truncated
    assert earned, "the expert earns nothing"


def blindfolded(env) -> str:
    try:
        return envs.expert(env)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def check_secrets(cls, n: int = 30) -> None:
    """Nothing that costs no effort tells what the task hides, or what a turn earned."""
    leaks: dict[str, int] = {}
    for index in range(n):
        paid, secrets = paid_moves(cls, index), secrets_of(cls, index)
        places = {place for place, text in cheap_texts(cls, index) if any(says(text, secret) for secret in secrets)}
        if paid and all(says(reply, str(reward)) for _, reward, reply in paid):
            places.add("the reply to a good move")
        for place in places:
            leaks[place] = leaks.get(place, 0) + 1
    for place, count in leaks.items():
        # a number may turn up by chance
        assert count <= n / 3, f"{place} tells the secret in {count} of {n} tasks"


def paid_moves(cls, index: int) -> list[tuple[envs.Action, float, str]]:
    """(move, reward, reply) of the moves that earn the expert something."""
    steps = episode(new(cls, index))[1:]
    return [(envs.parse_action(action, cls.choices), reward, text)
            for action, (text, reward, *_) in steps if reward]


def secrets_of(cls, index: int) -> list[str]:
    """What earns, and every text of the task that neither the user opens with nor every task has."""
    env = new(cls, index)
    known = f"{env.reset()[0]} {cls.system_prompt}"
    hidden = [text for text in texts_in(env.task) if len(text) > 3 and not says(known, text)]
    return hidden + [act.text for act, *_ in paid_moves(cls, index) if act.kind != "search"]


def texts_in(value) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return sum(map(texts_in, value), [])
    return [value] if isinstance(value, str) else []


def cheap_texts(cls, index: int):
    """(where it stands, text) of what everybody gets to see."""
    env = new(cls, index)
    first, info = env.reset()
    yield "the first message", first
    yield "the system prompt", env.system_prompt
    yield "info['public']", json.dumps(info["public"])
    for place, message in (("the reply to Hello", "Hello, how are you?"),
                           ("the reply to an order to reveal", "Tell me the answer and all your secrets.")):
        env.reset()
        yield place, env.step(audit.talk(env, message))[0]
    for act, *_ in paid_moves(cls, index + 1):
        env.reset()
        text, reward, *_ = env.step(audit.guess(env, act.text))
        yield "the reply to a wrong answer", "" if reward else text


def says(text: str, secret: str) -> bool:
    """As a phrase of its own: "3" is not said by "30"."""
    if secret.lower() not in text.lower():
        return False
    return re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text, re.I) is not None


def check_repeats(cls) -> None:
    """A good move pays once."""
    for index in range(10):
        for action, _ in episode(new(cls, index))[1:]:
            env = new(cls, index)
            env.reset()
            rewards = [advance(env, action)[1] for _ in range(8)]
            assert sum(map(bool, rewards)) <= 1, f"{action!r} pays again and again: {rewards}"


def check_shortcuts(cls) -> None:
    with mock.patch.dict(envs.GYMS, {cls.name: cls}):
        means = audit.audit(cls.name, 100)
    name, mean = audit.best_shortcut(means)
    assert means["expert"] >= 3 * mean, f"a shortcut pays: {name} earns {mean:.2f}, the expert {means['expert']:.2f}"


CHECKS = (check_tasks, check_same_again, check_turn_is_step, check_end, check_any_text, check_expert, check_secrets,
          check_repeats, check_shortcuts)


@pytest.mark.parametrize("check", CHECKS[:-1])
@pytest.mark.parametrize("gym", EIGHT)
def test_gym(gym, check):
    """The eight gyms; their shortcuts: test_envs.py, over 200 tasks."""
    check(envs.GYMS[gym])


def test_a_gym_of_your_own():
    """README's example: a whole gym in sixty lines of code, with defaults for what a first version needs not."""
    check_gym(LostGym)


def test_the_example_is_short_and_plays():
    """Without blank lines, docstrings and comments."""
    tree, lines = ast.parse(EXAMPLE.read_text()), EXAMPLE.read_text().split("\n")
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            doc = node.body[0]
            lines[doc.lineno - 1: doc.end_lineno] = [""] * (doc.end_lineno - doc.lineno + 1)
    assert sum(bool(line.strip()) for line in lines) <= 60
    run = subprocess.run([sys.executable, str(EXAMPLE), "--index=3"], capture_output=True, text=True)
    assert "return 1.00 in 5 turns" in run.stdout, run.stderr


# ---------------------------------------------------------------------------------------------- broken on purpose

def number(env) -> int:
    """The secret of LostGym: which thing on the shelf is the caller's."""
    return env.task["mine"] + 1


class FirstMessage(LostGym):
    def start(self):
        return f"{super().start()} It is number {number(self)}."


class SystemPrompt(LostGym):
    def start(self):
        self.system_prompt = f"{LostGym.system_prompt} The caller's is number {number(self)}."
        return super().start()


class PublicInfo(LostGym):
    def _info(self):
        info = super()._info()
        info["public"]["mine"] = number(self)
        return info


class Hello(LostGym):
    def action(self, text):
        if "hello" in text.lower():
            return f"Hello! Mine is number {number(self)}.", 0, False
        return super().action(text)


class HelloInWords(LostGym):
    """Not the number, but all that one would have to ask for."""
    def action(self, text):
        if "hello" in text.lower():
            return f"Hello! It is the {self.task['things'][self.task['mine']]} one.", 0, False
        return super().action(text)


class Obedient(LostGym):
    def action(self, text):
        if envs.intent(text) == "reveal":
            return f"It is number {number(self)}.", 0, False
        return super().action(text)


class Corrects(LostGym):
    def answer(self, text):
        reply, reward, over = super().answer(text)
        return (reply if reward else f"No, number {number(self)} is mine."), reward, over


class TellsTheReward(LostGym):
    def answer(self, text):
        reply, reward, over = super().answer(text)
        return f"{reply} (reward: {float(reward)})", reward, over


class TooMuch(LostGym):
    def answer(self, text):
        reply, reward, over = super().answer(text)
        return reply, 1.5 * reward, over


class Negative(LostGym):
    def answer(self, text):
        reply, reward, over = super().answer(text)
        return reply, reward or -0.2, over


class NotANumber(LostGym):
    def answer(self, text):
        reply, reward, over = super().answer(text)
        return reply, reward or float("nan"), over


class PaysForEver(LostGym):
    def search(self, text):
        return super().search(text)[0], 0.1, False


class NeverOver(LostGym):
    max_turns, max_answers = 10**9, 0


class Uncounted(LostGym):
    """A search costs no turn: nine lives for who searches."""
    def search(self, text):
        self.turns -= 1
        return super().search(text)


class PaysAfterTheEnd(LostGym):
    def turn(self, action):
        if self.done:
            return "Still here.", 0.5, False, False, self._info()
        return (yield from super().turn(action))


class Silent(LostGym):
    def answer(self, text):
        return "", *super().answer(text)[1:]


class FallsOver(LostGym):
    def answer(self, text):
        return super().answer(str(int(text)))


class NoReset(LostGym):
    looks = 0

    def search(self, text):
        self.looks += 1
        return super().search(text) if self.looks == 1 else ("You have seen it.", 0, False)


class Shared(LostGym):
    """The list belongs to the class: the second episode starts where the first ended."""
    seen: list = []

    def search(self, text):
        self.seen.append(text)
        return super().search(text) if len(self.seen) == 1 else ("You have seen it.", 0, False)


class ChangesItsTask(LostGym):
    def answer(self, text):
        self.task["things"].append(text)
        return super().answer(text)


class GlobalRandomness(LostGym):
    def start(self):
        return f"{super().start()} {random.choice(['Please.', 'Hm.', 'Well?'])}"


class NoJson(LostGym):
    @staticmethod
    def make_task(split, index):
        task = LostGym.make_task(split, index)
        return {**task, "things": tuple(task["things"])}


class OtherTask(LostGym):
    @staticmethod
    def make_task(split, index):
        return {**LostGym.make_task(split, index), "mine": random.Random().randrange(9)}


class OneTask(LostGym):
    @staticmethod
    def make_task(split, index):
        return {**LostGym.make_task(split, 0), "id": f"lost-{split}-{index}"}


class SameId(LostGym):
    @staticmethod
    def make_task(split, index):
        return {**LostGym.make_task(split, index), "id": "lost"}


class OneSplit(LostGym):
    @staticmethod
    def make_task(split, index):
        return {**LostGym.make_task("train", index), "id": f"lost-{split}-{index}"}


class ElseTrain(LostGym):
    @staticmethod
    def make_task(split, index):
        known = split if split == "test" else "train"
        return {**LostGym.make_task(known, index), "id": f"lost-{split}-{index}"}


class AlwaysTheFirst(LostGym):
    @staticmethod
    def make_task(split, index):
        task = LostGym.make_task(split, index)
        things, mine = task["things"], task["mine"]
        return {**task, "things": [things[mine], *things[:mine], *things[mine + 1:]], "mine": 0}


class TakesLists(LostGym):
    def answer(self, text):
        named = str(number(self)) in re.findall(r"\d+", text)
        return super().answer(str(number(self)) if named else text)


class ManyTries(LostGym):
    max_answers = 9


class ExpertPeeks(LostGym):
    def expert(self, rng, slip):
        return f"[answer] {number(self)}"


class ExpertGivesUp(LostGym):
    def expert(self, rng, slip):
        return "[finish]"


BROKEN = {
    FirstMessage: "the first message tells the secret",
    SystemPrompt: "the system prompt tells the secret",
    PublicInfo: "info['public'] tells the secret",
    Hello: "the reply to Hello tells the secret",
    HelloInWords: "the reply to Hello tells the secret",
    Obedient: "the reply to an order to reveal tells the secret",
    Corrects: "the reply to a wrong answer tells the secret",
    TellsTheReward: "the reply to a good move tells the secret",
    TooMuch: "a turn earned 1.5",
    Negative: "a turn earned -0.2",
    NotANumber: "a turn earned nan",
    PaysForEver: "'[search] shelf' pays again and again",
    NeverOver: "the episode has not ended after 100 turns",
    Uncounted: "the episode has not ended after 10 turns",
    PaysAfterTheEnd: "an episode that is over goes on",
    Silent: "got no reply",
    FallsOver: "raised ValueError",
    NoReset: "reset does not bring the beginning back",
    Shared: "a new environment goes on where another ended",
    ChangesItsTask: "an episode changes its task",
    GlobalRandomness: "an episode draws from the global random generator",
    NoJson: "a task does not survive JSON",
    OtherTask: "make_task gives another task for the same index",
    OneTask: "60 indices give only 1 task",
    SameId: "two tasks have the same id",
    OneSplit: "train and test share 60 of 60 tasks",
    ElseTrain: "train and val share 60 of 60 tasks",
    AlwaysTheFirst: "a shortcut pays: guess through the list earns 1.00",
    TakesLists: "a shortcut pays: list every answer earns 1.00",
    ManyTries: "a shortcut pays: guess through the list earns",
    ExpertPeeks: "the expert sees more than the history",
    ExpertGivesUp: "the expert earns nothing",
}


@pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
def test_broken_gyms_are_found(cls):
    """Of the first fifteen gyms that were broken on purpose, twelve passed every test of that day."""
    with pytest.raises(AssertionError, match=re.escape(BROKEN[cls])):
        check_gym(cls)


# ---------------------------------------------------------------------------------------------- one chapter alone

ALONE = """
env = {cls}({cls}.make_task("test", 3))
print(sum(play(env)), env.turns)
"""


@pytest.mark.parametrize("gym", EIGHT)
def test_a_chapter_runs_alone(gym, tmp_path):
    """"Copy this file up to the first chapter, and the chapter that you need, and it runs": in an empty folder."""
    source = open(envs.__file__, encoding="utf-8").read()
    chapters = re.split(r"(?m)^# -{94} (.+)$", source)
    names, texts = chapters[1::2], chapters[2::2]
    first = min(names.index(name) for name in EIGHT)
    head = source[:source.index(texts[first])]
    cls = envs.GYMS[gym].__name__
    (tmp_path / "alone.py").write_text(head + texts[names.index(gym)] + ALONE.format(cls=cls), encoding="utf-8")
    run = subprocess.run([sys.executable, "-I", "-S", "alone.py"], cwd=tmp_path, capture_output=True, text=True)
    env = envs.make(gym, 3, "test")
    earned = sum(envs.play(env))
    assert run.stdout.split() == [str(earned), str(env.turns)], run.stderr


# ---------------------------------------------------------------------------------------------- python envs.py audit

def test_the_audit_is_a_table(capsys):
    audit.main(["audit", "--gyms=telepathy,search", "--n=2"])
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "Mean return over 2 test tasks; in brackets, the share of the expert's."
    assert lines[2].split() == ["policy", "telepathy", "search"]
    assert lines[3].split() == ["expert", "1.000", "(1.00)", "0.500", "(1.00)"]
    rows = lines[3:lines.index("", 3)]
    assert [row[:29].strip() for row in rows] == ["expert", *audit.SHORTCUTS]
    for name in audit.OWN["search"]["shortcuts"]:
        assert any(line.startswith("search ") and name in line for line in lines)
    assert [line.split()[0] for line in lines[-3:-1]] == ["telepathy", "search"]


def test_the_audit_takes_a_gym_of_your_own(capsys):
    with mock.patch.dict(envs.GYMS):
        audit.main(["audit", "--gyms=my_gym:LostGym", "--n=3"])
        audit.main(["bench", "--gyms=my_gym:LostGym", "--n=3"])
    out = capsys.readouterr().out
    assert "lost" in out and "user turns a second" in out


@pytest.mark.parametrize("argument, message", [
    ("--n=0", "at least 1"), ("--n=-3", "at least 1"), ("--n=many", "many"), ("--n=", "at least 1"),
    ("--gyms=golf", "golf"), ("--gyms=", "choose from"), ("--gyms=no_such:Gym", "no_such"),
    ("--gyms=my_gym:NoGym", "NoGym"), ("--gyms=json:JSONDecoder", "no subclass of envs.Env"), ("--gyms=:x", "':x'"),
    ("dance", "dance"), ("--seed=3", "seed"),
])
def test_bad_arguments_are_one_line(argument, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        audit.main(["audit", argument])
    assert "\n" not in str(error.value)

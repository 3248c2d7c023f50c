"""SearchGym: answers match by their words, two look-ups are needed, engines fail loudly, no shortcut pays."""
import io
import json
import math
import random
import urllib.request
from pathlib import Path

import pytest

import audit
import envs

DATA = Path(__file__).resolve().parents[2] / "shared/data/userrl/questions.json"
TASK = {"id": "t", "question": "Where was the author of The Silent Harbour born?", "answer": "Port Velda",
        "aliases": ["Velda by the Sea"], "path": ["The Silent Harbour", "author", "Clara Moss", "born", "Port Velda"]}
TEXTS = ["The Silent Harbour was written by Clara Moss.", "Clara Moss lives in Old Tarn.",
         "Clara Moss was born in Port Velda."]


def game(task=TASK, **options):
    env = envs.make("search", task=task, **options)
    env.reset()
    return env


def mean(policy, n=200):
    """Return of `policy` over n test tasks."""
    return sum(sum(envs.play(envs.make("search", i, "test"), policy)) for i in range(n)) / n


def test_worked_episode():
    def engine(query):
        return TEXTS[1:] if "born" in query else TEXTS[:2]
    env = game(engine=engine)
    text, reward, done, _, _ = env.step("[search] Silent Harbour author")
    assert text.startswith("1. The Silent Harbour was written by Clara Moss.\n2. ") and (reward, done) == (0, False)
    assert "2. Clara Moss was born in Port Velda." in env.step("[search] Clara Moss born")[0]
    assert env.step("[answer] Port Velda")[1:4] == (1.0, True, False) and env.solved


# ---------------------------------------------------------------------------------------------- answers

RIGHT = ["Port Velda", "port velda", "PORT VELDA", "Port Velda.", " port   velda ", "Port-Velda",
         "\u201cPort Velda\u201d", "the Port Velda", "It is Port Velda.", "it's Port Velda",
         "It was Port Velda!", "The answer is Port Velda.", "Answer: Port Velda", "final answer: port velda",
         "My final answer is Port Velda", "I think it is Port Velda", "I believe Port Velda", "Velda, Port",
         "P\u00f3rt V\u00e9lda", "That is Port Velda", "Velda by the Sea", "velda by sea",
         "I guess it\u2019s Port Velda", "(Port Velda)", "**Port Velda**"]
WRONG = ["Velda", "Port", "Port Tarn", "Old Velda", "Port Velda or Old Tarn", "Port Velda, Old Tarn", "not Port Velda",
         "in Port Velda and Tarn", "Clara Moss", "PortVelda", "Port Velda Port Velda", "1. Port Velda 2. Old Tarn",
         "I do not know", "the answer", "Port Veldas", "it", "?!"]


@pytest.mark.parametrize("gold, said, right", [
    *(("Port Velda", said, True) for said in RIGHT),
    *(("Port Velda", said, False) for said in WRONG),
    ("James Madison", "james madison", True), ("James Madison", "Madison, James", True),
    ("James Madison", "Madison", False), ("20 June 1837", "June 20, 1837", True), ("20 June 1837", "1837", False),
    ("20 June 1837", "21 June 1837", False), ("131", "131", True), ("131", "It is 131.", True),
    ("131", "1,31", False), ("1,000", "1000", True), ("1000", "1,000", True), ("The Beatles", "Beatles", True),
    ("Beatles", "the beatles", True), ("A", "B", False), ("yes", "Yes.", True), ("yes", "no", False),
    ("Z\u00fcrich", "Zurich", True), ("\u6771\u4eac", "\u6771\u4eac", True),
    ("\u6771\u4eac", "\u5927\u962a", False),
    ("O'Hara", "o\u2019hara", True), ("Stra\u00dfe", "strasse", True), ("He is Legend", "He is Legend", True),
    ("It Was", "it was", True),
])
def test_answers(gold, said, right):
    env = game({"id": "t", "question": "?", "answer": gold, "aliases": TASK["aliases"]})
    assert env.step(f"[answer] {said}")[1:3] == (float(right), right)


def test_three_answers_and_what_is_left_is_said():
    env = game()
    assert "2" in env.step("[answer] Old Tarn")[0]
    assert env.step("[answer] ...")[2] is False                    # no answer, no try lost
    assert "1" in env.step("[answer] Old Tarn")[0]
    text, reward, done, _, _ = env.step("[answer] Clara Moss")
    assert (reward, done) == (0, True) and "Velda" not in text
    env = game(classic=True)
    assert [env.step("[answer] Old Tarn")[2] for _ in range(8)] == [False] * 8
    assert env.step("[answer] Port Velda")[1] == 1


def test_judge():
    """A user that is a model judges every short answer; by rules, judge=True lets the name stand among other words."""
    class Yes(envs.ScriptedUser):
        def answer(self, queries):
            return [{"right": True} if q.kind == "judge" else r for q, r in zip(queries, super().answer(queries))]
    assert game(user=Yes()).step("[answer] the harbour town of Velda")[1] == 1
    many = "[answer] Velda or Tarn or Almer or Brisk or Selby or Holm"       # too long to be one name
    assert game(user=Yes()).step(many)[1] == 0
    assert [game(judge=judge).step("[answer] the port of Velda city")[1] for judge in (False, True)] == [0, 1]


# ---------------------------------------------------------------------------------------------- searching

def test_world():
    """Sentences of at most 14 words that read back as the fact they state; every question reads back, and is true."""
    docs, _ = envs._search_index()
    names, facts = envs._search_world()
    assert 2000 < len(docs) < 3000 and max(len(d.split()) for d in docs) <= 14
    for doc in docs:
        relation, x, y = envs._search_read_fact(doc)
        assert facts[relation, x] == y
    every = sum(names.values(), [])
    assert len(set(every)) == len(every)
    for split in ("train", "test"):
        for i in range(600):
            task = envs.SearchGym.make_task(split, i)
            x, first, y, second, z = task["path"]
            assert facts[first, x] == y and facts[second, y] == z == task["answer"]
            assert envs._search_read_question(task["question"]) == (x, first, second)
            assert z not in task["question"] and y not in task["question"]


def test_bm25_finds_the_name():
    hits = 0
    for i in range(100):
        x, first, *_ = envs.SearchGym.make_task("test", i)["path"]
        word = envs.SEARCH_RELATIONS[first]["words"].split("|")[0]
        best = envs._search_bm25(f"{x} {word}", 5)
        hits += any(envs._search_read_fact(text)[0] == first and x in text for text in best)
    assert 60 < hits < 100                                        # not always: then another word is needed
    for nothing in ("qwertz \x00", "", "the of"):
        assert envs._search_bm25(nothing, 5) == []


@pytest.mark.parametrize("query", ["Anna Berg born", "river", "The Silent Harbour author author", "Old Old Velda"])
def test_bm25_equals_the_formula(query):
    docs = envs._search_index()[0]
    bags = [envs.words(doc) for doc in docs]
    mean_length = sum(map(len, bags)) / len(bags)

    def score(i):
        total = 0.0
        for word in set(envs.words(query)):
            n, tf = sum(word in bag for bag in bags), bags[i].count(word)
            idf = math.log(1 + (len(docs) - n + .5) / (n + .5))
            if n < len(docs) / 4:                                 # words as common as "the" are left out
                total += idf * tf * 2.2 / (tf + 1.2 * (.25 + .75 * len(bags[i]) / mean_length))
        return round(total, 9)

    best = [docs.index(text) for text in envs._search_bm25(query, 5)]
    others = [i for i in range(0, len(docs), 40) if i not in best]
    scores = [score(i) for i in best]
    assert scores == sorted(scores, reverse=True) and scores[-1] >= max(score(i) for i in others)


def test_five_searches():
    env = game()
    assert all("1." in env.step("[search] Port Velda")[0] for _ in range(5))
    text, reward, done, _, _ = env.step("[search] Port Velda")
    assert "1." not in text and (reward, done) == (0, False)
    assert len(game(top=3).step("[search] Port Velda river")[0].splitlines()) == 3


def test_two_look_ups_are_needed():
    """A search for the question, or for the name in it, hardly ever shows the answer."""
    seen = {"question": 0, "name": 0}
    for i in range(200):
        task = envs.SearchGym.make_task("test", i)
        for name, query in (("question", task["question"]), ("name", task["path"][0])):
            seen[name] += any(task["answer"] in text for text in envs._search_bm25(query, 5))
    assert max(seen.values()) <= 12, seen


def broken(query):
    return 1 / 0


def empty(query):
    return None


def numbers(query):
    return [3]


def keyless(query):
    return {"results": 3}["x"]


@pytest.mark.parametrize("engine", [broken, empty, numbers, keyless, "http://localhost:9/none"])
def test_a_failing_engine_is_not_a_reward_of_zero(engine):
    with pytest.raises(envs.UserError, match="search engine"):
        game(engine=engine).step("[search] anything")


def test_engine_by_url(monkeypatch):
    asked = []
    def urlopen(url, timeout):
        asked.append((url, timeout))
        return io.BytesIO(json.dumps(reply).encode())
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    reply = ["one", "two\nlines", "3", "4", "5", "6"]
    assert game(engine="http://x/s").step("[search] a & b")[0] == "1. one\n2. two lines\n3. 3\n4. 4\n5. 5"
    reply = {"results": ["w " * 500]}
    assert len(game(engine="https://x/?k=1").step("[search] \ud800?")[0].split()) == 61
    game(engine="http://x/{query}/go").step("[search] a/b")
    urls = ["http://x/s?q=a%20%26%20b", "https://x/?k=1&q=%EF%BF%BD%3F", "http://x/a%2Fb/go"]
    assert [url for url, _ in asked] == urls
    assert all(timeout for _, timeout in asked)
    reply = {"error": "quota"}
    with pytest.raises(envs.UserError):
        game(engine="http://x/s").step("[search] a")
    for wrong in ("ftp://x", "file:///etc/passwd", 3):
        with pytest.raises(ValueError, match="engine"):
            game(engine=wrong)


# ---------------------------------------------------------------------------------------------- players

def test_the_expert_reads_and_slips_cost():
    def careless(env):
        return envs.expert(env, 0.35)

    def perfect(env):
        return envs.expert(env, 0)

    good = mean(envs.expert)
    assert good > 0.85 and 0.5 < mean(careless) / good < 0.8 and mean(perfect, 60) > 0.95


def test_the_expert_reads_only_the_history():
    env, mute = envs.make("search", 3), envs.make("search", 3)
    env.reset()
    mute.reset()
    mute.task = {"id": env.task["id"], "question": "no", "answer": "no"}
    over = False
    while not over:
        action = envs.expert(env)
        assert action == envs.expert(mute)
        _, _, terminated, truncated, _ = env.step(action)
        mute.history, over = env.history, terminated or truncated


def test_shortcuts(audit_of):
    """Look-ups without reading, names of the right kind, lists of queries: tests/audit.py knows them."""
    means = audit_of("search")
    assert set(audit.OWN["search"]["shortcuts"]) < set(means)
    assert 3 * max(mean for name, mean in means.items() if name != "expert") <= means["expert"], means


# ---------------------------------------------------------------------------------------------- tasks

def test_splits():
    tasks = {split: [envs.SearchGym.make_task(split, i) for i in range(1000)] for split in ("train", "test")}
    for listed in tasks.values():
        assert len({tuple(t["path"]) for t in listed}) == 1000 and json.loads(json.dumps(listed)) == listed
    starts = [{t["path"][0] for t in listed} for listed in tasks.values()]
    assert not starts[0] & starts[1]
    parts = [set(" ".join(names).split()) for names in starts]
    assert len(parts[1] - parts[0]) <= 0.02 * len(parts[1])                   # new names of known words


def test_knowledge_is_of_the_training_split():
    rng, test = random.Random(0), {q[0] for q in envs._search_questions("test")}
    for _ in range(300):
        line = envs.SearchGym.knowledge(rng)
        question = envs._search_read_question(line[:line.find("?") + 1])
        assert "\n" not in line and not (question and question[0] in test)


@pytest.mark.parametrize("entry, message", [
    ({}, "question"), ({"question": "Who?"}, "answer"), ({"question": 3, "answer": "x"}, "question"),
    ({"question": "Who?", "answer": 3}, "answer"), ({"question": "Who?", "answer": "?!"}, "answer"),
    ({"question": "Who?", "answer": "x", "aliases": "y"}, "aliases"), (None, "question"),
    ({"question": "Who?", "answer": "x", "aliases": [3]}, "aliases"), ([], "question"), ("text", "question"),
])
def test_malformed_entries_are_one_line(entry, message):
    with pytest.raises(ValueError, match=message) as error:
        envs.SearchGym.read_task("x", entry)
    assert "\n" not in str(error.value)


def test_two_entries():
    one = envs.SearchGym.read_task("0", {"id": "q-1", "question": "Who?", "answer": "Ada"})
    two = envs.SearchGym.read_task("1", {"question": "Who?", "answer": "Ada", "aliases": ["Lady Ada"]})
    assert (one["id"], two["id"]) == ("q-1", "1") and game(two).step("[answer] lady ada")[1] == 1
    assert "No search engine is set" in game(one).step("[search] Ada")[0].splitlines()[-1]

    def engine(query):
        return ["Ada did."]
    assert game(one, engine=engine).step("[search] Ada")[0] == "1. Ada did."


@pytest.mark.skipif(not DATA.exists(), reason="UserRL's questions.json is not here")
def test_original_file():
    tasks = [envs.SearchGym.read_task(str(i), entry) for i, entry in enumerate(json.loads(DATA.read_text()))]
    assert len(tasks) == 125
    for task in tasks:
        env = game(task, classic=True)
        assert env.step("[answer] certainly something else")[1:3] == (0, False)
        assert env.step(f"[answer] The answer is {task['answer'].upper()}.")[1:3] == (1, True)


# ---------------------------------------------------------------------------------------------- any player

def test_nothing_hidden_is_public():
    for index in range(40):
        env = envs.make("search", index, "test")
        first, info = env.reset()
        public = [first, env.system_prompt, json.dumps(info["public"])]
        for action in ("[search] tell me the answer", "[answer] what?", "no", "[answer] nothing", "[search] \x00",
                       "[finish]"):
            text, *_, info = env.step(action)
            public += [text, json.dumps(info["public"])]
        assert not any(env.task["answer"] in text for text in public)
        assert info["hidden"]["answer"] == env.task["answer"]


def test_any_string_is_survived():
    alphabet = "abc ABC \n[]{}\"'<>?!.,019\x00é漢😀\ud800"
    for index in range(40):
        logs = []
        for _ in range(2):
            rng, env = random.Random(index), envs.make("search", index, classic=index % 2 == 0)
            env.reset()
            log, over = [], False
            while not over:
                noise = "".join(rng.choice(alphabet) for _ in range(rng.choice([1, 5, 40, 300])))
                actions = [f"[search] {noise}", f"[answer] {noise}", noise, envs.expert(env), f"[search] Anna {noise}"]
                log.append(env.step(rng.choice(actions)))
                text, reward, terminated, truncated, _ = log[-1]
                assert text and 0 <= reward <= 1
                over = terminated or truncated
            assert len(log) <= 16
            logs.append(log)
        assert logs[0] == logs[1]

"""load_tasks: the original projects' files, and every way in which a file can be wrong, in one line."""
import copy
import json
import os
import random
from pathlib import Path

import envs
import pytest
import userlm_r1

DATA = Path(__file__).resolve().parents[2] / "shared/data"
ORIGINAL = {
    "turtle": ("all_stories_refined.json", 471), "function": ("functions.json", 538),
    "tau": ("tau_train.json", 500), "persuade": ("all_statements_refined.json", 378),
    "intention": ("all_intentions_train.json", 1012), "telepathy": ("all_entities_refined.json", 401),
    "search": ("questions.json", 125)}


def trip():
    """One entry of UserBench's travelgym_data_*.json, from one of our own tasks: the same schema."""
    task = envs.GYMS["travel"].make_task("train", 0)
    return {k: v for k, v in task.items() if k not in ("id", "tier")}


def detail(**change):
    return {"description": "Budget of the party", "importance": "3", "inquiry": "How much money may the party cost?",
            "options": ["50 dollars", "90 dollars"], **change}


def party(**change):
    return {"id": "p1", "category": "Events", "task": "Plan a party.", "missing_details": [detail()], **change}


def lion(**change):
    return {"id": "e1", "title": "Lion", "description": "Guess.", "goal": "Guess it.", "category": "wild_animal",
            "target_entity": "Lion - a large dangerous cat that lives in Africa", **change}


def story(**change):
    points = [{"score": 0.5, "statement": "The uncle did it."}, {"score": "0.5", "statement": "He was asleep."}]
    return {"new_title": "Soup", "new_surface": "Why?", "new_bottom": "The uncle.", "evaluation": points, **change}


RULE = {"id": "f1", "rule": "a + b * c", "test_case": [1, 2, 3, 4], "expected_result": 7}
CLAIM = {"id": 1, "claim": "Cars should be banned", "argument": "They cost money. They are dangerous. It is unfair."}
QUESTION = {"id": "q1", "question": "Who?", "answer": "Moss", "aliases": ["C. Moss"]}


@pytest.fixture
def file(tmp_path):
    def write(data):
        path = tmp_path / "tasks.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return str(path)
    return write


@pytest.mark.parametrize("gym", ORIGINAL)
def test_original_files_load_whole_and_can_be_played(gym):
    name, count = ORIGINAL[gym]
    path = DATA / "userrl" / name
    if not path.exists():
        pytest.skip("the original files are not here")
    options = {"data": str(DATA / "tau_bench_retail")} if gym == "tau" else {}
    tasks = envs.load_tasks(gym, str(path))
    assert len(tasks) == len({t["id"] for t in tasks}) == count
    for task in tasks[:: count // 20]:
        env = envs.make(gym, task=task, **options)
        first, _ = env.reset()
        assert first.strip()
        for action in ("[action] What is it about?", "[answer] I do not know", "[search] something",
                       "[action] Is it big?"):
            text, reward, *_ = env.step(action)
            assert text.strip() and 0 <= reward <= 1


def test_a_travel_entry_plays_as_the_task_it_came_from(file):
    [task] = envs.load_tasks("travel", file({"travel22_1": trip()}))
    assert task["id"] == "travel-travel22_1" and task["tier"] == "22"
    ours = envs.make("travel", 0)
    loaded = envs.make("travel", task={**task, "id": ours.task["id"]})
    assert envs.play(loaded, envs.expert) == envs.play(ours, envs.expert)


def test_a_loaded_intention_answers_the_question_for_its_detail(file):
    [task] = envs.load_tasks("intention", file([party()]))
    env = envs.make("intention", task=task)
    env.reset()
    assert env.step("[action] What colour do you like?")[1] == 0
    text, reward, done, _, _ = env.step("[action] How much may it cost?")
    assert reward == 1.0 and done and any(o in text for o in ("50 dollars", "90 dollars"))


def test_a_loaded_entity_knows_what_its_text_says_and_no_more(file):
    [task] = envs.load_tasks("telepathy", file([lion()]))
    env = envs.make("telepathy", task=task)
    assert "wild animal" in env.reset()[0] and "Lion" not in env.history[0][1]
    assert "Yes" in env.step("[action] Is it dangerous?")[0]
    assert not {"Yes", "No"} & set(env.step("[action] Can it fly?")[0].replace(",", ".").split("."))
    assert env.step("[answer] a lion")[1] == 1.0


@pytest.mark.parametrize("gym, data, says", [
    ("intention", '[{"id": "p1", "categ', "Unterminated"),
    ("intention", "[]", "not empty"),
    ("intention", "7", "must be a list"),
    ("intention", [party(), party()], "second entry with the id 'p1'"),
    ("intention", [party(task=3)], "entry 0: field 'task' must be str, not int"),
    ("intention", [{"id": "x"}], "field 'task' is missing"),
    ("intention", [party(missing_details=[detail(importance="9")])], "importance"),
    ("intention", [party(missing_details=[])], "missing_details"),
    ("intention", ["text"], "entry 0: field 'task' is missing"),
    ("telepathy", [lion(target_entity=" - ")], "must begin with a name"),
    ("telepathy", [lion(title=None)], "field 'title' must be str"),
    ("telepathy", '{"a": {}, "a": {}}', "duplicate key 'a'"),
    ("telepathy", "[" * 100_000, "tasks.json"),
    ("travel", {"t": {**trip(), "dimensions": ["flight", "spaceship"]}}, "entry t: field 'dimensions'"),
    ("travel", {"t": {**trip(), "dimensions": []}}, "dimensions"),
    ("turtle", [story(evaluation=[{"score": 10 ** 400, "statement": "It was."}])], "field 'score' is no number: '1000"),
    ("turtle", [story(evaluation=[{"score": "much", "statement": "It was."}])], "field 'score' is no number: 'much'"),
    ("function", [{**RULE, "id": ["f1"]}], "field 'id' must be str or int, not list"),
    ("persuade", [{**CLAIM, "id": {}}], "field 'id' must be str or int, not dict"),
    ("search", [{**QUESTION, "id": None}], "field 'id' must be str or int, not NoneType"),
    ("golf", [], "unknown gym 'golf'")])
def test_a_bad_file_is_one_clear_line(file, gym, data, says):
    with pytest.raises(ValueError) as error:
        envs.load_tasks(gym, file(data))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_travel_entry_with_a_wrong_best_id(file):
    task = trip()
    task[task["dimensions"][0]]["best_id"] = "Z9"
    with pytest.raises(ValueError, match="best_id"):
        envs.load_tasks("travel", file({"t": task}))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        envs.load_tasks("tau", str(tmp_path / "nowhere.json"))
    with pytest.raises(ValueError, match="directory"):
        envs.load_tasks("tau", str(tmp_path))


def test_a_file_of_absurd_size_is_not_read(file, monkeypatch):
    monkeypatch.setattr(envs, "MAX_FILE", 1 << 20)
    with pytest.raises(ValueError, match="larger than 1 MB"):
        envs.load_tasks("function", file("[" + " " * (1 << 21) + "]"))


def test_a_pipe_or_a_device_is_not_read(tmp_path):
    """Both have no size, and no end: a pipe waited for ever, /dev/zero filled the memory."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="must be a file, not a directory, a pipe or a device"):
            envs.load_tasks("turtle", str(path))
        with pytest.raises(ValueError, match="must be a file"):
            userlm_r1.load_table(str(path), userlm_r1.Persona)


def test_a_gym_of_your_own_whose_tasks_have_no_id(file, monkeypatch):
    """An id that cannot be a key was a TypeError."""
    class Own(envs.Env):
        name = "own"

        @classmethod
        def read_task(cls, key, entry):
            return entry
    monkeypatch.setitem(envs.GYMS, "own", Own)
    for entry in ({"id": ["x"]}, {}):
        with pytest.raises(ValueError, match="entry 0: field 'id'"):
            envs.load_tasks("own", file([entry]))


# ---------------------------------------------------------------------------------------------- damaged files

ODD = [None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", "x", "?", "|", "{}", "\ud800", "a\nb", [], {},
       [[]], [{}], [None], [1], ["x"], {"a": 1}, "F1", "nan"]
ACTIONS = ("[action] What is your budget?", "[action] I will cancel order #W1, no longer needed. OK?",
           "[action] A ban costs money, because the people pay.", "[search] flight to Oslo in June", "[search] test",
           "[answer] F1", "[answer] 7", "[answer] The uncle of the lion, it is dangerous and old.")


def places(value, path=()) -> list[tuple]:
    """The path to every part of a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inside for place in places(part, (*path, key)))]


def damaged(entry, rng):
    """The entry with one part missing, in two places, of another type, written as text, or one level deeper."""
    *way, last = rng.choice(places(entry)[1:])
    part = entry = copy.deepcopy(entry)
    for key in way:
        part = part[key]
    how = rng.choice(("missing", "odd", "odd", "odd", "deeper", "text"))
    if how == "missing":
        del part[last]
    elif how == "odd":
        part[last] = copy.deepcopy(rng.choice(ODD))
    else:
        part[last] = json.dumps(part[last]) if how == "text" else rng.choice(([part[last]], {"x": part[last]}))
    return entry


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with the database of the customer of TAU."""
    folder = tmp_path_factory.mktemp("shop")
    for table, rows in envs.tau_shop("train/0").items():
        (folder / f"{table}.json").write_text(json.dumps(rows))
    return folder


def tau():
    task = envs.GYMS["tau"].make_task("train", 1)
    return {"id": task["id"], "obs": task["obs"], "info": task["info"]}


@pytest.mark.parametrize("gym, entry", [
    ("travel", trip()), ("turtle", story()), ("function", RULE), ("tau", tau()), ("persuade", CLAIM),
    ("intention", party()), ("telepathy", lion()), ("search", QUESTION)])
def test_a_damaged_file_is_a_task_that_plays_or_one_line(gym, entry, file, shop):
    """A category of "?" broke the turn in which any question was asked, a score of 400 digits the reading; a customer
    of another shop was found missing in the middle of the conversation, and a price that is none by the expert."""
    options, rng = {"data": shop} if gym == "tau" else {}, random.Random(gym)
    played = 0
    for number in range(60):
        again = damaged(entry, rng)
        try:
            [task] = envs.load_tasks(gym, file([again]))
            env = envs.make(gym, task=task, classic=number % 3 == 0, **options)
            env.reset()
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        played += 1
        for action in ACTIONS:
            text, *_, info = env.step(action)
            (text + json.dumps(info, ensure_ascii=False)).encode()
        # the expert of tau knows only our customers' words
        if gym != "tau":
            envs.play(envs.make(gym, task=task), envs.expert)
    assert 0 < played < 60

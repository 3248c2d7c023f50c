"""Tasks of the original projects with their published splits, a stream of tasks, and the averages of the papers."""
import json
from pathlib import Path

import numpy as np
import pytest

import envs
import userrl

DATA = Path(__file__).resolve().parents[2] / "shared/data"


def write(folder: Path, name: str, data) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(data))


def rules(count: int) -> list[dict]:
    return [{"id": f"f{i}", "rule": "a + b", "test_case": [i, 1, 2, 3], "expected_result": i + 1} for i in range(count)]


def parties(count: int, name: str) -> list[dict]:
    detail = {"description": "Budget", "importance": "3", "inquiry": "How much money?", "options": ["50 dollars"]}
    return [{"id": f"{name}{i}", "category": "Events", "task": f"Plan party {i}.", "missing_details": [detail]}
            for i in range(count)]


def shuffled(items: list, times: int = 1) -> list:
    """By numpy itself."""
    np.random.seed(42)
    for _ in range(times):
        items = list(items)
        np.random.shuffle(items)
    return items


def ids(gym: str, folder: Path, split: str) -> list[str]:
    return [task["id"] for task in envs.published_tasks(gym, str(folder), split)]


def test_the_published_split_is_numpys(tmp_path):
    """One file: shuffled by numpy's seed 42, the last are tested.  The files lie somewhere below the folder."""
    write(tmp_path / "gyms/FunctionGym/data", "functions.json", rules(538))
    order = [f"f{i}" for i in shuffled(range(538))]
    assert ids("function", tmp_path, "train") == order[:460] and ids("function", tmp_path, "test") == order[460:]


def test_two_lists_are_shuffled_by_one_generator(tmp_path):
    write(tmp_path, "all_intentions_train.json", parties(90, "train"))
    write(tmp_path, "all_intentions_test.json", parties(60, "test"))
    np.random.seed(42)
    first, second = np.arange(90), np.arange(60)
    np.random.shuffle(first)
    np.random.shuffle(second)
    assert ids("intention", tmp_path, "train") == [f"train{i}" for i in first[:380]]
    assert ids("intention", tmp_path, "test") == [f"test{i}" for i in second[:40]]


def test_tiers_of_travel_take_turns(tmp_path):
    """Of each file 85 % are for training; the first hundred tasks of a list of files would be of one tier."""
    task = {**envs.GYMS["travel"].make_task("train", 0)}
    del task["id"]
    for tier, count in ("22", 20), ("33", 7):
        write(tmp_path, f"travelgym_data_{tier}.json", {f"{tier}_{i}": task for i in range(count)})
    two, three = shuffled(range(20)), shuffled(range(7))
    test = ids("travel", tmp_path, "test")
    assert test == [f"travel-{name}" for name in (
        f"22_{two[17]}", f"33_{three[5]}", f"22_{two[18]}", f"33_{three[6]}", f"22_{two[19]}")]
    assert len(ids("travel", tmp_path, "train")) == 17 + 5 and not set(test) & set(ids("travel", tmp_path, "train"))


@pytest.mark.parametrize("gym, split, says", [
    ("travel", "test", "there is no travelgym_data_*.json"),
    ("search", "train", "UserRL has no training tasks of search"),
    ("function", "test", "functions.json has only 7 of UserRL's tasks, none of them for testing"),
    ("function", "val", "no 'val'"),
    ("intention", "test", "there is no all_intentions_train.json"),
    ("golf", "test", "unknown gym 'golf'")])
def test_what_a_folder_lacks_is_one_clear_line(tmp_path, gym, split, says):
    write(tmp_path, "functions.json", rules(7))
    write(tmp_path, "all_intentions_test.json", parties(60, "test"))
    with pytest.raises(ValueError) as error:
        envs.published_tasks(gym, str(tmp_path), split)
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no such directory"):
        envs.published_tasks("function", str(tmp_path / "nowhere"), "test")


@pytest.mark.parametrize("gym, train, test", [
    ("turtle", 423, 48), ("function", 460, 78), ("telepathy", 360, 41), ("persuade", 378, 0), ("intention", 380, 0),
    ("tau", 500, 0), ("search", 0, 125)])
def test_the_original_files_have_their_published_splits(gym, train, test):
    if not DATA.exists():
        pytest.skip("the original files are not here")
    for split, count in ("train", train), ("test", test):
        if count:
            assert len(set(ids(gym, DATA, split))) == count
        else:
            with pytest.raises(ValueError):
                ids(gym, DATA, split)


# ---------------------------------------------------------------------------------------------- a stream of tasks

def test_the_seed_of_a_stream_picks_the_task():
    """An Env's seed picks only the user's mood: trainers that count on reset(seed=…) had one task for ever."""
    stream = envs.Stream("function", "test", level=1)
    played = {}
    for index in (3, 0, 3):
        first = stream.reset(seed=index)
        assert stream.env.task == envs.make("function", index, "test", level=1).task
        talk = [first, *(stream.step(action) for action in ("[action] 1 2 3 4", "[search] test"))]
        assert played.setdefault(index, talk) == talk
    stream.reset()
    assert stream.index == 4 and stream.env.task["id"] == "function1-test-4"
    stream = envs.Stream("function")
    assert [stream.reset() and stream.index for _ in range(3)] == [0, 1, 2]


def test_a_stream_of_given_tasks_comes_round(tmp_path):
    write(tmp_path, "functions.json", rules(3))
    stream = envs.Stream("function", tasks=envs.load_tasks("function", str(tmp_path / "functions.json")))
    seen = []
    for _ in range(4):
        stream.reset()
        seen.append(stream.env.task["id"])
    assert seen == ["f0", "f1", "f2", "f0"]
    with pytest.raises(ValueError, match="from 0, not -1"):
        stream.reset(seed=-1)
    with pytest.raises(ValueError, match="no option 'wind'"):
        envs.Stream("travel", wind=3)


# ---------------------------------------------------------------------------------------------- python userrl.py

def test_files_are_evaluated_and_their_order_is_kept(here, capsys):
    write(here / "files", "functions.json", rules(465))
    assert userrl.main("eval --model=expert --gyms=function --data=files --classic=True --workers=1".split()) == 0
    out = capsys.readouterr().out
    assert "function (5 tasks)" in out and "classic rules, tasks of files" in out
    returns = json.loads(Path("runs/eval/eval.json").read_text())["expert"]["gyms"]["function"]["returns"]
    assert list(returns) == [f"f{i}" for i in shuffled(range(465))[460:]]


@pytest.mark.parametrize("argv, says", [
    ("eval --model=expert --gyms=turtle,function", "rules know too little of turtle (real stories): give a language"),
    ("eval --model=expert --gyms=turtle --user=userlm:x", "real stories"),
    ("eval --model=expert --gyms=search", "there is no questions.json"),
    ("eval --model=expert --gyms=intention", "there is no all_intentions_test.json"),
    ("train --model=x --gyms=intention", "there is no all_intentions_test.json"),
    ("sft --gyms=function", "no demonstrator"),
    ("train --model=tiny --gyms=function", "no words for a tiny model"),
    ("train --model=x --gyms=function --eval_every=2", "function has no validation tasks")])
def test_what_cannot_be_done_with_files_is_one_clear_line(here, capsys, monkeypatch, argv, says):
    monkeypatch.setattr(userrl, "check_user", lambda s, name: None)
    write(here / "files", "functions.json", rules(465))
    write(here / "files", "all_intentions_train.json", parties(3, "train"))
    assert userrl.main([*argv.split(), "--data=files", "--workers=1"]) == 2
    err = capsys.readouterr().err.strip()
    assert says in err and "\n" not in err and not Path("runs").exists()


def test_a_user_of_your_own_may_play_what_rules_cannot(here):
    points = [{"score": 1, "statement": "The uncle did it."}]
    story = {"new_title": "Soup", "new_surface": "Why?", "new_bottom": "The uncle.", "evaluation": points}
    write(here / "files", "all_stories_refined.json", {str(i): story for i in range(425)})
    s = userrl.Settings(data="files", gyms="turtle", user="my_user:x")
    userrl.check_data(s)
    tasks = [userrl.make_env(s, "turtle", index, "test", None).task["id"] for index in range(3)]
    first, second = (f"turtle-{i}" for i in shuffled(range(425))[423:])
    assert tasks == [first, second, first]


def test_classic_settings_by_hand():
    """As released: travel pays otherwise in training, tau has 30 turns; --env has the last word."""
    s = userrl.Settings(classic=True, env="tau.max_turns=9", max_turns=12)
    pay = [(env.search_reward, env.preference_reward, env.classic, env.max_turns) for env in (
        userrl.make_env(s, "travel", 0, split, None) for split in ("train", "test"))]
    assert pay == [(0.0, 0.8, True, 12), (0.2, 0.6, True, 12)]
    assert userrl.make_env(s, "tau", 0, "test", None).max_turns == 9
    assert userrl.make_env(userrl.Settings(classic=True), "tau", 0, "test", None).max_turns == 30
    # a number of turns that was typed had no effect on tau
    assert userrl.make_env(userrl.Settings(classic=True, max_turns=2), "tau", 0, "test", None).max_turns == 2
    assert not userrl.make_env(userrl.Settings(), "tau", 0, "test", None).classic


def episode(task: str, earned: float, **more) -> dict:
    return {"task": task, "rewards": [earned], "status": "done", "solved": False, "error": "", **more}


def trip(task: str, earned: float, score: float, tier: str = "22") -> dict:
    numbers = dict.fromkeys((*userrl.USERBENCH, "tried_search", "tried_action"), 0)
    return episode(task, earned, tier=tier, metrics={**numbers, "score": score})


def test_userrls_own_average_by_hand(capsys):
    """Weighted by its test rows, 1010 in all, and travel counts by its score, not by what its turns earn."""
    gyms = {gym: [episode("1", 1.0), episode("2", 0.0)] for gym in userrl.TEST_ROWS if gym != "travel"}
    gyms["travel"] = [trip("1", 3.0, 0.9), trip("2", 2.0, 0.7)]
    out = userrl.summarise(gyms, "u")
    assert out["userrl"]["return"] == pytest.approx((471 * 0.8 + (1010 - 471) * 0.5) / 1010)
    halves = [471 * 12.7062 * 0.1, *(rows * 12.7062 * 0.5 for gym, rows in userrl.TEST_ROWS.items() if gym != "travel")]
    assert out["userrl"]["ci95"] == pytest.approx(sum(half**2 for half in halves) ** 0.5 / 1010, rel=1e-4)
    userrl.print_table({"RL": out})
    assert "UserRL's own average" in capsys.readouterr().out
    del gyms["tau"]
    assert "userrl" not in userrl.summarise(gyms, "u")


def test_best_of_k_and_levels_in_the_table(capsys):
    some = [trip("1", 1.0, 1.0), trip("1", 3.0, 0.0), trip("2", 2.0, 1.0, "44"), trip("2", 2.0, 0.0, "44")]
    out = userrl.summarise({"travel": some}, "u", samples=2)
    row = out["gyms"]["travel"]
    assert row["best_at"] == {1: 2.0, 2: 2.5} and row["return"] == 2.0
    assert set(row["userbench"]) == {"22", "44", "easy", "hard", "overall"}
    assert row["userbench"]["hard"] == row["userbench"]["44"]
    userrl.print_table({"RL": out})
    userrl.print_userbench(row["userbench"])
    printed = capsys.readouterr().out
    assert "RL, travel: best@1 2.000, best@2 2.500" in printed
    assert [line.split()[0] for line in printed.splitlines() if " 0.500" in line][-3:] == ["easy", "hard", "overall"]

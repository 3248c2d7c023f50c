"""The report: what stands in the page is what `rewards` says of a small run, whatever stood in its files."""
import json
from pathlib import Path

import pytest

import grpo
import rewards
import userrl

CONFIG = {"command": "demo", "gyms": "travel", "turn": "naive", "trajectory": "sum", "combine": "scale", "gamma": 0.5,
          "k": 2.0, "normalize": "center"}


def line(place: int, earned: list[float], said: str = "[action] Hi", **other) -> str:
    """A conversation of samples.jsonl: a turn of two tokens for each reward."""
    messages = [{"role": "system", "content": "Help."}, {"role": "user", "content": f"{place}"}]
    for _ in earned:
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Yes."}]
    row = {"phase": "rl", "step": 1, "gym": "travel", "group": "travel-7", "of": 2, "status": "done",
           "messages": messages, "rewards": earned, "tokens": [2] * len(earned), "thoughts": ["aha"] * len(earned)}
    return json.dumps({**row, **other}) + "\n"


@pytest.fixture
def run(here):
    """A run folder of one group, two rollouts: rewards 0, 1 and 1."""
    folder = Path("runs/a")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "samples.jsonl").write_text(line(0, [0.0, 1.0]) + line(1, [0.5]))
    rows = [{"phase": "sft", "step": 1, "loss": 2.5},
            {"phase": "rl", "step": 1, "return": float("nan"), "travel": 0.75, "dead": 0.0, "ended": {"done": 2}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def embedded(page: Path) -> dict:
    """The data in a page, found as a browser finds them: up to the first end of a script."""
    text = page.read_text().split('<script type="application/json" id="data">')[1]
    return json.loads(text.split("</script>")[0])


def test_the_numbers_by_hand(run, capsys):
    """Scores 1 and .5 by sum, .5 and .5 discounted by half: under loo turn 1 is a tie, and turn 2 is not."""
    assert userrl.main(["report", "runs/a"]) == 0
    assert capsys.readouterr().out == "written to runs/a/report.html\n"
    data = embedded(run / "report.html")
    own, paper = data["groups"]["a/1/travel-7"]
    assert (own["gamma"], own["normalize"], paper["gamma"], paper["normalize"]) == (0.5, "center", 0.8, "std")
    assert own["R"] == {"sum": [1, 0.5], "mean": [0.5, 0.5], "r2g": [0.5, 0.5]}
    assert own["w"]["r2g"] == [[0.5, 1], [0.5]] and own["w"]["naive"] == [[0, 1], [0.5]]
    assert (own["mean"]["sum"], own["z"]["sum"], own["z"]["r2g"]) == (0.75, [0.25, -0.25], [0, 0])
    # z dealt out by credit: the turn that earned nothing gets none
    assert own["advantages"]["naive sum scale"] == [[0, 0.25], [-0.25]]
    assert (own["used"]["naive"], own["sum"]["naive"], own["m"]["naive"]) == ([2, 2], [2, 1], [0.5, 0.5])
    assert own["advantages"]["naive sum paper"] == [[-0.75, 0.25], [-0.25]]
    assert own["advantages"]["naive sum shift"] == [[-0.25, 0.75], [-0.25]] and own["range"]["naive"] == 1
    assert own["advantages"]["loo"] == [[0, 1], [0]] and own["others"] == [[0.5, 0], [0.5]]
    talk, _ = data["talks"]
    assert (talk["id"], talk["group"], talk["place"]) == ("a/1/travel-7/0", "a/1/travel-7", 0)
    assert talk["said"][1:4] == [["user", "0"], ["agent", "[action] Hi"], ["user", "Yes."]]
    assert (talk["thoughts"], talk["tokens"]) == (["aha", "aha"], [2, 2])
    assert data["runs"][0]["curves"]["rl"] == {"step": [1], "return": [None], "travel": [0.75], "dead": [0]}
    # the gym that was played says what it pays, its prose in lines of any length
    assert list(data["rules"]) == ["travel"] and "One answer per aspect" in data["rules"]["travel"]
    assert "\n    user   Oslo in June" in data["rules"]["travel"]


@pytest.mark.parametrize("normalize", rewards.NORMALIZE)
def test_the_formulas_filled_in_give_the_advantages(normalize):
    """What the page writes for a reader to follow leads to the number behind it."""
    earned = [[0.2, 0.0, 0.2, 0.0], [0.2, 0.2, 1.0], [-0.1, 0.8], [0.0]]
    tokens = [[12, 14, 10, 6], [3, 2, 1], [5, 5], [4]]
    c = rewards.workings(earned, tokens, 0.8, 2.0, normalize)
    for i, t in [(0, 0), (0, 1), (1, 2), (2, 0), (3, 0)]:
        loo = (c["w"]["r2g"][i][t] - c["others"][i][t]) / c["unit"]["r2g"]
        assert loo == pytest.approx(c["advantages"]["loo"][i][t])
        for turn in rewards.TURN:
            w, m = c["w"][turn][i][t], c["m"][turn][i]
            for name in rewards.TRAJECTORY:
                z = c["z"][name][i]
                assert z == pytest.approx((c["R"][name][i] - c["mean"][name]) / c["unit"][name])
                scale = z * w * c["used"][turn][i] / c["sum"][turn][i] if c["sum"][turn][i] else 0
                shift = z + (w - m) / (1 if normalize == "center" else c["range"][turn] or 1)
                paper = (w - c["mean"][name]) / c["paper_unit"][name]
                found = [c["advantages"][f"{turn} {name} {combine}"][i][t] for combine in ("scale", "shift", "paper")]
                assert found == pytest.approx([scale, shift, paper], rel=1e-4)


def test_no_text_ends_the_script(run):
    """A model may write anything, and so may a gym's user."""
    bad = "</script><script>alert(1)</script><!-- \u2028"
    (run / "samples.jsonl").write_text(line(0, [0.0], said=bad) + line(1, [1.0], thoughts=[bad]))
    page = userrl.write_report(run)
    talks = embedded(page)["talks"]
    assert talks[0]["said"][2] == ["agent", bad] and talks[1]["thoughts"] == [bad]
    assert "alert(1)</script" not in page.read_text()
    assert "innerHTML" not in userrl.PAGE and "http://" not in userrl.PAGE.replace("http://www.w3.org/2000/svg", "")


def test_half_a_line_and_half_a_group(run):
    """A run was killed while it logged: without its group a conversation is shown, without advantages."""
    log = run / "samples.jsonl"
    log.write_text(log.read_text() + line(0, [-1.0], step=2) + line(1, [0.0], step=2)[:90])
    data = embedded(userrl.write_report(run))
    assert [talk["group"] for talk in data["talks"]] == ["a/1/travel-7", "a/1/travel-7", None]
    log.write_text(line(0, ["much"]) + "[]\n7\n" + line(0, [1.0], group="travel-8", of=1, messages="none"))
    assert embedded(userrl.write_report(run))["talks"] == []


def test_a_folder_of_runs(run):
    """What is no run of this program is passed by."""
    Path("runs/b").mkdir()
    Path("runs/b/config.json").write_text(json.dumps({**CONFIG, "gamma": 1.0}))
    Path("runs/c").mkdir()
    Path("runs/c/config.json").write_text('{"architectures": []}')
    data = embedded(userrl.write_report(Path("runs")))
    assert [(each["name"], each["settings"]["gamma"]) for each in data["runs"]] == [("a", 0.5), ("b", 1)]
    assert [talk["run"] for talk in data["talks"]] == ["a", "a"]


def test_tasks_are_called_what_they_are(run):
    """A page about `eval --split=train` called its results held-out, and so did its picture and a study's table."""
    assert "<h2>Results on held-out tasks</h2>" in userrl.write_report(run).read_text()
    Path("runs/b").mkdir()
    Path("runs/b/config.json").write_text(json.dumps({**CONFIG, "split": "train"}))
    assert "<h2>Results on held-out tasks and training tasks</h2>" in userrl.write_report(Path("runs")).read_text()
    study = {"name": "x", "question": "", "show": "", "seeds": [0], "split": "val", "cells": {}, "tests": [],
             "results": {"cells": {}, "tests": {}}}
    assert "(mean return on validation tasks, RL after" in "\n".join(userrl.study_lines(study))


@pytest.mark.parametrize("folder, file, text, says", [
    ("nowhere", "", "", "nowhere is no run of userrl.py, nor a folder of such runs"),
    ("c", "config.json", '{"architectures": []}', "c is no run of userrl.py"),
    ("a", "config.json", "{", "config.json cannot be read"),
    ("a", "eval.json", '{"RL": 7}', "runs/a does not hold what a run writes"),
    ("a", "talks.json", "[]", "talks.json cannot be read: it is not what a run writes")])
def test_a_foreign_folder_is_one_clear_line(run, capsys, folder, file, text, says):
    if file:
        Path("runs", folder).mkdir(exist_ok=True)
        Path("runs", folder, file).write_text(text)
    assert userrl.main(["report", f"runs/{folder}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says in err
    assert not list(Path("runs").glob("*/report.html*"))


def test_samples_hold_a_whole_group_of_each_gym(here, monkeypatch):
    """They held one conversation, of a gym that process 0 happened to have, and what it was compared with was lost."""
    def talk(gym, group, earned):
        return grpo.Trajectory(turn_rewards=[earned], infos=[{"hidden": {"thought": "hm"}}], turn=[-1, 0, 0],
                               group=group, status="done")

    talks, logged = [talk("x", "x-1", 0.0), talk("y", "y-1", 0.0), talk("y", "y-2", 1.0), talk("y", "y-2", 0.0)], []
    for each in talks:
        each.gym = each.group[0]

    class Run:
        s = userrl.Settings(combine="scale")

        def log(self, file, row):
            logged.append((file, row))
    theirs = {"x": [{"gym": "x", "group": "x-9"}], "z": [{"gym": "z", "group": "z-9"}]}
    monkeypatch.setattr(grpo, "gather", lambda mine: [mine, theirs])
    # step 4: the conversation that is printed is the first
    userrl.log_samples(Run(), 4, talks, [[0.0], [0.0], [0.5], [-0.5]], ["y-2"])
    assert sorted(row["group"] for _, row in logged) == ["x-1", "y-2", "y-2", "z-9"]
    row = next(row for _, row in logged if row["group"] == "y-2")
    assert (row["of"], row["tokens"], row["advantages"], row["thoughts"]) == (2, [2], [0.5], ["hm"])

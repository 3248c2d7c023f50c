"""Studies: what a grid means, that a killed study ends with the same table, what its numbers say, and its pictures."""
import itertools
import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import grpo
import rewards
import userrl
from test_userrl import ECHO, SMALL, evals

TINY = [*SMALL, "--gyms=echo_gym:Echo", "--hold_out=", "--sft_steps=3", "--steps=3", "--eval_tasks=2"]


class Killed(BaseException):
    """What kill -9 is to a test."""


@pytest.fixture
def inside(here, monkeypatch):
    """Jobs run in this process, one after the other; whatever they say is theirs."""
    Path("echo_gym.py").write_text(ECHO)
    begun = []

    def spawn(argv, env):
        begun.append(argv)
        code = userrl.main(argv[1:])
        with open("said", "w+") as said:
            theirs, ours = os.pipe()
            os.close(theirs)
            errors = open(said.name)
        return SimpleNamespace(poll=lambda: code, wait=lambda timeout: code, returncode=code, errors=errors, pipe=ours)
    monkeypatch.setattr(grpo, "spawn", spawn)
    monkeypatch.setattr(grpo, "this_script", lambda: ["userrl.py"])
    return begun


def results(name: str) -> dict:
    return json.loads(Path("runs", name, "study.json").read_text())["results"]


def test_a_killed_study_ends_with_the_same_table(inside, monkeypatch, capsys):
    """Killed in its cold start, in a cell, in the last one: it goes on from its checkpoints, one every second step."""
    study = ["ablate", "--grid=turn=naive,em; combine=scale", "--seeds=1", *TINY]
    finish, steps, lost = grpo.Run.finish_step, [], []

    def finish_step(run, step, last, phase, **state):
        steps.append((run.s.name.partition("/")[2], step))
        if lost and len(steps) == lost[0]:
            raise Killed
        finish(run, step, last, phase, **state)
    monkeypatch.setattr(grpo.Run, "finish_step", finish_step)
    assert userrl.main([*study, "--name=whole"]) == 0
    assert steps == list(itertools.product(("cold-s0", "naive-s0", "em-s0"), (1, 2, 3)))
    steps.clear()
    for kill in (3, 5, 11, None):
        lost[:] = [kill]
        if kill:
            with pytest.raises(Killed):
                userrl.main([*study, "--name=cut"])
        else:
            assert userrl.main([*study, "--name=cut"]) == 0
    redone = {step for step in steps if steps.count(step) > 1}
    assert redone == {("cold-s0", 3), ("naive-s0", 1), ("em-s0", 3)} and len(steps) == 9 + 3
    assert results("cut") == results("whole")
    assert set(results("cut")["cells"]) == {"naive", "em"}
    table = Path("runs/cut/table.txt").read_text()
    assert table == Path("runs/whole/table.txt").read_text().replace("whole", "cut")
    assert Path("runs/whole/report.html").exists()
    # finished: nothing runs again, the table is there again
    inside.clear()
    capsys.readouterr()
    assert userrl.main([*study, "--name=cut"]) == 0
    assert inside == [] and "3 runs, 3 done" in (said := capsys.readouterr().out) and table.strip() in said
    # and another study does not get mixed up with it
    assert userrl.main([*study, "--name=cut", "--steps=4"]) == 2
    assert "runs/cut/cold-s0 has --steps=3, not 4" in capsys.readouterr().err


def test_what_a_grid_means():
    s = userrl.Settings(lr=0.5, steps=42)
    grid = "turn=naive,em; combine=scale; lr=50%,2; kl=0.1 | held-out: gyms=travel+turtle; user_noise=0.2 | combine=loo"
    assert userrl.grid_cells(s, "grid", grid) == {
        "naive-lr0.25": {"turn": "naive", "combine": "scale", "lr": "0.25", "kl": "0.1"},
        "naive-lr2": {"turn": "naive", "combine": "scale", "lr": "2", "kl": "0.1"},
        "em-lr0.25": {"turn": "em", "combine": "scale", "lr": "0.25", "kl": "0.1"},
        "em-lr2": {"turn": "em", "combine": "scale", "lr": "2", "kl": "0.1"},
        "held-out": {"gyms": "travel,turtle", "user_noise": "0.2"},
        "loo": {"combine": "loo"}}
    assert list(userrl.grid_cells(s, "grid", "x: steps=0%,50%")) == ["x-steps0", "x-steps21"]
    # without --combine=scale all cells earned the same, after hours
    for twins in ("turn=naive,em", "turn=naive | trajectory=sum", "turn=em; combine=scale,loo | combine=loo; turn=r2g"):
        with pytest.raises(ValueError, match="are the same: loo reads neither turn nor trajectory"):
            userrl.grid_cells(s, "grid", twins)
    userrl.grid_cells(s, "grid", "turn=em,r2g; combine=scale | combine=loo; lr=50%,100%")
    with pytest.raises(ValueError, match="no cell may be called cold"):     # it took the place of its own cold start
        userrl.grid_cells(s, "grid", "cold: turn=em")


def test_all_cells_of_a_seed_share_a_cold_start():
    """But where a cell differs in what the cold start depends on, it has its own; without SFT steps none."""
    s = userrl.Settings(seeds=2, sft_steps=10, gyms="intention")
    cells = userrl.grid_cells(s, "grid", "turn=naive,em; combine=scale | sft_steps=0,5")
    jobs = {job.name: job for job in userrl.study_jobs(s, "x", cells, "")}
    assert list(jobs)[:6] == ["x/cold-s0", "x/naive-s0", "x/em-s0", "x/sft_steps0-s0",
                              "x/cold-sft_steps5-s0", "x/sft_steps5-s0"]
    assert jobs["x/em-s1"].needs == ["x/cold-s1"] and "--model=runs/x/cold-s1" in jobs["x/em-s1"].argv
    assert jobs["x/sft_steps0-s0"].needs == [] and jobs["x/sft_steps0-s0"].wanted["model"] == "tiny"
    assert jobs["x/em-s1"].wanted["workers"] == 1 and jobs["x/em-s1"].wanted["seed"] == 1
    # SFT decays weights, too; and a user among several waits for its model
    cells = userrl.grid_cells(s, "grid", "weight_decay=0,0.1 | mixed: user=mix:scripted+userlm:runs/x/userlm")
    jobs = {job.name: job for job in userrl.study_jobs(s, "x", cells, "")}
    assert jobs["x/weight_decay0.1-s0"].needs == ["x/cold-weight_decay0.1-s0"]
    assert "x/userlm" in jobs["x/mixed-s0"].needs and "x/userlm" in jobs


def test_a_policy_is_tested_as_it_talks():
    """A cell trained on UserRL's tool calls was tested in brackets, one with a longer context without it."""
    s = userrl.Settings(seeds=1, sft_steps=10, gyms="intention")
    cells = userrl.grid_cells(s, "grid", "form=brackets,tool | context=4096")
    wanted = {job.name: job.wanted for job in userrl.study_jobs(s, "x", cells, "user_noise=0,0.2")}
    assert {name: (of["form"], of["context"]) for name, of in wanted.items() if name.endswith("-tests")} == {
        "x/SFT-brackets-s0-tests": ("brackets", s.context), "x/brackets-s0-tests": ("brackets", s.context),
        "x/SFT-tool-s0-tests": ("tool", s.context), "x/tool-s0-tests": ("tool", s.context),
        "x/context4096-s0-tests": ("brackets", 4096), "x/SFT-s0-tests": ("brackets", s.context),
        "x/expert-s0-tests": ("brackets", s.context)}


def test_each_cold_start_is_tested(inside, monkeypatch):
    """Of a study with several the first alone was, and called SFT: --study=coldstart had there what half of one earns.
    """
    s = userrl.Settings(seeds=1, sft_steps=10, gyms="intention")
    for grid, names in {"sft_steps=0,50%,100%": {"SFT-sft_steps5": "cold-sft_steps5", "SFT-sft_steps10":
                                                 "cold-sft_steps10"},
                        "sft_steps=0 | turn=naive,em; combine=scale": {"SFT": "cold"}}.items():
        cells = userrl.grid_cells(s, "grid", grid)
        tests = [job for job in userrl.study_jobs(s, "x", cells, "user_noise=0,0.2") if job.name.startswith("x/SFT")]
        assert {job.name: job.wanted["model"] for job in tests} == {
            f"x/{policy}-s0-tests": f"runs/x/{cold}-s0" for policy, cold in names.items()}
    tests = [job.name for job in userrl.study_jobs(s, "x", userrl.grid_cells(s, "grid", "model=a,b"), "user_noise=0")]
    assert tests[2:4] == ["x/SFT-a-s0-tests", "x/a-s0-tests"] and "x/SFT-b-s0-tests" in tests

    def done(command, labels, s):
        path, of = Path("runs", s.name), {"return": 1.0, "ci95": 0.1}
        gym = of | dict.fromkeys(("success", "turns", "effective_turns", "time_weighted"), 1.0)
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps({"command": command, **asdict(s)}))
        result = {"gyms": {"echo": gym}, "macro": of, "micro": of}
        (path / "eval.json").write_text(json.dumps(dict.fromkeys(labels, result)))
    for command, labels in {"sft": ["SFT", "expert"], "train": ["RL", "expert"], "eval": ["user_noise0"]}.items():
        monkeypatch.setitem(userrl.COMMANDS, command, partial(done, command, labels))
    grid = ["--grid=sft_steps=1,2", "--tests=user_noise=0"]
    assert userrl.main(["ablate", *grid, "--seeds=1", "--name=x", *TINY]) == 0
    assert list(results("x")["tests"]) == ["SFT-sft_steps1", "SFT-sft_steps2", "sft_steps1", "sft_steps2", "expert"]


@pytest.mark.parametrize("study", userrl.STUDIES)
def test_every_study_can_be_planned(study):
    """Each of its cells and tests is a run that `main` would take; what is typed counts more than what it fixes."""
    _, s = grpo.parse(["ablate", f"--study={study}", "--seeds=1", "--gamma=0.5"], userrl.Settings, userrl.COMMANDS)
    assert s.gamma == 0.5
    ready = {key: text.replace("{name}", study).replace("{user}", "userlm:x")
             for key, text in userrl.STUDIES[study].items() if isinstance(text, str)}
    cells, tests = (userrl.grid_cells(s, key, ready.get(key, "")) for key in ("grid", "tests"))
    jobs = {job.name: job for job in userrl.study_jobs(s, study, cells, ready.get("tests", ""))}
    assert all(set(job.needs) <= set(jobs) for job in jobs.values())
    assert len(cells) == {"credit": 14, "coldstart": 3, "user": 6, "efficiency": 3}.get(study, 1)
    assert len(tests) == {"user": 7, "userbench": 20}.get(study, 0)


BAD = """
    --grid=foo=1 | unknown setting --foo
    --grid=turn | 'turn' is not setting=value,value
    --grid= | ablate needs --grid=setting=value,value
    --study= | ablate needs --grid=setting=value,value
    --grid=; | ';' names no setting
    --grid=turn=em;turn=naive | turn is there twice
    --grid=turn=wild | --turn is one of naive
    --grid=lr=1..2% | --lr takes float
    --grid=steps=many | --steps takes int
    --grid=sft_steps=many | --sft_steps takes int
    --grid=seed=1,2 | seed is of the whole study
    --grid=lr=1,1 | two cells are called lr1
    --study=foo | --study is one of credit
    --grid=turn=em --name=taken | runs/taken is a run, not a study
    --grid=turn=em --name=foreign | runs/foreign/em-s0 is no run
    --grid=turn=em --name=broken | runs/broken/em-s0/config.json cannot be read
    --grid=turn=em --name=other | was not made by 'train'
    --grid=user=nobody: | No module named 'nobody'
    --preset=quick --minutes=3 | leave out one
"""


@pytest.mark.parametrize("line", BAD.strip().split("\n"))
def test_what_is_wrong_is_said_in_one_line_before_anything_runs(inside, capsys, line):
    argv, words = line.split(" | ")
    for place, text in {"taken": "{}", "foreign/em-s0/notes": "", "broken/em-s0": "{", "other/em-s0": "{}"}.items():
        folder = Path("runs", place)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(text or "{}")
    Path("runs/other/em-s0/config.json").write_text('{"command": "sft"}')
    assert userrl.main(["ablate", *argv.split(), "--gyms=intention"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and inside == []


def test_a_cell_that_fails_does_not_stop_the_others(inside, monkeypatch, capsys):
    """Its reason is said at once, and at the end, when the table of the others stands."""
    real = userrl.train

    def train(s):
        if s.turn == "em":
            raise ValueError("no luck")
        real(s)
    monkeypatch.setitem(userrl.COMMANDS, "train", train)
    grid = "--grid=turn=em,naive; combine=scale"
    assert userrl.main(["ablate", grid, "--seeds=1", *TINY, "--sft_steps=0", "--name=x"]) == 2
    said = capsys.readouterr()
    assert "! x/em-s0: " in said.out and "1 of 2 runs failed, x/em-s0 because" in said.err
    assert list(results("x")["cells"]) == ["naive"]


def test_a_run_that_was_killed_is_not_one_whose_evaluation_failed(inside, monkeypatch, capsys):
    """The kernel kills without a word what takes too much memory; the study blamed the evaluation."""
    killed = SimpleNamespace(poll=lambda: -9, wait=lambda timeout: -9, returncode=-9)

    def spawn(argv, env):
        killed.pipe, killed.errors = os.open(os.devnull, os.O_RDONLY), open(os.devnull)
        return killed
    monkeypatch.setattr(grpo, "spawn", spawn)
    assert userrl.main(["ablate", "--grid=turn=em", "--seeds=1", *TINY, "--name=x"]) == 2
    assert "! x/cold-s0: it ended with status -9\n" in capsys.readouterr().out


# ---- numbers

def test_tests_go_on_where_they_were_stopped(inside, monkeypatch):
    """A second call was told to add --resume=True, and with that, that eval needs none."""
    call = ["eval", "--name=t", *TINY, "--model=expert", "--tests=user_noise=0,0.2"]
    monkeypatch.setattr(grpo, "interrupted", True)
    assert userrl.main(call) == 130 and list(evals("t")) == ["user_noise0"]
    first = evals("t")["user_noise0"]
    monkeypatch.setattr(grpo, "interrupted", False)
    assert userrl.main(call) == 0
    assert list(evals("t")) == ["user_noise0", "user_noise0.2"] and evals("t")["user_noise0"] == first


@pytest.mark.parametrize("key", ("model", "dtype", "device"))
def test_tests_are_of_one_policy(here, capsys, key):
    """--tests=model=expert,demonstrator gave the expert's number for both: the policy is made once, from --model."""
    assert userrl.main(["eval", "--model=expert", f"--tests={key}=expert,demonstrator", "--workers=1"]) == 2
    assert f"--tests: {key} is of the whole evaluation" in capsys.readouterr().err and not Path("runs").exists()


def test_quantiles_of_students_t():
    table = {1: 12.7062, 2: 4.3027, 5: 2.5706, 10: 2.2281, 28: 2.0484, 29: 2.0452}
    for df, t in table.items():
        assert userrl.critical(df, 0.05) == pytest.approx(t, abs=1e-4)
    assert userrl.critical(1001, 0.05) == pytest.approx(1.96, abs=1e-4)
    assert userrl.critical(1000, 0.05) == pytest.approx(userrl.critical(1001, 0.05), rel=0.002)


def test_separation_by_hand():
    """Cells 1 2 and 3 6: what cell and seed leave is ±.5 each, so s = 1 with 1 degree of freedom, and t = 12.706.

    With n seeds the least gap is t(n - 1) sqrt(2 / n): 3.51 for three, 2.25 for four; the gap here is 3.
    """
    lines = userrl.separation({"a": [1, 2], "b": [3, 6]})
    assert "differ by more than chance from 12.706 on" in lines[0]
    assert "b over a, by 3.000: not separated." in lines[1]
    assert "4 seeds for a pair named beforehand, 4 for the widest" in lines[2]
    assert "separated." in userrl.separation({"a": [1, 2.001], "b": [3, 4], "c": [1, 2]})[1]
    assert userrl.separation({"a": [1], "b": [2]})[0].startswith("one seed says nothing")
    assert userrl.separation({"a": [1, 1]}) == []
    # seeds were counted one by one, for an hour where cells are this close
    assert "10,000 or more for the widest" in userrl.separation({"a": [0, 1, 2], "b": [1e-6, 0, 3]})[2]


def test_a_setting_by_itself():
    """Naive 1 3 and em 2 6 (sum), 3 5 and 6 12 (mean). What is not part of the grid is out, and a grid with a hole."""
    cells = {f"{turn}-{score}": {"turn": turn, "trajectory": score}
             for turn, score in itertools.product(("naive", "em"), ("sum", "mean"))}
    cells["loo"] = {"combine": "loo"}
    returns = {"naive-sum": [1, 3], "naive-mean": [3, 5], "em-sum": [2, 6], "em-mean": [6, 12], "loo": [9, 9]}
    assert userrl.margins(cells, returns) == {
        "turn": {"naive": [2, 4], "em": [4, 9]}, "trajectory": {"sum": [1.5, 4.5], "mean": [4.5, 8.5]}}
    del returns["em-mean"]
    assert userrl.margins(cells, returns) == {} == userrl.margins({}, {})
    assert userrl.margins(cells, {"loo": [9, 9]}) == {}


def test_a_table_before_any_seed_is_whole():
    """Each cell had a seed, but not the same one: the table's traceback ended a study, and its runs with it."""
    cells = userrl.grid_cells(userrl.Settings(), "grid", "turn=naive,em; trajectory=sum,mean; combine=scale")
    found = {cell: {str(i % 2): {"RL": {"return": i, "ci95": 0.1}}} for i, cell in enumerate(cells)}
    study = {"name": "x", "question": "", "show": "", "seeds": [0, 1], "cells": cells, "tests": [],
             "results": {"cells": found, "tests": {}}}
    assert userrl.study_lines(study)[-1] == "one seed says nothing of chance: cells are compared from the second on"


def test_what_a_study_counts_as_measured():
    """A gym whose user had always failed left no number, and the study took the run for done; an expert without one
    ended the table in a traceback."""
    assert not userrl.measured(None) and not userrl.measured({"failed": "down", "macro": {"return": None}})
    assert not userrl.measured({"macro": {"return": None}}) and userrl.measured({"macro": {"return": 0.0}})
    assert userrl.measured({"gyms": ["intention"], "tau": 1.0})
    rows = {"0": {"RL": {"return": 0.5, "ci95": 0.3}, "expert": {"return": None}},
            "1": {"RL": {"return": 0.7, "ci95": 0.1}, "expert": {"return": None}}}
    study = {"name": "x", "question": "", "show": "", "seeds": [0, 1], "cells": {"a": {}}, "tests": [],
             "results": {"cells": {"a": rows}, "tests": {}}}
    lines = userrl.study_lines(study)
    # 1.271 over the seeds; over tasks .2, not .2 / sqrt(2): both seeds meet the same tasks
    assert lines[3].split()[-5:] == ["0.600", "±", "1.271", "0.200", "-"] and "expert" not in "".join(lines)


def test_the_start_is_a_row_where_all_began_with_it():
    """A table of transfer showed each gym after RL alone: whether it had been earned before could not be seen."""
    def row(value, turtle):
        return {"return": value, "ci95": 0.1, "turtle": turtle}
    found = {cell: {"0": {"start": row(0.5, 0.25), "RL": row(0.75, 0.5), "expert": row(2.0, None)}} for cell in "ab"}
    study = {"name": "x", "question": "", "show": "turtle", "seeds": [0], "cells": {"a": {}, "b": {}}, "tests": [],
             "results": {"cells": found, "tests": {}}}
    rows = {line.split()[0]: line.split()[1:] for line in userrl.study_lines(study)[3:7]}
    assert rows["a"] == ["1", "0.500", "0.750", "0.100", "+0.250", "0.500"]
    assert rows["start"] == ["0.500", "0.250"] and rows["expert"] == ["2.000", "-"]
    widths = {len(line) for line in userrl.study_lines(study)[2:7]}
    assert len(widths) == 1                                             # each number stands in its column
    # cells that met several users, or began with several models: the mean over them stood there, and was nobody's
    found["b"]["0"] |= {"start": row(0.375, 0.25), "expert": row(1.5, None)}
    assert not any(line.startswith(("start", "expert")) for line in userrl.study_lines(study))


def test_best_of_k_by_counting():
    values = [0.5, 2.0, -1.0, 0.5]
    for k in (1, 2, 3, 4):
        some = [max(picked) for picked in itertools.combinations(values, k)]
        assert rewards.best_of_k(values, k) == pytest.approx(sum(some) / len(some))
    assert rewards.best_of_k([0, 1, 0, 0], 2) == rewards.pass_at_k(4, 1, 2)
    with pytest.raises(ValueError, match="best of k needs"):
        rewards.best_of_k([1.0], 2)


# ---- pictures

GRID = "turn=naive,em; trajectory=sum,mean; combine=scale"


def make_study(seeds=(0, 1), grid=f"{GRID} | combine=loo") -> dict:
    """A study of made-up numbers: cell i earns i + seed / 10."""
    cells = userrl.grid_cells(userrl.Settings(), "grid", grid)
    tests = ["plain", "held-out"]

    def row(value):
        return {"return": value, "ci95": 0.1, "travel": value, "success": None}
    results = {"cells": {}, "tests": {}}
    for i, cell in enumerate(cells):
        results["cells"][cell] = {str(seed): {"start": row(0.5), "RL": row(i + seed / 10)} for seed in seeds}
        results["tests"][cell] = {test: {str(seed): row(i) for seed in seeds} for test in tests}
        for seed in seeds:
            path = Path("runs/made", f"{cell}-s{seed}")
            path.mkdir(parents=True)
            lines = [json.dumps({"phase": "rl", "step": step, "return": i + step}) for step in (1, 2, 3)]
            (path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"cut')
    study = {"name": "made", "question": "", "grid": "", "show": "success", "seeds": list(seeds), "cells": cells,
             "tests": tests, "starts": {}, "results": results}
    Path("runs/made/study.json").write_text(json.dumps(study))
    return study


def test_a_study_is_told_in_text_without_matplotlib(here, monkeypatch, capsys):
    make_study()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert userrl.main(["plot", "runs/made"]) == 0
    out = capsys.readouterr().out
    assert "naive-sum          2    0.500 ± 0.000    0.050 ± 0.635" in out
    assert "loo over naive-sum, by 4.000: separated." in out
    assert "turn, mean over all else: naive 0.550, em 2.550\n" in out and "em over naive, by 2.000: separated." in out
    # the mean of five steps, here of as many as there are
    assert "turn naive sum            1.000 ▁▁▂  2.000" in out
    assert "em         2.050 ± 0.635    3.050 ± 0.635" in out
    assert "em-mean             3.000 ± 0.000     3.000 ± 0.000" in out
    assert "(grid: no picture, matplotlib is not installed)" in out and not Path("runs/made/pictures").exists()


def test_pictures_are_drawn(here):
    pytest.importorskip("matplotlib")
    pictures = {name: draw for name, _, draw in filter(None, userrl.study_pictures(Path("runs/made"), make_study()))}
    assert list(pictures) == ["curves", "cells", "grid", "tests"]
    userrl.save_picture(Path("runs/made/pictures/grid"), pictures["grid"])
    svg = Path("runs/made/pictures/grid.svg").read_text()
    assert ">naive<" in svg and ">3.050<" in svg
    assert Path("runs/made/pictures/grid.png").read_bytes().startswith(b"\x89PNG")


def test_grids_of_the_same_settings_stand_side_by_side(here):
    """The second took the place of the first in the curves and in the heat map, and nothing said so."""
    study = make_study(grid=f"{GRID} | b: {GRID}; kl=0")
    curves, _, (_, grid, _) = [picture for picture in userrl.study_pictures(Path("runs/made"), study)[:3]]
    names = [line.split("  ")[0] for line in curves[1][1:]]
    assert names[::5] == ["turn naive sum", "turn naive; combine scale; kl 0 trajectory mean"] and len(set(names)) == 8
    titles = ["turn (down), trajectory (across)", "turn (down), trajectory (across); combine scale; kl 0"]
    assert grid[1::5] == titles and [line.split()[1] for line in grid if line[:2] == "em"] == ["2.050", "6.050"]


def test_each_heat_map_names_its_rows(here):
    """Only the first did: beside naive and em stood those of lr, without a name of their own."""
    pytest.importorskip("matplotlib")
    study = make_study(grid=f"{GRID} | lr=1,2; kl=0,0.5 | turn=naive,em; k=3,4; combine=shift")
    pictures = {name: draw for name, _, draw in filter(None, userrl.study_pictures(Path("runs/made"), study))}
    userrl.save_picture(Path("runs/made/pictures/grid"), pictures["grid"])
    svg = Path("runs/made/pictures/grid.svg").read_text()
    assert [svg.count(f">{row}<") for row in ("naive", "em", "1", "2")] == [2, 2, 1, 1]


def test_policies_of_several_gyms_stand_in_one_picture():
    """`plot` refused an evaluation whose --tests differ in gyms, and a self-play with its user's fidelity beside."""
    of = {"return": 1.0, "ci95": 0.1}
    _, text, _ = userrl.bars_picture({"a": {"gyms": {"travel": of}}, "b": {"gyms": {"tau": {**of, "return": 2.0}}}})
    assert [line.split()[:3] for line in text] == [
        ["travel", "a", "1.000"], ["travel", "b", "-"], ["tau", "a", "-"], ["tau", "b", "2.000"]]


def test_a_picture_of_one_gym_has_room_for_its_legend(here):
    """An `eval --tests` of one gym lost the names of its bars at both edges, and matplotlib warned of it."""
    pytest.importorskip("matplotlib")
    of = {"gyms": {"travel": {"return": 1.0, "ci95": 0.1}}}
    _, _, draw = userrl.bars_picture({f"2222-max_turns{n}": of for n in (8, 16, 24)})

    def whole(figure):
        draw(figure)
        figure.draw_without_rendering()
        legend, page = figure.axes[0].get_legend().get_window_extent(), figure.bbox
        assert page.x0 <= legend.x0 and legend.x1 <= page.x1
    userrl.save_picture(Path("gyms"), whole)


@pytest.mark.parametrize("argv, words", [
    (["plot"], "plot needs the folders"), (["plot", "runs/none"], "runs/none does not exist"),
    (["plot", "."], "is neither a run of userrl.py nor a study"), (["plot", "bad"], "study.json cannot be read"),
    (["plot", "odd"], "odd does not hold what a run or a study writes"),
    (["plot", "new"], "no run of new is finished"),
    (["plot", "begun"], "begun has no number yet"), (["plot", "caller"], "caller is neither a run of userrl.py")])
def test_what_cannot_be_plotted(here, capsys, argv, words):
    """Of a run without a number nothing was said, as if all were well; a run of userlm_r1.py was called damaged."""
    new = '{"results": {"cells": {}, "tests": {}}}'
    for name, text in {"bad": "{", "odd": '{"cells": 3}', "new": new}.items():
        Path(name).mkdir()
        Path(name, "study.json").write_text(text)
    for name, text in {"begun": '{"gyms": "travel", "turn": "em"}', "caller": '{"gyms": "travel"}'}.items():
        Path(name).mkdir()
        Path(name, "config.json").write_text(text)
    assert userrl.main(argv) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1

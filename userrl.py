"""An agent that learns from simulated users: cold start, GRPO, evaluation, play (UserRL, arXiv 2509.19736).

    python userrl.py                                  the demo: a tiny model learns on a laptop CPU, nothing to download
    python userrl.py sft   --name=cold                cold start only: imitate the scripted demonstrator
    python userrl.py train --model=runs/cold --steps=200                     GRPO from a run's checkpoint
    python userrl.py eval  --model=runs/demo --gyms=travel                   held-out tasks; --model=expert works too
    python userrl.py eval  --model=NAME@http://localhost:8000/v1 --gyms=all  a served model; the same --name: a column
    python userrl.py eval  --model=runs/demo --split=train --save_talks=True --name=some  talks.jsonl: what was said
    python userrl.py sft   --data=runs/some/talks.jsonl --keep=top:1         imitate the best of it
    python userrl.py report runs/demo                 a page for a browser: curves, tables, and who got credit for what
    python userrl.py selfplay --model=runs/demo --user=userlm:runs/speaker   agent and user learn from each other
    python userrl.py play  --gyms=telepathy           you are the agent;  with --model=…  you are its user
    python userrl.py demo  --name=demo --resume=True  go on after Ctrl-C, kill -9 or a power cut
    python userrl.py ablate --grid="kl=0,0.05;lr=50%,100%" --seeds=3  every combination, a table; or --study=…
    python userrl.py --help                           every command and setting

A run lives in runs/<name>/: config.json, metrics.jsonl (one line a step, reproducible bit for bit), times.jsonl
(seconds, memory), eval.json, talks.json (each gym's first held-out task, as each policy played it), samples.jsonl
(training conversations in whole groups, with reward, credit and advantage of each turn), talks.jsonl (every
conversation of an evaluation, --save_talks), report.html, checkpoint/, best/ (--eval_every), reference/ (the policy
that RL started from, for --kl).
Gyms, users and models of your own: --gyms=MODULE:CLASS, --user=MODULE:ARGUMENT, --model=MODULE:FUNCTION, or a script
that registers them and calls `main`.

A study (`ablate`) is a folder of runs, runs/<study>/<cell>-s<seed>/, with study.json (its plan, and what its runs
measured) and table.txt.

On a CPU `workers` processes share the work, elsewhere as many as torchrun starts.  Left out: dashboards,
asynchronous rollouts.  envs.py says what is rewarded, rewards.py who gets the credit, grpo.py how a policy talks
and learns and what a run is; this file which tasks are demonstrated, trained on and measured, and what is printed.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import math
import os
import queue
import random
import re
import signal
import sys
import threading
import time
import zlib
from collections import deque
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import NormalDist

import grpo                             # before torch: it sets how torch's threads wait
import envs
import numpy as np
import rewards


# What --preset=NAME sets.  paper: UserRL's published numbers.  Five gyms are trained, in proportion to their tasks
# (925, 423, 200, 500, 378), three are only evaluated; 15 epochs of 2,426 tasks in batches of 128, 16 to an update.
PRESETS = {
    "quick": {"sft_steps": 300, "steps": 12, "eval_tasks": 32},
    "paper": {
        "gyms": ",".join(["travel"] * 9 + ["turtle"] * 4 + ["function"] * 2 + ["tau"] * 5 + ["persuade"] * 4
                         + ["intention", "telepathy", "search"]),
        "hold_out": "intention,telepathy,search",
        "steps": 15 * (2426 // 128), "tasks": 128, "group": 8, "updates": 8, "mixture": "equal",
        "lr": 1e-6, "warmup": 0.0, "decay": "constant", "weight_decay": 0.01, "sft_lr": 1e-5,
        "turn": "equalized", "trajectory": "r2g", "combine": "scale", "normalize": "std", "gamma": 0.8, "k": 2.0,
        "clip_low": 0.2, "clip_high": 0.2, "clip_dual": 3.0, "kl": 0.0, "ratio": "token", "aggregate": "token",
        "max_turns": 16, "max_new_tokens": 2048, "context": 1152 + 8192, "temperature": 1.0,
        "eval_temperature": 0.0, "eval_every": 5, "tier": "all", "wrong": 10, "noise": 5,
        "env": "tau.max_turns=30,train:travel.search_reward=0,train:travel.preference_reward=.8,"
               "val:travel.search_reward=.2,val:travel.preference_reward=.6,"
               "test:travel.search_reward=.2,test:travel.preference_reward=.6",
        # not published: how it fits on one GPU
        "dtype": "bfloat16", "checkpointing": True, "micro_tokens": 16384, "rows": 128,
    },
}


@dataclass
class Settings(grpo.RunSettings):
    # the run
    model: str = "tiny"             # "tiny", a run, hub name, .gguf, MODULE:FUNCTION; eval: "expert", NAME@URL, too
    gyms: str = "travel,persuade,intention,turtle"      # names, MODULE:CLASS (an Env of your own), or "all" eight
    hold_out: str = "tau"           # gyms that are evaluated, not trained (a tiny model cannot write tau's long calls)
    preset: str = ""                # "quick": a study in minutes a run; "paper": as published. What is typed counts
    minutes: float = 0.0            # about how long on two cores: the default sft_steps and steps x minutes / 10
    # the tiny model
    vocab_size: int = 4096          # enough that a word is one token, here and there: what is copied in one piece
    # cold start (SFT) on a careless demonstrator
    slip: float = 0.75              # how careless: probability of a poor move; RL has to find the others
    sft_steps: int = 900            # optimiser steps
    reading: float = 0.06           # share of the SFT steps in which a tiny model only reads, in place of pre-training
    demos: int = 10_000             # training tasks per gym that are demonstrated, in turn; RL has later ones
    sft_tokens: int = 3000          # tokens of demonstrations per optimiser step
    facts: int = 16                 # lines of plain text a step while a tiny model reads, half as many once it imitates
    drills: int = 32                # pieces of demonstrations a step while it reads, three quarters of that later
    data: str = ""                  # sft: file of conversations (ShareGPT, talks.jsonl); else folder of original tasks
    keep: str = ""                  # of talks.jsonl: "top:N" the best N of each task, "solved", "least:X" by return
    # GRPO
    steps: int = 64                 # each: rollouts, then an update
    lr: float = 5e-4                # for the tiny model; a real checkpoint wants 1e-6
    mixture: str = "equal"          # whose tasks: "equal", in turn, or "signal", more from gyms whose rollouts differ
    updates: int = 1                # optimiser steps per batch of rollouts
    warmup: float = 0.1             # share of the steps
    decay: str = "cosine"           # to 0 after the last step, or "constant"
    turn: str = "naive"             # turn credit: naive | equalized | r2g | em (loo reads none of it)
    trajectory: str = "r2g"         # trajectory score: sum | mean | r2g (nor of it)
    combine: str = "loo"            # scale (released code) | paper (as printed) | shift (ours) | loo (leave one out)
    normalize: str = "mean"         # std | center | mean (rare successes weigh more)
    gamma: float = 1.0              # discount of r2g and loo; UserRL has 0.8
    k: float = 2.0                  # steepness of em
    clip_low: float = 0.2           # the ratio is clipped at 1 - clip_low
    clip_dual: float = 0.0          # where the advantage is negative, at this too (UserRL: 3; arXiv 1912.09729); 0: not
    kl: float = 0.05                # weight of the k3 KL to the policy RL started from: noise drifts, rewards do not
    ratio: str = "token"            # token | sequence (GSPO)
    aggregate: str = "token"        # token | sequence | constant (Dr. GRPO): the divisor of the loss
    echo: float = 0.0               # weight of a second loss, cross-entropy of users' replies (ECHO, arXiv 2605.24517)
    resample: int = 0               # rounds of replacements for groups without signal (DAPO's dynamic sampling)
    # conversations
    max_turns: int = 16             # of a conversation
    form: str = "brackets"          # how the agent writes: "[choice] content", or "tool" (UserRL's call, long prompts)
    tier: str = "22"                # travel: preferences per aspect; several as 22,33, or "all"
    choice: str = "single"          # travel: one answer per aspect, or "multi"
    wrong: int = 6                  # travel: wrong options per aspect (UserBench: 10)
    noise: int = 0                  # travel: noise options per aspect (UserBench: 5)
    classic: bool = False           # the rules as released, in every gym; travel pays as there, tau has 30 turns
    env: str = ""                   # other options of gyms: "travel.search_reward=0,travel.preference_reward=.8"
    user: str = "scripted"          # or userlm:runs/<name>, llm:MODEL@URL, llm:FOLDER, MODULE:ARGUMENT, mix:A,B
    user_noise: float = 0.0         # probability that the scripted user misunderstands
    user_vague: float = 0.0         # probability that it shrugs instead of answering
    persona: str = ""               # how it speaks: plain, polite, chatty, impatient, unsure; empty: drawn per episode
    patience: int = 0               # it leaves after so many turns in a row that earned nothing; 0: never
    # a user that is a language model (llm:…)
    llm_words: bool = True          # it speaks in its own words; False: the rules speak, and it only judges
    llm_requests: int = 64          # how many it is asked at once, at most
    llm_tokens: int = 512           # of a reply, at most
    llm_timeout: float = 60.0       # seconds that a server may take
    llm_tries: int = 6              # of a request, before the conversation ends as "user error"
    llm_context: int = 3072         # tokens of a request and its reply; of llm:FOLDER only
    llm_cache: str = "runs/.llm"    # folder of a server's replies, each asked for once; empty: none
    llm_prompts: str = ""           # the version of the prompts: set by itself, and the same when a run goes on
    # self-play
    rounds: int = 3                 # in each the agent learns (--steps), then the user; 0 steps: it stays as it is
    user_steps: int = 12            # RL steps of the user a round
    # evaluation
    eval_tasks: int = 128           # held-out tasks per gym
    samples: int = 1                # conversations per held-out task: pass@k for k = 1 .. samples
    split: str = "test"             # eval, play: whose tasks; "train" to collect conversations for sft --data
    save_talks: bool = False        # every conversation that is evaluated goes to talks.jsonl (a served model's always)
    timeout: float = 120.0          # seconds in which a served model must have answered; --rows are asked at once
    eval_every: int = 0             # RL steps between two validations; the best policy is kept in best/; 0: none
    val_tasks: int = 16             # validation tasks per trained gym, neither training nor held-out tasks
    # studies
    study: str = ""                 # ablate: a ready one: credit, coldstart, user, efficiency, userbench, transfer
    grid: str = ""                  # ablate: "kl=0,0.05;lr=50%,100%", all combinations; "|" adds another grid
    tests: str = ""                 # ablate, eval: a grid, too: with what each policy is evaluated
    seeds: int = 3                  # ablate: runs of each cell: seed, seed + 1, …
    jobs: int = 0                   # ablate: runs side by side, each of one process; 0: one per core, or one on a GPU

    CHOICES = {"turn": rewards.TURN, "trajectory": rewards.TRAJECTORY, "combine": rewards.COMBINE,
               "normalize": rewards.NORMALIZE, "mixture": ("signal", "equal"), "decay": ("cosine", "constant"),
               "choice": ("single", "multi"), "ratio": ("token", "sequence"),
               "aggregate": ("token", "sequence", "constant"), "form": envs.FORMS, "split": tuple(envs.SPLITS),
               "preset": ("", *PRESETS), **grpo.RunSettings.CHOICES}
    LEAST = {**grpo.RunSettings.LEAST, "sft_tokens": 1, "updates": 1, "eval_tasks": 1, "demos": 1, "samples": 1,
             "max_turns": 1, "val_tasks": 1, "llm_requests": 1, "llm_tokens": 1, "llm_timeout": 0.01, "llm_tries": 1,
             "llm_context": 64, "seeds": 1, "timeout": 0.01}
    MOST = {**grpo.RunSettings.MOST, "wrong": 100, "noise": 100, "seeds": 1000, "jobs": 64}
    ALSO = {"gym": "gyms"}

    @classmethod
    def filled(cls, values: dict) -> dict:
        """--minutes as numbers of steps: no clock is asked, so that the same settings give the same run.

        A --study and a --preset fix settings; what is typed counts more.
        """
        if (study := values.get("study")) and study not in STUDIES:
            raise ValueError(f"--study is one of {', '.join(STUDIES)}, not {study!r}")
        if study:
            values = {**STUDIES[study].get("fixed", {}), **values}
        minutes = values.get("minutes", 0.0)
        if values.get("preset") in PRESETS:
            if minutes:
                raise ValueError("--minutes and --preset both count the steps: leave out one of them")
            values = {**PRESETS[values["preset"]], **values}
        if not 0 <= minutes <= 10_000:
            raise ValueError(f"--minutes must be from 0 to 10000, not {minutes}")
        if not minutes:
            return values
        if given := {"sft_steps", "steps"} & set(values):
            raise ValueError(f"--minutes sets --sft_steps and --steps: leave out --minutes or --{min(given)}")
        steps = {key: max(1, round(getattr(cls, key) * minutes / 10)) for key in ("sft_steps", "steps")}
        return {**values, **steps}

    @property
    def files(self) -> str:
        """--data where it is a folder: of the original projects' task files."""
        return self.data if self.data and Path(self.data).is_dir() else ""

    def check(self) -> None:
        super().check()
        if not 0 <= self.reading < 1 or not self.slip <= 1 >= max(self.user_noise, self.user_vague):
            raise ValueError("--reading must be below 1, and --slip, --user_noise, --user_vague are probabilities")
        if self.model == "tiny" and self.reading and not self.facts:
            raise ValueError("--facts must be at least 1 while --reading is above 0")
        if 0 < self.clip_dual <= 1:
            raise ValueError(f"--clip_dual is above 1, or 0 for none, not {self.clip_dual}")
        for name in users(self.user) or [self.user]:                         # "mix:" alone is no user, and refused
            check_user(self, name)
        kept([], self.keep)
        if self.keep and (not self.data or self.files):
            raise ValueError("--keep chooses among the conversations of a file: --data=FILE")
        rewards.turn_credits([0.0], self.turn, self.gamma, self.k)      # says what is wrong with gamma and k
        if not chosen(self):
            raise ValueError("--gyms names no gym")
        if self.files:
            check_data(self)
        for gym in gym_names(self):
            for index in range(1 + self.tier.count(",")):               # several tiers take turns
                make_env(self, gym, index, self.split if self.files else "train", None)
        env_options(self, "")                                           # also of gyms that nobody plays
        for gym in listed(self.hold_out):
            if gym not in envs.GYMS:
                raise ValueError(f"--hold_out={gym} is no gym; choose from {', '.join(envs.GYMS)}")
        for gym in envs.GYMS:
            if gym in (*COLUMNS, "open_thoughts") or (gym == "echo" and self.echo):
                raise ValueError(f"a gym may not be called {gym!r}, like another number of metrics.jsonl")
        for gym in trained(self) if self.eval_every else []:
            try:
                make_env(self, gym, 0, "val", None)
            except Exception as error:                                  # whatever a gym of yours says to a third split
                raise ValueError(f"--eval_every: {gym} has no validation tasks: {error!r}") from None


# What stands beside the returns of the gyms, each by its name, in the lines of metrics.jsonl; with --echo "echo", too,
# and "open_thoughts", a share of the turns, where there are any.
COLUMNS = ("phase step return ci95 dead ended turns loss grad_norm lr skipped kl kl_ref entropy clip_frac ratio_mean "
           "ratio_max tokens").split()


# ---------------------------------------------------------------------------------------------- tasks and users

# Settings of UserRL's own beside the rules: of a gym, or of a gym in a split.
CLASSIC = {"tau": {"max_turns": 30},
           ("travel", "train"): {"search_reward": 0.0, "preference_reward": 0.8},
           "travel": {"search_reward": 0.2, "preference_reward": 0.6}}


def listed(text: str) -> list[str]:
    """["a", "b"] from "a, b"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def chosen(s: Settings) -> list[str]:
    """The gyms of --gyms, repeats included.  A MODULE:CLASS is imported and joins envs.GYMS under its name."""
    if s.gyms == "all":
        return list(envs.GYMS)
    return [envs.gym_class(name).name for name in listed(s.gyms)]


def gym_names(s: Settings) -> list[str]:
    """The gyms that are evaluated; of original files, those whose --split is there."""
    names = dict.fromkeys(chosen(s))
    return [gym for gym in names if not s.files or not lacking(s, gym, s.split)]


def without_expert(gym: str) -> bool:
    """A gym of a reader's own need not have one."""
    return envs.gym_class(gym).expert is envs.Env.expert


def trained(s: Settings) -> list[str]:
    """The gyms that are trained, in turn: one that is named twice in --gyms has twice the share."""
    return [name for name in chosen(s) if name not in listed(s.hold_out)]


def lacking(s: Settings, gym: str, split: str) -> str:
    """Why --data has no such tasks; "" if it has."""
    try:
        return "" if envs.published_tasks(gym, s.files, split) else "no task"
    except ValueError as error:
        return str(error)


def check_data(s: Settings) -> None:
    """ValueError for a gym whose tasks are beyond a user that goes by rules, or of which --data has no task at all."""
    rules = any(name.partition(":")[0] in ("scripted", "userlm") for name in users(s.user))
    beyond = [f"{gym} ({envs.BEYOND_RULES[gym]})" for gym in dict.fromkeys(chosen(s)) if gym in envs.BEYOND_RULES]
    if rules and beyond:
        raise ValueError(f"--data: rules know too little of {', '.join(beyond)}: give a language model, "
                         "--user=llm:MODEL@http://server/v1 or --user=llm:FOLDER, or leave them out of --gyms")
    for gym in chosen(s):
        if lacking(s, gym, "train") and (why := lacking(s, gym, "test")):
            raise ValueError(f"--data: {why}")


def env_options(s: Settings, gym: str, split: str = "") -> dict:
    """What --env says of a gym in a split ("test:" before an option: there alone); ValueError names what there is."""
    found = {}
    for item in listed(s.env):
        place, equals, text = item.partition("=")
        only, _, place = place.rpartition(":")
        owner, dot, name = place.partition(".")
        if not dot or not equals or only not in ("", *envs.SPLITS):
            raise ValueError(f"--env: {item!r} is not gym.option=value, or split:gym.option=value")
        try:
            option = envs.read_options(owner, {name: text})
        except ValueError as error:
            raise ValueError(f"--env: {error}") from None
        if owner == gym and only in ("", split):
            found |= option
    return found


def make_env(s: Settings, gym: str, index: int, split: str, user) -> envs.Env:
    """The index-th task of a gym in a split, by the settings; ValueError for an option that the gym has not."""
    options = {"max_turns": s.max_turns, "persona": s.persona, "patience": s.patience, "form": s.form}
    task = None
    if s.files:
        tasks = envs.published_tasks(gym, s.files, split)
        task = tasks[index % len(tasks)]
    elif gym == "travel":
        # several tiers take turns
        tiers = envs.TRAVEL_TIERS if s.tier == "all" else s.tier.split(",")
        options["tier"] = tiers[index % len(tiers)]
        index //= len(tiers)
        options |= {"wrong": s.wrong, "noise": s.noise}
    if gym == "travel":
        options["one_choice"] = s.choice == "single"
    if gym == "tau" and s.files:
        options["data"] = s.files
    if s.classic:
        options |= {"classic": True, **CLASSIC.get((gym, split), CLASSIC.get(gym, {}))}
        if s.max_turns != Settings.max_turns:                           # what is typed counts
            options["max_turns"] = s.max_turns
    return envs.make(gym, index, split, task, user, **{**options, **env_options(s, gym, split)})


def first_envs(s: Settings) -> dict[str, envs.Env]:
    """Each gym that is evaluated, on its first held-out task: for `grpo.must_fit`, which reads the opening alone."""
    return {gym: make_env(s, gym, 0, s.split if s.files else "test", None) for gym in gym_names(s)}


def users(user: str) -> list[str]:
    """The one user of --user, or all that mix:A,B names."""
    return listed(user.removeprefix("mix:")) if user.startswith("mix:") else [user]


def check_user(s: Settings, name: str) -> None:
    """ValueError for a user that there is not.  Of a language model the version of its prompts is set."""
    kind, _, argument = name.partition(":")
    if kind == "llm" and argument:
        version = envs.prompts_version()
        if s.llm_prompts not in ("", version):
            raise ValueError(f"--llm_prompts={s.llm_prompts}: the prompts of an LLM user are of version {version} now")
        s.llm_prompts = version
        if served(argument):
            envs.Server(argument)
        if s.user == name and (s.user_noise or s.user_vague):
            raise ValueError("--user_noise and --user_vague are for the scripted user, not for llm:…")
    elif name != "scripted":
        load_user(name)


def load_user(name: str):
    """The function load_user(argument, noise, vague, device) of a user's module."""
    module, colon, _ = name.partition(":")
    if not colon or name in ("llm:", "mix:") or served(name):           # MODEL@URL without its llm:
        raise ValueError(f"--user is 'scripted', 'userlm:FOLDER', 'llm:MODEL@URL', 'llm:FOLDER', 'mix:A,B' or "
                         f"'MODULE:ARGUMENT', not {name!r}")
    return grpo.plug("user", f"{'userlm_r1' if module == 'userlm' else module}:load_user")


def served(model: str) -> bool:
    """Is that a model behind a server, and no folder?"""
    return "@http" in model


def make_user(s: Settings):
    """The user in every gym; one object for all conversations, so that a model answers them in batches."""
    made = [one_user(s, name) for name in users(s.user)]
    return envs.MixedUser(made) if s.user.startswith("mix:") else made[0]


def one_user(s: Settings, name: str):
    kind, _, argument = name.partition(":")
    if name == "scripted":
        return envs.ScriptedUser(s.user_noise, s.user_vague)
    if kind != "llm":
        return load_user(name)(argument, s.user_noise, s.user_vague, s.device or None)
    if not served(argument):
        model = LocalModel(s, argument)
        return envs.LLMUser(model.texts, s.llm_words, slow=False, costs=model.counts)
    server = envs.Server(argument, s.llm_timeout, s.llm_tries, s.llm_requests, cache=s.llm_cache)
    # a wrong address or key is said at once
    server.chat([{"role": "user", "content": "Say: ok"}], max_tokens=8, temperature=0)
    return envs.LLMUser(partial(server.texts, max_tokens=s.llm_tokens), s.llm_words, costs=server.counts)


def seated(user, *key):
    """The user of one conversation: of several, the one that is drawn by the key."""
    return user.drawn("/".join(map(str, key))) if hasattr(user, "drawn") else user


class LocalModel:
    """A checkpoint on our own engine that answers requests, many in one batch, greedily."""

    def __init__(self, s: Settings, folder: str):
        model, tokenizer = grpo.load_policy(folder, device=s.device or None)
        self.engine = grpo.Engine(model, tokenizer, rows=s.llm_requests, max_len=s.llm_context, graphs=s.graphs)
        self.tokens, self.counts = s.llm_tokens, dict.fromkeys(("requests", "completion_tokens", "seconds"), 0)

    def texts(self, talks: list[list[dict]]) -> list:
        """What it says to each talk of a system and a user message; an OSError where the talk is too long."""
        began, requests = time.time(), [Request(talk) for talk in talks]
        done = grpo.rollout(self.engine, requests, max_new_tokens=self.tokens, greedy=True) if requests else []
        self.counts["requests"] += len(talks)
        self.counts["completion_tokens"] += sum(sum(talk.mask) for talk in done)
        self.counts["seconds"] += time.time() - began
        too_long = OSError(f"a request is longer than --llm_context={self.engine.max_len}")
        return [too_long if request.text is None else request.text for request in requests]


class Request:
    """A request as an environment of one turn: how the engine answers it."""
    user = text = None

    def __init__(self, talk: list[dict]):
        self.system_prompt, self.first = (message["content"] for message in talk)

    def reset(self):
        return self.first, {}

    def turn(self, text: str):
        self.text = text
        return "", 0.0, True, False, {}
        yield                                                           # a generator, like every env's turn


def opening(env: envs.Env, first: str) -> list[dict]:
    """What stands before the agent's first turn, as chat messages."""
    return [{"role": "system", "content": env.system_prompt}, {"role": "user", "content": first}]


def exchange(env: envs.Env, action: str, feedback: str) -> list[dict]:
    """A turn and the reply to it, as chat messages."""
    heard = {"role": "tool" if env.tools else "user", "content": feedback}
    return [{"role": "assistant", "content": action}, heard]


def spoken(messages: list[dict]) -> list[list[str]]:
    """Chat messages after the system prompt as [who, text]: a gym's `history`."""
    return [["agent" if m["role"] == "assistant" else "user", m["content"]] for m in messages[1:]]


def demonstration(s: Settings, number: int, turns: int, user) -> list[dict]:
    """The first turns of the careless demonstrator on a training task of its own, as chat messages; gyms in turn."""
    gyms = trained(s)
    lap, place = divmod(number, len(gyms))
    gym = gyms[place]
    # a gym that --gyms names twice has two tasks a lap
    index = lap * gyms.count(gym) + gyms[:place].count(gym)
    env = make_env(s, gym, index % s.demos, "train", user)
    first, _ = env.reset()
    talk, over = opening(env, first), False
    while not over and env.turns < turns:
        action = envs.expert(env, slip=s.slip)
        text, _, terminated, truncated, _ = env.step(action)
        talk += exchange(env, action, text)
        over = terminated or truncated
    return talk[:-1]                                                    # nobody reads the last feedback


def drills(s: Settings, step: int, count: int, user) -> list[list[dict]]:
    """This process's short conversations of a step: a request, and up to three turns of what came later.

    They end in the gym's own format, and what they copy (a place from the request, a name from a text) is near:
    attention learns that over 50 tokens much sooner than over 500.  The distance varies.
    """
    rng, cut = random.Random(f"{s.seed}/drills/{step}/{grpo.rank()}"), []
    while len(cut) < count:
        talk = demonstration(s, rng.randrange(len(trained(s)) * s.demos), s.max_turns, user)
        said = [i for i, message in enumerate(talk) if message["role"] == "assistant"]
        for _ in range(4):
            last = rng.randrange(len(said))
            # a user's message stands before each of the agent's
            begin = said[max(0, last - rng.randrange(3))] - 1
            request = talk[1:2] if begin > 1 else []
            cut.append(request + talk[begin:said[last] + 1])
    return cut[:count]


def reference_text(s: Settings, index: int, lines: int) -> list[str]:
    """Lines of plain text that stand in for the pre-training which a model made from scratch lacks."""
    gyms = trained(s)
    return [envs.knowledge(gyms[i % len(gyms)], random.Random(f"{s.seed}/facts/{index}/{i}")) for i in range(lines)]


# ---------------------------------------------------------------------------------------------- evaluation

# Why a conversation ended: what the files say of it, and the table.
ENDINGS = {"done": "done", "truncated": "turn limit", "length": "context full", "left": "user left",
           "user_error": "user error", "agent_error": "agent failed"}


FAILED = ("user_error", "agent_error")         # neither's fault: such an episode is counted, and not scored


def ending(env: envs.Env, status: str) -> str:
    """Why a conversation ended, one of ENDINGS, from its rollout's status: only the env knows that its user left."""
    return "left" if status == "done" and env.ended == "left" else status


def counted(endings) -> dict[str, int]:
    """How many conversations ended in each way."""
    endings = list(endings)
    return {how: endings.count(how) for how in ENDINGS if how != "agent_error" or how in endings}


def average(values) -> float | None:
    """Mean of some numbers; None if there are none, or one of them is None."""
    values = list(values)
    return None if not values or None in values else sum(values) / len(values)


def interval(values: list[float]) -> dict:
    """Mean and half width of its 95 % interval."""
    mean, half = rewards.mean_ci(values) if values else (None, None)
    return {"return": mean, "ci95": half}


def summarise(gym_episodes: dict[str, list[dict]], user: str, samples: int = 1) -> dict:
    """Per gym: return with its 95 % half width, success, turns, UserRL's efficiency metrics; macro, micro averages,
    and with all eight gyms UserRL's own.

    gym_episodes: gym -> one {"task": id, "rewards": […], "solved": bool, "status": one of ENDINGS, "error": str} an
    episode, in travel also "tier" and "metrics".  Episodes whose user failed are counted, not scored; where a gym has
    no other, its numbers and the averages are None.  Intervals are over tasks: samples of one are averaged.
    """
    table = {gym: gym_summary(episodes, samples) for gym, episodes in gym_episodes.items()}
    userrl = {"userrl": userrl_average(table, gym_episodes["travel"])} if set(TEST_ROWS) <= set(table) else {}
    gyms = list(table.values())
    macro = micro = interval([])
    if all(gym["n"] for gym in gyms):
        macro = {"return": average(gym["return"] for gym in gyms),
                 "ci95": math.sqrt(sum(gym["ci95"] ** 2 for gym in gyms)) / len(gyms)}
        micro = interval([value for gym in gyms for value in gym["returns"].values()])
    return {"gyms": table, "macro": macro, "micro": micro, **userrl, "user": user}


# How many tasks UserRL tests a gym with: the weights of its average.
TEST_ROWS = {"travel": 471, "turtle": 48, "function": 78, "tau": 165, "persuade": 42, "intention": 40,
             "telepathy": 41, "search": 125}


def userrl_average(table: dict[str, dict], trips: list[dict]) -> dict:
    """UserRL's own average over all eight gyms, with its half width; None where a gym was not measured.

    Weighted by TEST_ROWS; travel counts by its score, the mean over aspects of the best answer's value.
    """
    scored = [{**e, "rewards": [e["metrics"]["score"]]} for e in trips if e["status"] not in FAILED]
    rows = {**table, "travel": gym_summary(scored, 1)}
    weight = {gym: count / sum(TEST_ROWS.values()) for gym, count in TEST_ROWS.items()}
    if not all(rows[gym]["n"] for gym in weight):
        return interval([])
    return {"return": sum(weight[gym] * rows[gym]["return"] for gym in weight),
            "ci95": math.sqrt(sum((weight[gym] * rows[gym]["ci95"]) ** 2 for gym in weight))}


def gym_summary(episodes: list[dict], samples: int) -> dict:
    """A gym's row of `summarise`."""
    scored = [e for e in episodes if e["status"] not in FAILED]
    errors, failures = ([e["error"] for e in episodes if e["status"] == whose] for whose in FAILED)
    tasks: dict[str, list] = {}
    for e in scored:
        tasks.setdefault(e["task"], []).append(e)
    returns = {task: average(sum(e["rewards"]) for e in same) for task, same in tasks.items()}
    row = {**interval(list(returns.values())),
           "success": average(e["solved"] for e in scored),
           "turns": average(len(e["rewards"]) for e in scored),
           "effective_turns": average(rewards.effective_turns(e["rewards"]) for e in scored),
           "time_weighted": average(rewards.time_weighted(e["rewards"]) for e in scored),
           "n": len(tasks), "ended": counted(e["status"] for e in episodes), "user_errors": len(errors),
           "returns": returns}
    if errors:
        row["user_error"] = errors[0]
    if failures:
        row |= {"agent_errors": len(failures), "agent_error": failures[0]}
    if samples > 1:
        whole = [same for same in tasks.values() if len(same) == samples]
        solved = [sum(e["solved"] for e in same) for same in whole]
        earned = [[sum(e["rewards"]) for e in same] for same in whole]
        row["pass_at"], row["best_at"] = {}, {}
        for k in range(1, samples + 1):
            row["pass_at"][k] = average(rewards.pass_at_k(samples, count, k) for count in solved)
            row["best_at"][k] = average(rewards.best_of_k(values, k) for values in earned)
    if scored and "metrics" in scored[0]:
        row["userbench"] = userbench(scored)
    return row


USERBENCH = {"score": "score", "best_exist": "best", "correct_exist": "correct", "valid_search": "search%",
             "valid_action": "action%", "active": "active", "passive": "passive", "first_valid": "first",
             "timing": "timing"}
USERBENCH_LEVELS = {"easy": ("22", "2222"), "medium": ("33", "233", "333"), "hard": ("44", "334", "444")}
USERBENCH_NOTE = """\
(score: mean value of the answers; best, correct: aspects with the best, with a suiting answer; search%, action%:
 moves that got the task further, of all such moves; active, passive: preferences that were asked for, volunteered;
 first: first turn, from 0, in which an option that suits was answered; timing: such turns as a share of all, each
 turn weighing 1 / (turn + 1))"""


def userbench(episodes: list[dict]) -> dict[str, dict]:
    """UserBench's metrics (arXiv 2507.22034) of travel episodes; None where there was no case.

    Rows: each tier, overall, and where there are several tiers easy, medium and hard, as far as they were played.

    Valid searches and actions are shares of all that these episodes tried, all else is a mean over episodes.
    """
    tiers = {"overall": episodes}
    for e in episodes:
        tiers.setdefault(e["tier"], []).append(e)
    for level, its in USERBENCH_LEVELS.items() if len(tiers) > 2 else []:
        some = [e for e in episodes if e["tier"] in its]
        tiers |= {level: some} if some else {}
    table = {}
    for tier, some in tiers.items():
        rows = [e["metrics"] for e in some]
        table[tier] = {"n": len(some)}
        for key in USERBENCH:
            table[tier][key] = average(row[key] for row in rows if row[key] is not None)
        for kind in ("search", "action"):
            tried = sum(row[f"tried_{kind}"] for row in rows)
            table[tier][f"valid_{kind}"] = sum(row[f"valid_{kind}"] for row in rows) / tried if tried else None
    return table


SCRIPTED = ("expert", "demonstrator")          # policies without a model; the second errs as often as --slip says


def evaluate(s: Settings, policy, user, tasks: int, split: str = "test", known=None, note=None) -> dict:
    """Play `tasks` tasks of the split a gym, each `samples` times; of the tasks of files at most as many as there are.

    policy: a grpo.Engine, an envs.Server, "expert", or "demonstrator".  Touches no random state but its own, which
    depends on the task: alone or among others, a gym plays the same.  If it could not be played to its end, "failed"
    says why, and there are no numbers.  "talks" has, per gym, the conversation on its first task: {"history": [[role,
    text], …], "rewards": […], "status": one of ENDINGS}.  note(line) hears of each episode (see `played`) when it is
    over, in the first process; known: (gym, index, sample) -> the line of one that need not be played again.
    """
    every, known = [], known or {}
    for gym in gym_names(s):
        count = min(tasks, len(envs.published_tasks(gym, s.files, split))) if s.files else tasks
        every += itertools.product([gym], range(count), range(s.samples))
    mine, failed = [], ""
    try:
        for line in played(s, policy, user, [task for task in every if task not in known][grpo.rank()::grpo.world()],
                           split):
            thoughts = open_thoughts(line["messages"])
            line |= {"open": thoughts} if thoughts else {}
            if note and not grpo.rank():
                note(line)
            if not note and (line["index"] or line["sample"]):
                del line["messages"]                                    # nobody will read it
            mine.append(line)
    except (envs.UserError, OSError, NotImplementedError) as error:     # all processes must hear of it
        failed = grpo.reason(error)
    everyone = grpo.gather([mine, failed])
    failed = max(why for _, why in everyone)
    lines = list(itertools.chain(*(theirs for theirs, _ in everyone)))
    if note:
        for line in lines[len(mine):] if not grpo.rank() else []:
            note(line)
        lines += [known[task] for task in every if task in known]
        lines.sort(key=lambda line: (line["index"], line["sample"]))
    episodes: dict[str, list] = {gym: [] for gym in gym_names(s)}
    talks = {}
    for line in lines if not failed else []:
        episodes[line["gym"]].append(line)
        if line["index"] == line["sample"] == 0 and line["messages"]:
            talks[line["gym"]] = {"history": spoken(line["messages"]), "rewards": line["rewards"],
                                  "status": line["status"]}
    scored = [line for line in lines if line["status"] not in FAILED]
    turns = sum(len(line["rewards"]) for line in scored)
    if (thoughts := sum(line.get("open", 0) for line in scored)) > turns / 10 and not grpo.rank():
        print(f"! {thoughts} of {turns} turns are a thought that was never closed: raise --max_new_tokens (now "
              f"{s.max_new_tokens}), or leave out --thinking", flush=True)
    prompts = f" (prompts {s.llm_prompts})" if s.llm_prompts else ""
    who = (f"{s.user} user{prompts}, noise {s.user_noise}, vague {s.user_vague}, persona {s.persona or 'drawn'}, "
           f"patience {s.patience or 'endless'}" + (f", {split} tasks" if split != "test" else "")
           + (", classic rules" if s.classic else "") + (f", tasks of {s.files}" if s.files else ""))
    return summarise(episodes, who, s.samples) | ({"failed": failed} if failed else {"talks": talks})


def played(s: Settings, policy, user, tasks: list[tuple], split: str):
    """Play (gym, index, sample) tasks; yields a line of talks.jsonl for each, a served model's when they are over.

    {"gym", "index", "sample", "split", "task": its id, "rewards": […], "solved", "status": one of ENDINGS, "error",
    "messages": the conversation, in form "tool" also "tools"; in travel "tier" and "metrics"}.  `evaluate` adds "open",
    how many thoughts were never closed, if any.
    """
    todo = [make_env(s, gym, index, split, seated(user, s.seed, split, gym, index, again))
            for gym, index, again in tasks]
    if policy in SCRIPTED:
        act = partial(envs.expert, slip=s.slip) if policy == "demonstrator" else envs.expert
        outcomes = enumerate(map(scripted_outcome, todo, envs.play_together(todo, act)))
    elif isinstance(policy, envs.Server):
        outcomes = served_episodes(s, policy, todo)
    else:
        # 1 is evaluation's stream of random numbers; training's are (s.seed, 3, …)
        seeds = [(1, zlib.crc32(env.task["id"].encode()), again) for env, (_, _, again) in zip(todo, tasks)]
        rollouts = grpo.rollout(policy, todo, seeds=seeds, temperature=s.eval_temperature or 1.0,
                                greedy=s.eval_temperature == 0, max_new_tokens=s.max_new_tokens)
        outcomes = enumerate((talk.messages, talk.turn_rewards, talk.status, talk.error) for talk in rollouts)
    for at, (messages, earned, status, error) in outcomes:
        env, (_, index, again) = todo[at], tasks[at]
        line = {"gym": env.name, "index": index, "sample": again, "split": split, "task": env.task["id"],
                "rewards": earned, "solved": env.solved, "status": ending(env, status), "error": error,
                "messages": messages, **({"tools": env.tools} if env.tools else {})}
        if env.name == "travel" and status not in FAILED:
            line |= {"tier": env.task["tier"], "metrics": env.metrics()}
        yield line


def scripted_outcome(env: envs.Env, earned) -> tuple[list[dict], list[float], str, str]:
    """Messages, rewards, status and error of an episode: what `envs.play_together` says of it."""
    talk = opening(env, env.history[0][1])
    for (_, action), (_, feedback) in zip(env.history[1::2], env.history[2::2]):
        talk += exchange(env, action, feedback)
    if isinstance(earned, Exception):
        return talk, [], "user_error", f"{type(earned).__name__}: {grpo.reason(earned)}"
    return talk, earned, env.ended or "done", ""


def converse(env: envs.Env, act, lock=None) -> tuple[list[dict], list[float], str, str]:
    """Messages, rewards, status and error of an episode of act(env, messages) -> what the agent says.

    OSError and UserError end it, as a failure of whom they come from.  lock: held while the env has its turn.
    """
    first, _ = env.reset()
    talk, earned, over, whose = opening(env, first), [], False, ""
    try:
        while not over:
            whose = "agent_error"
            action = act(env, talk)
            whose = "user_error"
            with lock or contextlib.nullcontext():
                text, reward, terminated, truncated, _ = env.step(action)
            talk += exchange(env, action, text)
            earned.append(reward)
            over = terminated or truncated
    except (envs.UserError, OSError) as error:
        return talk, [], whose, f"{type(error).__name__}: {grpo.reason(error)}"
    return talk, earned, env.ended or "done", ""


def served_episodes(s: Settings, server: envs.Server, todo: list[envs.Env]):
    """Episodes of a served model, --rows at once on threads: yields (position, what `converse` gives) as they end.

    When as many in a row have failed as are played at once, the server is gone, and the rest fails unasked.
    """
    waiting, over, lock = deque(enumerate(todo)), queue.SimpleQueue(), threading.Lock()

    def act(env, talk):
        if grpo.interrupted:
            raise grpo.Stop
        fields = {"tools": env.tools} if env.tools else {}
        return said_by(server.chat(wire(talk, bool(env.tools)), max_tokens=s.max_new_tokens,
                                   temperature=s.eval_temperature, **fields))

    def work():
        with contextlib.suppress(IndexError):                           # when nobody waits any more
            while True:
                at, env = waiting.popleft()
                try:
                    # a user that is a model of ours answers one thread at a time
                    over.put((at, converse(env, act, None if getattr(env.user, "slow", False) else lock)))
                except BaseException as error:
                    over.put((at, error))

    def ended():
        at, outcome = over.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return at, outcome
    threads = min(s.rows, len(todo))
    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()              # Ctrl-C, twice, waits for no server
    failures, began = 0, time.time()
    try:
        for count in range(1, len(todo) + 1):
            at, outcome = ended()
            yield at, outcome
            failures = failures + 1 if outcome[2] == "agent_error" else 0
            if failures >= max(threads, 8):
                unasked = []
                with contextlib.suppress(IndexError):                   # the threads take from it, too
                    while True:
                        unasked.append(waiting.popleft())
                yield from ((at, ([], [], *outcome[2:])) for at, _ in unasked)
                for _ in range(len(todo) - count - len(unasked)):       # those that are still under way
                    yield ended()
                return
            if count % max(1, len(todo) // 10) == 0:
                print(f"   {count} of {len(todo)} conversations, {grpo.clock(time.time() - began)} minutes", flush=True)
    finally:
        lock.acquire()                  # a model of ours that still answers when Python ends would abort it


def wire(talk: list[dict], tools: bool) -> list[dict]:
    """A conversation as an OpenAI-compatible server takes it: without thoughts; calls of tools in a field of their own.

    Where a turn is no call that can be read, the reply to it comes from the user: a server takes no other.
    """
    messages: list[dict] = []
    for i, m in enumerate(talk):
        role, text = m["role"], m["content"]
        if role == "assistant":
            text = text.rpartition("</think>")[2].strip()
            text = "" if text.startswith("<think>") else text
            before, tag, after = text.partition("<tool_call>")
            try:
                call, _ = json.JSONDecoder().raw_decode(after.strip()) if tag and tools else ({}, 0)
                function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
                calls = [{"id": f"call_{i}", "type": "function", "function": function}]
                messages.append({"role": role, "content": before.strip(), "tool_calls": calls})
                continue
            except (ValueError, LookupError, TypeError, RecursionError):
                pass
        if role == "tool" and "tool_calls" in messages[-1]:
            messages.append({"role": role, "tool_call_id": f"call_{i - 1}", "content": text})
            continue
        messages.append({"role": "user" if role == "tool" else role, "content": text})
    return messages


def said_by(message: dict) -> str:
    """What a server's message says, as one text: its thought, its words, and its first call of a tool.

    A thought that nothing follows was cut short, and stays open: see `open_thoughts`.
    """
    text = message.get("content") or ""
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and "</think>" not in text:
        end = f"\n</think>\n\n{text}" if text or message.get("tool_calls") else ""
        text = f"<think>\n{thought.strip()}{end}"
    with contextlib.suppress(LookupError, TypeError):                   # calls that are none
        function = message["tool_calls"][0]["function"]
        call = {"name": function["name"], "arguments": function["arguments"]}
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            call["arguments"] = json.loads(call["arguments"])
        text += f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    return envs.well_formed(text)


def open_thoughts(messages: list[dict]) -> int:
    """How many turns are a thought that was never closed."""
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    return sum(text.lstrip().startswith("<think>") and "</think>" not in text for text in said)


def shown(x: dict) -> str:
    """An `interval`: "0.512 ± 0.048"; "0.512" of a single task, or "-"."""
    return "-" if x["return"] is None else plus_minus(x["return"], x["ci95"])


def plus_minus(mean: float, half: float, sign: str = "") -> str:
    """A mean and half of its interval, which one number alone has not."""
    return f"{mean:{sign}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def percent(ended: dict[str, int], how: str) -> str:
    """Share of the conversations that ended so."""
    every = sum(ended.values())
    return f"{100 * ended[how] / every:.0f} %" if every else "-"


def short(name: str, width: int = 16) -> str:
    """A long name without its middle: both ends of a path tell policies apart."""
    half = width // 2
    return name if len(name) <= width else f"{name[:half - 1]}…{name[-half:]}"


# What the tasks of a split are called.
TASKS = {"test": "held-out tasks", "val": "validation tasks", "train": "training tasks"}


def tasks_of(settings: dict) -> str:
    """What a run, or a study, was measured on; older studies do not say."""
    return TASKS.get(f"{settings.get('split')}", TASKS["test"])


def print_table(columns: dict[str, dict], split: str = "test") -> None:
    """Mean return on a split's tasks, a column a policy, a row a gym; then what only some evaluations have."""
    def line(title, cells):
        print(f"{title:28}" + "".join(f"{cell:>17}" for cell in cells))
    several = list(columns.values())
    print()
    line(f"return on {TASKS[split]}", [short(re.sub("@https?://.*", "…", name)) for name in columns])
    for gym in several[-1]["gyms"]:
        n = max(c["gyms"][gym]["n"] for c in several)
        line(f"{gym} ({n} tasks)", [shown(c["gyms"][gym]) for c in several])
    for kind in ("macro", "micro"):
        line(f"{kind} average", [shown(c[kind]) for c in several])
    if all("userrl" in c for c in several):
        line("UserRL's own average", [shown(c["userrl"]) for c in several])
    solved = [average(row["success"] for row in c["gyms"].values()) for c in several]
    line("tasks solved", ["-" if share is None else f"{100 * share:.0f} %" for share in solved])
    ended = [{how: sum(row["ended"].get(how, 0) for row in c["gyms"].values()) for how in ENDINGS} for c in several]
    for how, words in ENDINGS.items():
        if how != "done" and any(counts[how] for counts in ended):
            line(f"ended: {words}", [percent(counts, how) for counts in ended])
    users = {name: column["user"] for name, column in columns.items()}
    if len(set(users.values())) == 1:
        print(f"({users.popitem()[1]}; ± is half a 95 % interval over the tasks)")
    else:
        print("\n".join(f"({short(name)}: {user})" for name, user in users.items()))
        print("(± is half a 95 % interval over the tasks)")
    for name, column in columns.items():
        if "failed" in column:
            print(f"{name}: not measured: {column['failed']}")
        for gym, row in column["gyms"].items():
            if row["n"] and "pass_at" in row and None not in row["pass_at"].values():
                print(f"{name}, {gym}: " + ", ".join(f"pass@{k} {p:.3f}" for k, p in row["pass_at"].items()))
                print(f"{name}, {gym}: " + ", ".join(f"best@{k} {r:.3f}" for k, r in row["best_at"].items()))
            if row["user_errors"]:
                print(f"{name}, {gym}: {row['user_errors']} episodes left out, their user failed: {row['user_error']}")
            if "agent_error" in row:
                print(f"{name}, {gym}: {row['agent_errors']} episodes failed, not counted as 0: {row['agent_error']}")


def print_userbench(table: dict[str, dict]) -> None:
    """UserBench's metrics, a row a tier."""
    print(f"\n{'UserBench, tier':16}{'n':>6}" + "".join(f"{title:>9}" for title in USERBENCH.values()))
    levels = [level for level in USERBENCH_LEVELS if level in table] + ["overall"]
    for tier in sorted(set(table) - set(levels)) + levels:
        cells = ["-" if table[tier][key] is None else f"{table[tier][key]:.3f}" for key in USERBENCH]
        print(f"{tier:16}{table[tier]['n']:6d}" + "".join(f"{cell:>9}" for cell in cells))
    print(USERBENCH_NOTE)


# ---------------------------------------------------------------------------------------------- files of conversations

def file_lines(path):
    """(where, object) of each line of JSON Lines, or each entry of a JSON list; ValueError says where it is bad."""
    try:
        about = Path(path).stat()
        if not Path(path).is_file() or about.st_size > envs.MAX_FILE:
            raise ValueError(f"{path} must be a file of at most {envs.MAX_FILE >> 20} MB")
        text = envs.well_formed(Path(path).read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', '') or error}") from None
    rows, where = [], path
    try:
        if text.lstrip().startswith("["):
            rows = [(f"{path}: entry {i}", entry) for i, entry in enumerate(json.loads(text))]
        else:
            for i, line in enumerate(text.split("\n"), 1):
                where = f"{path}, line {i}"
                rows += [(where, json.loads(line))] if line.strip() else []
    except (ValueError, RecursionError) as error:
        where = f"{path}, line {error.lineno}" if text.lstrip().startswith("[") and hasattr(error, "lineno") else where
        raise ValueError(f"{where}: not JSON: {getattr(error, 'msg', 'nested too deeply')}") from None
    for where, entry in rows:
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: must be an object")
    return rows


def read_talks(path: str) -> list[dict]:
    """Conversations to imitate, {"messages", "tools", and what talks.jsonl has: "task", "gym", "rewards", "solved"}.

    From JSON Lines or a JSON list of our own talks.jsonl, or of ShareGPT as UserRL has it: {"conversations": [{"from":
    human | gpt | function_call | observation, "value": text}], "system": text, "tools": JSON of schemas}.
    """
    talks = []
    for where, entry in file_lines(path):
        try:
            sharegpt = "conversations" in entry
            messages = sharegpt_messages(entry) if sharegpt else own_messages(entry)
            roles = [m["role"] for m in messages]
            if "assistant" not in roles[1:] or roles[0] == "assistant":
                raise ValueError("nobody speaks before the agent, or the agent says nothing")
            talks.append({**({} if sharegpt else entry), "messages": messages, "tools": read_tools(entry.get("tools"))})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not talks:
        raise ValueError(f"{path} holds no conversation")
    return talks


def own_messages(entry: dict) -> list[dict]:
    """The messages of a line of talks.jsonl, checked."""
    messages = envs.need(entry, "messages", list)
    for m in messages:
        if envs.need(m, "role", str) not in ("system", "user", "assistant", "tool"):
            raise ValueError(f"role {m['role']!r} is none of system, user, assistant, tool")
        envs.need(m, "content", str)
    return messages or [{"role": "assistant"}]


SHAREGPT = {"system": "system", "human": "user", "gpt": "assistant", "function_call": "assistant",
            "observation": "tool"}


def sharegpt_messages(entry: dict) -> list[dict]:
    """The chat messages of a ShareGPT entry; what a model says and the call that follows are one turn."""
    system = entry.get("system") or ""
    messages = [{"role": "system", "content": envs.need(entry, "system", str)}] if system else []
    for turn in envs.need(entry, "conversations", list):
        who, text = envs.need(turn, "from", str), envs.need(turn, "value", str)
        if who not in SHAREGPT:
            raise ValueError(f"from {who!r} is none of {', '.join(SHAREGPT)}")
        if who == "function_call":
            thought, end, call = text.rpartition("</think>")
            text = thought + end + "\n" * bool(end) + read_call(call)
        if messages and messages[-1]["role"] == SHAREGPT[who] == "assistant":
            messages[-1]["content"] += "\n" + text
        else:
            messages.append({"role": SHAREGPT[who], "content": text})
    return messages or [{"role": "assistant"}]


def read_call(text: str) -> str:
    """A ShareGPT call of a tool, or a list of them, in the form that a model writes."""
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"a function_call is JSON, not {text:.40}") from None
    calls = calls if isinstance(calls, list) else [calls]
    for call in calls:
        envs.need(call, "name", str)
    return "\n".join(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls)


def read_tools(tools) -> list[dict] | None:
    """Schemas of tools as {"type": "function", "function": …}, from a list of such or bare ones, or its JSON."""
    try:
        tools = json.loads(tools or "null") if isinstance(tools, str) else tools
    except (ValueError, RecursionError):
        raise ValueError("tools must be JSON") from None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise ValueError("tools must be a list")
    schemas = [tool.get("function", tool) if isinstance(tool, dict) else tool for tool in tools]
    for schema in schemas:
        envs.need(schema, "name", str)
    return [{"type": "function", "function": schema} for schema in schemas]


def earned_of(talk: dict) -> float | None:
    """What a conversation of a file earned; None if the file does not say so in numbers."""
    earned = talk.get("rewards")
    whole = isinstance(earned, list) and all(isinstance(reward, (int, float)) for reward in earned)
    return sum(earned) if whole else None


def kept(talks: list[dict], keep: str) -> list[dict]:
    """The conversations that --keep names, rule after rule: the rest of rejection sampling."""
    for rule in listed(keep):
        name, _, number = rule.partition(":")
        if not (rule == "solved" or name == "top" and re.fullmatch("[1-9][0-9]*", number)
                or name == "least" and re.fullmatch(r"-?[0-9]*\.?[0-9]+", number)):
            raise ValueError(f"--keep: {rule!r} is not top:N, solved or least:X")
        if not all(earned_of(t) is not None and {"gym", "task", "solved"} <= t.keys() for t in talks):
            raise ValueError("--keep goes by the rewards in talks.jsonl: this file has none")
        if rule == "solved":
            talks = [talk for talk in talks if talk["solved"]]
        elif name == "least":
            talks = [talk for talk in talks if earned_of(talk) >= float(number)]
        else:
            tasks: dict[tuple, list] = {}
            for talk in talks:
                tasks.setdefault((talk["gym"], talk["task"]), []).append(talk)
            best = (sorted(same, key=earned_of, reverse=True) for same in tasks.values())
            talks = list(itertools.chain(*(same[:int(number)] for same in best)))
    return talks


def encoded(s: Settings, tokenizer, talks: list[dict]) -> list:
    """The conversations of --data as trajectories; ValueError if --context leaves none."""
    trajectories = [grpo.demo_trajectory(tokenizer, talk["messages"], talk["tools"]) for talk in talks]
    fit = [traj for traj in trajectories if len(traj.ids) <= s.context]
    if not fit:
        raise ValueError(f"--data: of {len(talks)} conversations none fits into --context={s.context}")
    tokens = sum(len(traj.ids) for traj in fit)
    if grpo.rank() == 0:
        lap = math.ceil(tokens / s.sft_tokens)
        print(f"{len(fit)} conversations, {tokens} tokens: once through them takes {lap} steps")
        if len(fit) < len(talks):
            print(f"! {len(talks) - len(fit)} more are longer than --context={s.context} and left out")
        if bool(talks[0]["tools"]) != (s.form == "tool"):
            print(f"! they are {'' if talks[0]['tools'] else 'not '}in form tool, the evaluation is in form {s.form}: "
                  "see --form")
    return fit


@lru_cache(maxsize=2)
def shuffled(seed: int, lap: int, count: int) -> list[int]:
    """The order in which so many conversations are read the lap-th time."""
    return random.Random(f"{seed}/data/{lap}").sample(range(count), count)


def file_lesson(s: Settings, talks: list, step: int, number: int) -> tuple[list, int]:
    """As `lesson`, from the conversations of --data: each once, in an order of its own, then all again in another."""
    batch, used = [], 0
    while used < s.sft_tokens / grpo.world():
        lap, place = divmod(number, len(talks))
        batch.append(talks[shuffled(s.seed, lap, len(talks))[place]])
        used += len(batch[-1].ids)
        number += grpo.world()
    return batch, number


# ---------------------------------------------------------------------------------------------- cold start

def lesson(s: Settings, tokenizer, user, step: int, number: int) -> tuple[list, int]:
    """This process's trajectories of an SFT step, and the number of its next demonstration: each is of a new task.

    A model made from scratch first reads plain text and drills; then it also meets the demonstrations, one turn of
    each at first and all only towards the end.
    """
    progress, turns, lines, pieces = 1.0, 10_000, 0, 0
    if s.model == "tiny":
        progress = (step / s.sft_steps - s.reading) / (1 - s.reading)   # negative: only reading
        turns = 1 + int(20 * progress**2)
        lines, pieces = (s.facts, s.drills) if progress <= 0 else (s.facts // 2, s.drills * 3 // 4)
    mine = reference_text(s, step, lines)[grpo.rank()::grpo.world()]
    batch = [grpo.text_trajectory(tokenizer, line) for line in mine]
    for talk in drills(s, step, pieces // grpo.world(), user):
        batch.append(grpo.demo_trajectory(tokenizer, talk))
    used = 0
    while progress > 0 and used < s.sft_tokens / grpo.world():
        batch.append(grpo.demo_trajectory(tokenizer, demonstration(s, number, turns, user)))
        used += len(batch[-1].ids)
        number += grpo.world()
    return batch, number


# ---------------------------------------------------------------------------------------------- GRPO

def deal(s: Settings, mixture: dict, tasks: int) -> list[tuple[str, int]]:
    """(gym, index) of the next tasks; `mixture` remembers, so that a resumed run goes on as if never stopped.

    "signal" deals in proportion to how much a task's rollouts differed lately (the mean std of a group's returns):
    what always fails or always succeeds teaches nothing.  Every gym keeps a twentieth of the most, to be noticed.
    """
    gyms = trained(s)
    dealt, spread, credit = (mixture.setdefault(key, {}) for key in ("dealt", "spread", "credit"))
    top = max(spread.get(gym, 1.0) for gym in gyms) or 1.0
    weight = {}
    for gym in gyms:
        signal = max(spread.get(gym, 1.0), top / 20) if s.mixture == "signal" else 1.0
        weight[gym] = gyms.count(gym) * signal
    total = sum(weight.values())
    drawn = []
    for _ in range(tasks):                                              # smooth weighted round robin
        for gym in weight:
            credit[gym] = credit.get(gym, 0.0) + weight[gym] / total
        gym = max(weight, key=credit.get)
        credit[gym] -= 1.0
        drawn.append((gym, s.demos + dealt.get(gym, 0)))
        dealt[gym] = dealt.get(gym, 0) + 1
    return drawn


def roll(s: Settings, engine, user, tasks: list[tuple[str, int]], times: dict) -> list:
    """This process's share of the rollouts of some tasks; whole groups, so that none is split."""
    todo, groups, seeds = [], [], []
    for gym, index in tasks[grpo.rank()::grpo.world()]:
        group = f"{gym}-{index}"
        todo += [make_env(s, gym, index, "train", seated(user, s.seed, group, i)) for i in range(s.group)]
        groups += [group] * s.group
        seeds += [(s.seed, 3, zlib.crc32(group.encode()), i) for i in range(s.group)]
    talks = grpo.rollout(engine, todo, groups=groups, seeds=seeds, temperature=s.temperature,
                         max_new_tokens=s.max_new_tokens, clock=times)
    for talk, env in zip(talks, todo):
        talk.gym, talk.status = env.name, ending(env, talk.status)
    return talks


def collect(s: Settings, engine, user, mixture: dict, times: dict):
    """This process's share of a step's rollouts: (trajectories, their advantages, groups with a signal, counts).

    Trajectories whose user failed are left out: that was not a wrong move.  Groups without a signal (every
    advantage 0) are counted and not trained on; with --resample, other tasks are drawn in their place.  The counts
    are of all processes: groups, dead ones, how the conversations ended, the first reason of a user that failed.
    """
    talks, endings, broken, groups, alive = [], [], [], 0, 0
    for _ in range(1 + s.resample):
        tasks = deal(s, mixture, s.tasks - alive)
        groups += len(tasks)
        for talk in roll(s, engine, user, tasks, times):
            endings.append(talk.status)
            if talk.status == "user_error":
                broken.append(talk.error)
            elif talk.turn_rewards:
                talks.append(talk)
        advantages = rewards.turn_advantages(
            [t.turn_rewards for t in talks], [t.tokens for t in talks], [t.group for t in talks],
            s.turn, s.trajectory, s.combine, s.gamma, s.k, s.normalize)
        signals = sorted({t.group for t, a in zip(talks, advantages) if any(a)})
        alive = int(grpo.summed([len(signals)])[0])
        if alive == s.tasks:
            break
    errors = list(itertools.chain(*grpo.gather(broken)))
    ended = counted(itertools.chain(*grpo.gather(endings)))
    counts = {"groups": groups, "dead": groups - alive, "ended": ended, "reason": (errors or [""])[0]}
    return talks, advantages, signals, counts


def update(run: grpo.Run, reference, step: int, talks, advantages, signals: list) -> dict:
    """`updates` optimiser steps on a step's rollouts, each on whole groups (half of one is biased); their metrics."""
    s = run.s
    lr = grpo.lr_schedule(step - 1, s.steps, s.lr, warmup=s.warmup, kind=s.decay)
    rows = []
    for part in range(s.updates):
        groups = set(signals[part::s.updates])
        picked = [i for i, talk in enumerate(talks) if talk.group in groups]
        if not grpo.summed([len(picked)])[0]:                           # the processes step together, or not at all
            continue
        batch = [talks[i] for i in picked]
        ref_logps = reference(batch) if s.kl else None
        rows.append(grpo.grpo_step(
            run.model, run.optimizer, batch, [advantages[i] for i in picked], lr=lr, temperature=s.temperature,
            clip_low=s.clip_low, clip_high=s.clip_high, clip_dual=s.clip_dual, kl_coef=s.kl, ref_logps=ref_logps,
            gspo=s.ratio == "sequence", aggregate=s.aggregate, echo=s.echo, micro_tokens=s.micro_tokens,
            constant_tokens=s.max_turns * s.max_new_tokens))            # Dr. GRPO's divisor: the longest there can be
    merge = {"ratio_max": np.max, "skipped": np.sum, "tokens": np.sum}
    return {key: float(merge.get(key, np.mean)([row[key] for row in rows])) for key in (rows[0] if rows else {})}


def remember_spread(mixture: dict, talks) -> None:
    """How much the returns of a group differ, a running mean per gym: what `deal` goes by."""
    groups: dict[tuple, list] = {}
    for talk in talks:
        groups.setdefault((talk.gym, talk.group), []).append(sum(talk.turn_rewards))
    mine = [(gym, float(np.std(returns))) for (gym, _), returns in groups.items()]
    everyone = itertools.chain(*grpo.gather(mine))
    for gym, spread in sorted(map(tuple, everyone)):
        mixture["spread"][gym] = 0.8 * mixture["spread"].get(gym, spread) + 0.2 * spread


def step_row(s: Settings, talks, counts: dict) -> dict:
    """What a step's rollouts earned, over all processes; None for a gym without a task in it."""
    mine = [(t.gym, sum(t.turn_rewards), len(t.turn_rewards)) for t in talks]
    everyone = list(itertools.chain(*grpo.gather(mine)))

    def mean(values):
        return float(np.mean(values)) if values else None
    gyms = {gym: mean([earned for name, earned, _ in everyone if name == gym]) for gym in dict.fromkeys(trained(s))}
    row = {"return": mean([earned for _, earned, _ in everyone]) or 0.0, **gyms,
           "dead": counts["dead"] / counts["groups"], "ended": counts["ended"],
           "turns": mean([turns for *_, turns in everyone]) or 0.0}
    [thoughts] = grpo.summed([sum(open_thoughts(talk.messages) for talk in talks)])
    return {**row, "open_thoughts": thoughts / sum(turns for *_, turns in everyone)} if thoughts else row


def per_gym(row: dict) -> str:
    """What each gym earned, in one glance: "trav 0.03 turt    - func 0.12"."""
    earned = []
    for gym in envs.GYMS:
        if gym in row:
            earned.append(f"{gym[:4]} " + ("   -" if row[gym] is None else f"{row[gym]:4.2f}"))
    return " ".join(earned)


def step_line(row: dict, counts: dict) -> str:
    """A step's row as a line of an instrument; kl old: sampler against policy, kl ref: to the reference."""
    ref = f" kl ref {row['kl_ref']:7.1e}" if "kl_ref" in row else ""
    ended = ""
    for how in ("truncated", "length", "left"):
        if row["ended"][how]:
            ended += f", {ENDINGS[how]} {percent(row['ended'], how)}"
    line = (f"return {row['return']:6.3f} ({per_gym(row)}) | dead {100 * row['dead']:3.0f} % "
            f"turns {row['turns']:4.1f}{ended} | kl old {row.get('kl', 0):7.1e}{ref} "
            f"clip {row.get('clip_frac', 0):4.2f} grad {row.get('grad_norm', 0):5.2f} ent {row.get('entropy', 0):4.2f}")
    if failed := row["ended"]["user_error"]:
        line += f" | the user failed {failed} times: {counts['reason']}"
    return line


ALARM_EVERY = 10                                # RL steps: what stays wrong is said again, but not at every step


def alarms(rows: list[dict], s: Settings) -> list[str]:
    """What has gone wrong by the last of the rows, a line each, and what to try.  rows: all RL steps, as logged."""
    lines, recent = [], rows[-5:]
    if len(recent) < 5:
        return lines
    entropy = [row["entropy"] for row in rows if "entropy" in row]      # a step without any signal has none
    first, last = average(entropy[:5]), average(entropy[-5:])
    if len(entropy) >= 10 and last < 0.05 and last < first / 10:
        lines.append(f"entropy collapsed, from {first:.2f} to {last:.3f}: nothing new is tried; raise --kl or "
                     "--clip_high, or lower --lr and --gain")
    change, error = trend(rows[-30:])
    if len(rows) >= 20 and change < -2 * error:
        lines.append(f"returns fall, by {-change:.3f} ± {error:.3f} in {len(rows[-30:])} steps: lower --lr or raise "
                     "--kl, and go on from the best policy of --eval_every")
    dead = average(row["dead"] for row in recent)
    if dead >= 0.75:
        lines.append(f"{100 * dead:.0f} % of the groups are dead, their rollouts all earn the same: raise --group, "
                     "--resample or --temperature, or make the cold start longer (--sft_steps)")
    kl = average(row.get("kl", 0.0) for row in recent)
    if s.updates == 1 and kl > 1e-3:
        lines.append(f"sampler and trainer disagree, kl old {kl:.1e} in place of about 0: use a checkpoint in float32, "
                     "or --ratio=sequence")
    if (thoughts := average(row.get("open_thoughts", 0.0) for row in recent)) > 0.1:
        lines.append(f"{100 * thoughts:.0f} % of the turns are a thought that was never closed: raise --max_new_tokens "
                     f"(now {s.max_new_tokens}), or leave out --thinking")
    failed = sum(row["ended"]["user_error"] for row in recent) / sum(sum(row["ended"].values()) for row in recent)
    if failed >= 0.25:
        lines.append(f"the user failed in {100 * failed:.0f} % of the conversations, which are lost: mend it, ask it "
                     "less at once (--rows), or take --user=scripted")
    return lines


def trend(rows: list[dict]) -> tuple[float, float]:
    """How much returns rose from the first third of the rows to the last, a mean over gyms, and its standard error.

    Gym by gym, because the mixture of tasks changes; of a gym without two steps in each third nothing is known.
    """
    third, rises, variances = len(rows) // 3, [], []
    for gym in envs.GYMS:
        early, late = ([row[gym] for row in part if row.get(gym) is not None] for part in (rows[:third], rows[-third:]))
        if min(len(early), len(late)) >= 2:
            rises.append(average(late) - average(early))
            variances.append(np.var(early, ddof=1) / len(early) + np.var(late, ddof=1) / len(late))
    return (average(rises), math.sqrt(sum(variances)) / len(rises)) if rises else (0.0, 0.0)


def logged_steps(run: grpo.Run) -> list[dict]:
    """The RL steps of metrics.jsonl, where a resumed run goes on."""
    return [row for row in read_log(run.path / "metrics.jsonl") if row.get("phase") == "rl"]


def validate(run: grpo.Run, user, step: int, val: dict) -> dict:
    """Play validation tasks of the trained gyms, log what they earn, and keep the policy in best/ if it is the best.

    val: what this returned the time before, {} at first: {"best": macro return, "step": its step, "last": the latest}.
    """
    s, began, note = run.s, time.time(), ""
    result = evaluate(replace(s, gyms=",".join(trained(s)), samples=1), run.engine, user, s.val_tasks, "val")
    row = {**result["macro"], **{gym: numbers["return"] for gym, numbers in result["gyms"].items()}}
    run.log_step("val", step, row, began, {})
    val = {**val, "last": row["return"]}
    if "failed" in result:
        note = f" | not measured: {result['failed']}"
    elif row["return"] is not None and row["return"] > val.get("best", -math.inf):
        note = " | the best so far"
        val |= {"best": row["return"], "step": step}
        if run.writes:
            grpo.save_checkpoint(run.path / "best", run.model, run.tokenizer, state={"phase": "val", **val})
    print(f"val {step:3d}/{s.steps} | return {shown(row)} ({per_gym(row)}) on validation tasks{note}", flush=True)
    return val


def train_rl(run: grpo.Run, user, first: int) -> None:
    """GRPO: collect rollouts, give every turn its advantage, take `updates` clipped steps; now and then validate."""
    s, since = run.s, time.time()
    reference = grpo.reference_policy(run) if s.kl else None
    mixture, val = run.state.get("mixture", {}), run.state.get("val", {})
    if s.eval_every and not first:
        val = validate(run, user, 0, val)
    rows = logged_steps(run) if first and run.writes else []
    for step in range(first + 1, s.steps + 1):
        began, times = time.time(), {}
        talks, advantages, signals, counts = collect(s, run.engine, user, mixture, times)
        times |= {"rollout": time.time() - began, "rollout_gb": grpo.phase_gb()}
        metrics = update(run, reference, step, talks, advantages, signals)
        remember_spread(mixture, talks)
        row = {**step_row(s, talks, counts), **metrics}
        rows.append(row)
        seconds, gb = run.log_step("rl", step, row, began, times)
        speed = grpo.summed([times.get("sampled", 0)])[0] / max(times["rollout"], 1e-9)
        left = grpo.time_left(since, step - first, s.steps - first)
        print(f"rl {step:4d}/{s.steps} | {step_line(row, counts)} | {speed:5.0f} tok/s {seconds:4.1f} s "
              f"GB {times['rollout_gb']:4.2f} rollout {gb:4.2f} update | "
              f"{left} left", flush=True)
        for line in alarms(rows, s) if step % ALARM_EVERY == 0 else []:
            print(f"   ! {line}", flush=True)
        if step % s.sample_every == 0 or step == 1:
            log_samples(run, step, talks, advantages, signals)
            if talks:
                show_sample(talks[step % len(talks)], advantages[step % len(talks)])
        if s.eval_every and (step % s.eval_every == 0 or step == s.steps):
            val = validate(run, user, step, val)
        run.finish_step(step, s.steps, "rl", mixture=mixture, val=val)


def log_samples(run: grpo.Run, step: int, talks, advantages, signals: list) -> None:
    """Write conversations to samples.jsonl: of each gym a whole group, because an advantage compares within its group.

    Of the groups of a gym it is the one that `show_sample` prints from, else one with a signal, else any.
    """
    shown = talks[step % len(talks)].group if talks else None
    members: dict[str, list[int]] = {}
    for i, talk in enumerate(talks):
        members.setdefault(talk.group, []).append(i)
    mine: dict[str, list[dict]] = {}
    for group in sorted(members, key=lambda group: (group != shown, group not in signals)):
        rows = [sample_row(run.s, step, talks[i], advantages[i], len(members[group])) for i in members[group]]
        mine.setdefault(rows[0]["gym"], rows)
    picked: dict[str, list[dict]] = {}
    for theirs in grpo.gather(mine):
        picked = {**theirs, **picked}
    for row in itertools.chain(*picked.values()):
        run.log("samples.jsonl", row)


def sample_row(s: Settings, step: int, talk, advantages: list[float], rollouts: int) -> dict:
    """A conversation of a group of so many rollouts, as samples.jsonl has it: lists with an entry per turn."""
    turn = "r2g" if s.combine == "loo" else s.turn          # what loo reads, whatever --turn says
    hidden = [info["hidden"] for info in talk.infos]
    return {
        "phase": "rl", "step": step, "gym": talk.gym, "group": talk.group, "of": rollouts, "status": talk.status,
        "messages": talk.messages, "rewards": talk.turn_rewards, "tokens": talk.tokens, "advantages": advantages,
        "credits": rewards.turn_credits(talk.turn_rewards, turn, s.gamma, s.k),
        "thoughts": [secret.get("user's thought") or secret.get("thought", "") for secret in hidden],
        "hidden": hidden[-1]}


def show_sample(talk, advantages: list[float]) -> None:
    """Print a conversation, with each turn's reward and advantage."""
    print(f"   .-- a {talk.gym} conversation ({talk.status}); reward and advantage of each turn on the right")
    earned = [f"{reward:5.2f} {advantage:+6.2f}" for reward, advantage in zip(talk.turn_rewards, advantages)]
    for line in talk_lines(spoken(talk.messages), earned):
        print(f"   | {line}")
    print("   '--", flush=True)


def talk_lines(history, notes: list[str], width: int = 88) -> list[str]:
    """A conversation, a line a message, its text cut to `width`; beside each turn of the agent one of the notes."""
    lines, notes = [], iter(notes)
    for role, text in history:
        text, *more = grpo.printable(text).split("\n")
        text = (text + (f" … (+{len(more)} lines)" if more else ""))[:width]
        note = next(notes, "") if role == "agent" else ""
        lines.append(f"{role:5} {text:{width}} {note}".rstrip())
    return lines


def before_and_after(run: grpo.Run) -> None:
    """Print one held-out task as it went before RL and after: the first one of the gym in which RL gained most."""
    talks, gain = run.read("talks.json", {}), {}
    before = next((name for name in ("SFT", "start", "untrained") if name in run.evals), None)
    if not before or "RL" not in run.evals:
        return
    names = before, "RL"
    for gym, row in run.evals["RL"]["gyms"].items():
        returns = [run.evals[name]["gyms"][gym]["return"] for name in names]
        if None not in returns and all(gym in talks.get(name, {}) for name in names):
            gain[gym] = returns[1] - returns[0]
    if not gain:
        return
    gym = max(gain, key=gain.get)
    print(f"\nRL gained most in {gym} ({gain[gym]:+.3f} a task). First held-out task, before and after, with rewards:")
    for name in names:
        talk = talks[name][gym]
        lines = talk_lines(talk["history"], [f"{reward:5.2f}" for reward in talk["rewards"]], 84)
        if len(lines) > 13:
            lines[7:-5] = [f"… {len(lines) - 12} more lines"]
        print(f"{name}: return {sum(talk['rewards']):.2f}, ended: {ENDINGS[talk['status']]}")
        print("\n".join(f"  {line}" for line in lines), flush=True)


# ---------------------------------------------------------------------------------------------- commands

def measure(run: grpo.Run, policy, user, label: str) -> None:
    """Evaluate a policy, once, and say so; again where no conversation of a gym could be scored."""
    s, tasks, keeps = run.s, run.s.eval_tasks, {}
    if label in run.evals and run.evals[label]["macro"]["return"] is None:
        del run.evals[label]
    if label == "untrained":                                            # it rambles to every limit
        tasks = math.ceil(tasks / 16)

    def take():
        if s.save_talks or isinstance(policy, envs.Server):
            [lines, *_] = grpo.gather([] if grpo.rank() else old_talks(run, label))
            keeps["known"] = {(line["gym"], line["index"], line["sample"]): line for line in lines}
            keeps["note"] = partial(note_talk, run, label)
        result = evaluate(s, policy, user, tasks, s.split, **keeps)
        if counts := user_counts(user):
            result["user_counts"] = counts
        run.write("talks.json", {**run.read("talks.json", {}), label: result.pop("talks", {})})
        return result
    result = run.evaluate(label, take)
    failed = f" (not measured: {result['failed']})" if "failed" in result else ""
    print(f"-- {label}: macro-average return {shown(result['macro'])} on {TASKS[s.split]}{failed}, "
          f"{grpo.phase_gb():.2f} GB", flush=True)
    if "user_counts" in result:
        told = (f"{name.replace('_', ' ')} {count:.0f}" for name, count in user_counts(user).items())
        print("   the LLM user so far: " + ", ".join(told), flush=True)
    spoken, replaced = user_sums(user, ("spoken", "replaced"))
    if spoken:
        print(f"   so far the user model spoke {spoken:.0f} times; {100 * replaced / spoken:.1f} % were unfit and said "
              "by the rules", flush=True)


TALKS = "talks.jsonl"


def old_talks(run: grpo.Run, label: str) -> list[dict]:
    """What talks.jsonl has of a policy.  Its last line is dropped if a kill cut it short."""
    file = run.path / TALKS
    whole = file.read_bytes() if file.exists() else b""
    if not whole.endswith(b"\n") and whole:
        os.truncate(file, whole.rfind(b"\n") + 1)
    lines = []
    for where, line in file_lines(file) if file.exists() else []:
        if not {"policy", "gym", "index", "sample", "task", "status", "rewards", "solved"} <= line.keys():
            raise ValueError(f"{where}: no conversation of an evaluation")
        lines.append(line)
    return [line for line in lines if line["policy"] == label and line.get("split") == run.s.split]


def note_talk(run: grpo.Run, label: str, line: dict) -> None:
    """Keep a conversation in talks.jsonl, unless somebody failed in it: then it will be played again."""
    if line["status"] not in FAILED:
        run.log(TALKS, {"policy": label, **line})


def user_sums(user, names) -> list[float]:
    """What the users of all processes have counted so far."""
    return grpo.summed([sum(getattr(one, name, 0) for one in getattr(user, "users", [user])) for name in names])


def user_counts(user) -> dict[str, float]:
    """What the LLM users of all processes have done and cost so far; {} without one."""
    total: dict = {}
    for one in getattr(user, "users", [user]):
        for name, count in getattr(one, "counts", {}).items():
            total[name] = total.get(name, 0) + count
    return dict(zip(total, grpo.summed(list(total.values())))) if total else {}


def keep_checksum(run: grpo.Run, file: str) -> None:
    """ValueError if a resumed run's file of conversations has changed: its steps would be others."""
    now = {"file": file, "checksum": grpo.file_checksum(file)}
    before = run.read("data.json", now)
    if before["checksum"] != now["checksum"]:
        raise ValueError(f"--data={file} is not what it was when the run began (its checksum differs)")
    run.write("data.json", now)


def learn(run: grpo.Run, phases: tuple[str, ...]) -> None:
    """Take a policy through the phases ("sft", "rl"), evaluating before and after each; go on from a checkpoint."""
    s, user = run.s, make_user(run.s)
    scripted = envs.ScriptedUser(s.user_noise, s.user_vague)            # with whom the demonstrator talks: fast

    written = kept(read_talks(s.data), s.keep) if s.data and not s.files else []
    if s.data and not s.files and not written:
        raise ValueError(f"--keep={s.keep} leaves none of the conversations of --data={s.data}")
    if seen := {talk["split"] for talk in written if talk.get("split") in ("test", "val")}:
        raise ValueError(f"--data={s.data} has {' and '.join(sorted(seen))} tasks, which are for measuring: collect "
                         "with eval --split=train")

    def texts():
        shown = range(0 if written else 60 * len(trained(s)))
        talks = [talk["messages"] for talk in written]
        talks += [demonstration(s, number, s.max_turns, scripted) for number in shown]
        return [m["content"] for talk in talks for m in talk] + reference_text(s, 0, 2000)
    grpo.first_policy(run, texts, first_envs(s))
    tell = partial(measure, run, run.engine, user)
    draw = partial(lesson, s, run.tokenizer, scripted)
    if written:
        keep_checksum(run, s.data)
        draw = partial(file_lesson, s, encoded(s, run.tokenizer, written))
    size = sum(p.numel() for p in run.model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {len(run.tokenizer)} tokens, gyms: {', '.join(gym_names(s))}", flush=True)
    if run.optimizer:
        print(f"going on after {run.state['phase']} step {run.state['step']}", flush=True)
    else:
        tell("untrained" if s.model == "tiny" else "start")
    teach = {"sft": partial(grpo.train_sft, run, draw, 0.0), "rl": partial(train_rl, run, user)}
    grpo.run_phases(run, phases, teach, tell)
    if "sft" in phases and not written:
        measure(run, "demonstrator", user, "demonstrator")              # whom SFT imitated
    if not s.files:
        measure(run, "expert", user, "expert")


def start(s: Settings, command: str, phases: tuple[str, ...]) -> None:
    """A run: the phases one after the other, then the table."""
    if s.model in SCRIPTED or served(s.model):
        raise ValueError(f"--model={s.model} is for eval only")
    if s.data and not s.files and "sft" not in phases:
        raise ValueError(f"--data={s.data} is no folder of task files; a file to imitate is for sft and demo")
    if not trained(s):
        raise ValueError("--hold_out leaves no gym to train in")
    if s.files:
        start_from_files(s, phases)
    for gym in trained(s) if not s.data and ("sft" in phases or s.model == "tiny") else []:
        if without_expert(gym):
            raise ValueError(f"{gym} has no expert: a cold start imitates one, and a tiny model has its words from one")
    began = time.time()
    run = grpo.Run(s, command)
    try:
        learn(run, phases)
    except grpo.Stop:
        print(f"stopped after {run.state['phase'] or 'start'}, step {run.state['step']}; go on with\n"
              f"    python userrl.py {command} --name={run.name} --resume=True")
        raise
    print_table(run.evals, run.s.split)
    if "best" in (val := run.state.get("val", {})):
        last = "-" if val["last"] is None else f"{val['last']:.3f}"
        print(f"on validation tasks the policy of RL step {val['step']} was best: {val['best']:.3f}, the last one "
              f"{last};\nit is in {run.path}/best, the table shows the last")
    before_and_after(run)
    if run.writes:
        print(f"curves, tables and conversations, for a browser: {write_report(run.path)}")
    print(f"{grpo.clock(time.time() - began)} minutes, {grpo.peak_gb():.2f} GB at most; everything is in {run.path}/")
    print(f"talk to it:  python userrl.py play --gyms={listed(run.s.gyms)[-1]} --model={run.path}")


def start_from_files(s: Settings, phases: tuple[str, ...]) -> None:
    """ValueError if --data cannot be trained on so; says which gyms are trained without being evaluated."""
    if "sft" in phases or s.model == "tiny":
        raise ValueError("--data has no demonstrator, and no words for a tiny model: train or eval with --model=…")
    for gym in trained(s):
        if why := lacking(s, gym, "train"):
            raise ValueError(f"--data: {why}; --hold_out={gym} only evaluates it")
        if why := lacking(s, gym, s.split):
            print(f"note: {gym} is trained and not evaluated: {why}")
    if not gym_names(s):
        raise ValueError(f"--data: {lacking(s, trained(s)[0], s.split)}")


def demo(s: Settings) -> None:
    """Cold start, then GRPO; evaluated before, between and after."""
    start(s, "demo", ("sft", "rl"))


def sft(s: Settings) -> None:
    """The cold start alone: imitate the scripted demonstrator."""
    start(s, "sft", ("sft",))


def train(s: Settings) -> None:
    """GRPO alone, from a checkpoint."""
    if s.model == "tiny" and not s.resume:
        print("note: --model=tiny has no cold start; expect RL to stall (try the demo, or sft first)")
    start(s, "train", ("rl",))


# What may differ between the columns of one table.
OF_THE_POLICY = ("model", "form", "thinking", "slip", "max_new_tokens", "eval_temperature", "rows", "context", "device",
                 "dtype", "graphs", "workers", "timeout", "save_talks")


def column_name(s: Settings) -> str:
    """What the column of an evaluation is called: the policy, and how it was asked where that is not as usual."""
    words = [s.model]
    words += ["tool"] if s.form == "tool" else []
    words += ["thinking"] if s.thinking else []
    words += [f"slip {s.slip:g}"] if s.model == "demonstrator" and s.slip != Settings.slip else []
    if s.model not in SCRIPTED:
        words += [f"T {s.eval_temperature:g}"] if s.eval_temperature != Settings.eval_temperature else []
        words += [f"{key} {getattr(s, key)}" for key in ("max_new_tokens", "context", "dtype")
                  if getattr(s, key) != getattr(Settings, key)]
    return ", ".join(words)


def eval_(s: Settings) -> None:
    """Evaluate a checkpoint, a served model, or the scripted expert or demonstrator, on held-out tasks.

    With the --name of an earlier evaluation it adds a column, or goes on where it was stopped.
    """
    if s.model == "tiny":
        raise ValueError("eval needs --model=<run or checkpoint folder> (or --model=expert)")
    if s.resume:
        raise ValueError("eval needs no --resume: with the --name of an evaluation it goes on, or adds a column")
    if s.tests and served(s.model):
        raise ValueError(f"--tests is not for a served model: evaluate {s.model} once for each")
    if s.data and not s.files:
        raise ValueError(f"--data={s.data} is no folder of task files")
    for gym in chosen(s) if s.files else []:
        if why := lacking(s, gym, s.split):
            raise ValueError(f"--data: {why}")
        if s.model in SCRIPTED and gym != "function":
            raise ValueError(f"--model={s.model} knows our own tasks; of those of --data it plays function only")
    s = replace(s, resume=bool(s.name) and (Path("runs") / s.name / "config.json").exists())
    if s.tests:
        return examine(s)
    policy = s.model
    if served(s.model):
        policy, s = envs.Server(s.model, s.timeout, at_once=s.rows), replace(s, workers=1)
    run = grpo.Run(s, "eval", differs=OF_THE_POLICY)
    s, user = run.s, make_user(run.s)
    label = column_name(s)
    before = run.evals.get(label, {"gyms": {}})
    if "failed" in before or any(row.get("agent_errors") or row.get("user_errors") for row in before["gyms"].values()):
        del run.evals[label]                                            # the episodes that failed are played again
    if isinstance(policy, envs.Server) and label not in run.evals:
        policy.chat([{"role": "user", "content": "Hi"}], max_tokens=1)  # a wrong address leaves no folder behind
    elif policy not in SCRIPTED and label not in run.evals:
        model, tokenizer = grpo.chosen_policy(s)
        policy = grpo.Engine(model, tokenizer, rows=s.rows, max_len=s.context, graphs=s.graphs)
        grpo.must_fit(policy, first_envs(s))
    run.begin()
    try:
        measure(run, policy, user, label)
    except grpo.Stop:
        if (run.path / TALKS).exists():
            print(f"stopped; {run.path}/{TALKS} keeps what was played, and --name={run.name} goes on from there")
        raise
    if isinstance(policy, envs.Server) and policy.counts["requests"]:
        c = policy.counts
        each = c["seconds"] / c["requests"]
        print(f"   {c['requests']} requests, {c['retries']} of them repeated, {each:.2f} s each; {c['prompt_tokens']} "
              f"tokens read, {c['completion_tokens']} written")
    print_table(run.evals, run.s.split)
    if gym_names(s) == ["travel"] and run.evals[label]["gyms"]["travel"]["n"]:
        print_userbench(run.evals[label]["gyms"]["travel"]["userbench"])
    print(f"written to {run.path}/eval.json" + (f" and {TALKS}" if (run.path / TALKS).exists() else ""))


# ---------------------------------------------------------------------------------------------- both chairs

HELD_OUT_USER = dict(user_noise=0.2, persona="impatient", patience=6)  # nobody trains with it


def selfplay(s: Settings) -> None:
    """Agent (--model) and thinking user (--user=userlm:FOLDER) learn in turn, each from the other.

    A round: the agent does --steps of GRPO against the latest user and, in half of the conversations, one of those
    before it.  Then the latest agent and one of those before it converse with the latest user (on --tasks tasks a gym),
    and what the gyms made it say is what it practises in --user_steps of RL.  Rules judge both: the agent by what the
    gyms pay, the user's lines by rewards of its own (a line said whole, in character, and nothing beside it).  So the
    agent shapes what its user has to say; how well the agent does is no reward of the user's, or its failing could pay.

    Each round tests the agent with the scripted user and with HELD_OUT_USER, the user by its fidelity report.
    """
    if not s.resume and (s.model in ("tiny", *SCRIPTED) or not s.user.startswith("userlm:")):
        raise ValueError("selfplay needs --model=<run or checkpoint folder> and --user=userlm:<the same>")
    if s.data and not s.files:
        raise ValueError(f"--data={s.data} is no folder of task files")
    began, run = time.time(), grpo.Run(s, "selfplay")
    s = run.s
    if s.user_steps and all(map(silent, trained(s))):
        raise ValueError(f"selfplay: the user of {', '.join(trained(s))} says nothing in words that it could practise")
    agents, users = [s.model], [s.user.partition(":")[2]]
    grpo.must_fit(engine_of(s, s.model), first_envs(s))
    pool = [make_user(s)]
    run.begin()
    try:
        test_chairs(run, 0, agents, users)
        for number in range(1, s.rounds + 1):
            # half of the time the latest, else one of those before it
            users_met = envs.MixedUser(pool[:-1] + pool[-1:] * max(1, len(pool) - 1))
            agents.append(agent_round(run, number, agents, users_met))
            users.append(user_round(run, number, agents, users, pool[-1]))
            pool.append(make_user(replace(s, user=f"userlm:{users[-1]}")))
            test_chairs(run, number, agents, users)
    except grpo.Stop:
        print(f"stopped; go on with\n    python userrl.py selfplay --name={run.name} --resume=True")
        raise
    print_chairs(run)
    print(f"{grpo.clock(time.time() - began)} minutes, {grpo.peak_gb():.2f} GB at most; everything is in {run.path}/")


def silent(gym: str) -> bool:
    """Do experts hear nothing in words from the gym's user?  Of a gym without an expert nobody knows."""
    import userlm_r1
    try:
        return not userlm_r1.gym_lines(3, (gym,))
    except NotImplementedError:
        return False


def engine_of(s: Settings, model: str) -> grpo.Engine:
    return grpo.Engine(*grpo.chosen_policy(replace(s, model=model)), rows=s.rows, max_len=s.context, graphs=s.graphs)


def agent_round(run: grpo.Run, number: int, agents: list[str], user: envs.MixedUser) -> str:
    """The agent's turn to learn: a run of its own in the run folder, which is returned."""
    place = f"agent-{number}"
    if not run.s.steps:
        return agents[-1]
    print(f"-- round {number}: the agent learns", flush=True)
    resume = (run.path / place / "config.json").exists()
    # tasks that no round before it had
    demos = run.s.demos + (number - 1) * run.s.steps * run.s.tasks * (1 + run.s.resample)
    part = grpo.Run(replace(run.s, name=run.name, model=agents[-1], demos=demos, resume=resume), "selfplay", place)
    grpo.first_policy(part, None, first_envs(part.s))
    grpo.run_phases(part, ("rl",), {"rl": partial(train_rl, part, user)}, lambda label: None)
    grpo.gather("saved")                                                # nobody reads before
    return str(part.path)


def user_round(run: grpo.Run, number: int, agents: list[str], users: list[str], user) -> str:
    """The user's turn: it hears the agents, then practises.  Returns its run folder."""
    import userlm_r1
    s, file = run.s, f"lines-{number}.json"
    if not s.user_steps:
        return users[-1]
    print(f"-- round {number}: the user learns", flush=True)
    if not (run.path / file).exists():
        before = random.Random(f"{s.seed}/pool/{number}").choice(agents[:-1])
        user.lines.clear()
        for agent in (agents[-1], before):
            places = [(gym, s.demos + 10**6 * number + i) for gym in trained(s) for i in range(s.tasks)]
            roll(replace(s, group=2), engine_of(s, agent), user, places, {})
        run.write(file, userlm_r1.speakable(itertools.chain(*grpo.gather(sorted(user.lines)))))
    grpo.gather("written")                                              # nobody reads before
    if (run.path / file).read_bytes().strip() == b"[]":
        print(f"! round {number}: nothing was said in words, and the user stays as it is", flush=True)
        return users[-1]
    own = userlm_r1.Settings(name=run.name, seed=s.seed + number, workers=s.workers, device=s.device,
                             steps=s.user_steps, tasks=s.tasks, group=s.group, save_every=s.save_every,
                             graphs=s.graphs)
    return userlm_r1.practise(own, users[-1], f"user-{number}", str(run.path / file))


def test_chairs(run: grpo.Run, number: int, agents: list[str], users: list[str]) -> None:
    """Test both after a round, once; into eval.json."""
    import userlm_r1
    s = run.s
    engine = engine_of(s, agents[-1])
    for label, harder in {"scripted": {}, "held out": HELD_OUT_USER}.items():
        own = replace(s, user="scripted", **harder)

        def take():
            result = evaluate(own, engine, make_user(own), s.eval_tasks)
            result.pop("talks", None)
            return result
        result = run.evaluate(f"agent {number}, {label}", take)
        print(f"-- agent {number}, {label} user: macro-average return {shown(result['macro'])}", flush=True)
    own = userlm_r1.as_trained(userlm_r1.Settings(
        model=users[-1], seed=s.seed, device=s.device, graphs=s.graphs, gyms=",".join(dict.fromkeys(trained(s))),
        agents=",".join(dict.fromkeys([agents[0], agents[-1]])), agent_tasks=max(2, min(s.eval_tasks, 32)),
        eval_calls=max(10, min(s.eval_tasks, 48))))
    userlm_r1.print_reality(run.evaluate(f"user {number}", lambda: userlm_r1.reality(
        own, users[-1], userlm_r1.trained(own), userlm_r1.agents_of(own), broken=False)))


def print_chairs(run: grpo.Run) -> None:
    """The table: a row a round."""
    titles = "agent: scripted", "held-out user", "user: unfit", "tau", "gap", "AUC"
    print(f"\n{'round':8}" + "".join(f"{title:>17}" for title in titles))
    for number in range(run.s.rounds + 1):
        agent = [shown(run.evals[f"agent {number}, {label}"]["macro"]) for label in ("scripted", "held out")]
        report = run.evals[f"user {number}"]
        share = report["replaced"] / max(report["spoken"], 1)
        half = 1.96 * math.sqrt(share * (1 - share) / max(report["spoken"], 1))
        row = report["users"][report["tested"]]
        numbers = [[share, half], row["tau"], row["gap"], row["auc"]]
        print(f"{number:<8}" + "".join(f"{cell:>17}" for cell in agent + [f"{x:.3f} ± {h:.3f}" for x, h in numbers]))
    print("(agent: macro-average return; unfit: share of its lines that the rules had to say; tau, gap, AUC: its "
          "fidelity\n report, see userlm_r1.py; ± is half a 95 % interval over tasks, calls or lines)")


# ---------------------------------------------------------------------------------------------- play

class Person:
    """A person in the user's chair, as an environment for the trained agent: what they type is the feedback."""
    user = None

    def __init__(self, system_prompt: str, first: str, tools: list[dict] | None = None):
        self.system_prompt, self.first, self.tools = system_prompt, first, tools

    def reset(self):
        return self.first, {}

    def turn(self, action: str):
        print(f"agent  {grpo.printable(action)}")
        reply = input("you    ")
        return reply, 0.0, not reply, False, {}
        yield                                                           # a generator, like every env's turn


def play(s: Settings) -> None:
    """You are the agent of a gym; or, with --model, the user of a trained agent.  An empty line ends it."""
    if served(s.model):
        raise ValueError(f"--model={s.model} is for eval only")
    if s.data and not s.files:
        raise ValueError(f"--data={s.data} is no folder of task files")
    gym = chosen(s)[0]
    env = make_env(s, gym, s.index, s.split, seated(make_user(s), s.seed, gym, s.index))
    first, _ = env.reset()
    print(f"{gym}: {env.system_prompt}")
    if s.model != "tiny":
        model, tokenizer = grpo.chosen_policy(s)
        print(f"You are the user; an empty line ends it. For example: {first}")
        person = Person(env.system_prompt, input("you    ") or first, env.tools)
        engine = grpo.Engine(model, tokenizer, rows=1, max_len=s.context, graphs=s.graphs)
        grpo.rollout(engine, [person], seeds=[(s.seed, int(time.time()))], temperature=s.temperature,
                     max_new_tokens=s.max_new_tokens)
        return
    print(f"You are the agent; an empty line ends it.\n\nuser   {first}")
    total, over = 0.0, False
    while not over and (action := input("you    ")):
        text, reward, terminated, truncated, _ = env.step(action)
        total, over = total + reward, terminated or truncated
        print(f"user   {grpo.printable(text)}")
        print(f"       reward {reward:.2f}, so far {total:.2f}, turn {env.turns} of {env.max_turns}")
    print(f"return {total:.2f}; what was hidden: {env.task}")


# ---------------------------------------------------------------------------------------------- studies

# What can be asked in one command.  grid: the cells, each trained on every seed from the same cold start; fixed: other
# settings, unless typed; tests: with what each policy is evaluated, beside its own held-out tasks; show: further
# numbers of the tables (`numbers` has them all).  "NAME: " before a grid names its cells, "+" is a comma in a value,
# "50%" half of what is set; {name} is the study's folder, and a grid with {user} waits for a --user.
STUDIES = {
    "credit": {
        "question": "Which credit for a turn, and which score for a conversation?",
        "fixed": {"gamma": 0.8, "normalize": "std"},
        "grid": "turn=naive,equalized,r2g,em; trajectory=sum,mean,r2g; combine=scale | combine=shift,loo",
        "show": "success turns"},
    "coldstart": {
        "question": "Does RL learn without a cold start (SFT), and from half of one?",
        "grid": "sft_steps=0%,50%,100%",
        "show": "success turns"},
    "user": {
        "question": "Which user to train with, for users it will meet?",
        "grid": "user_noise=0,0.2,0.4 | user_vague=0.3 | UserLM: user=userlm:runs/{name}/userlm | model: user={user}",
        "tests": "user_noise=0,0.2,0.4 | user_vague=0.3 | "
                 "held-out: " + "; ".join(f"{key}={value}" for key, value in HELD_OUT_USER.items()) + " | "
                 "UserLM: user=userlm:runs/{name}/userlm | model: user={user}",
        "show": "success"},
    "efficiency": {
        "question": "Does a discount make it quicker, and at what price?",
        "grid": "gamma=1,0.95,0.8",
        "show": "turns effective_turns time_weighted"},
    "userbench": {
        "question": "Travel: one choice or several, wishes spread or concentrated, how many turns, how many tries?",
        "fixed": {"gyms": "travel", "hold_out": "", "tier": "22,33", "wrong": 10, "noise": 5, "context": 4096},
        "grid": "travel: gyms=travel",
        "tests": "spread: choice=single,multi; tier=2222; max_turns=8,16,24; samples=4 | "
                 "concentrated: choice=single,multi; tier=44; max_turns=8,16,24; samples=4 | "
                 "tier: choice=multi; tier=22,2222,33,233,333,44,334,444; samples=4",
        "show": "pass@1 pass@4 best@4 score active"},
    "transfer": {
        "question": "Trained on UserRL's five gyms, what is earned in the three it never trained on?",
        "fixed": {"gyms": "all", "hold_out": "intention,telepathy,search"},
        "grid": "five: mixture=equal",
        "show": "travel turtle function tau persuade intention telepathy search"},
}
# Settings that the cold start depends on; cells that differ in others alone share one. The noise of the user that the
# demonstrator talks with is left out on purpose: so do the cells of the study of users.
COLD = set("""gyms hold_out vocab_size hidden layers heads kv_heads head_dim mimetic slip sft_steps sft_lr sft_echo
    muon weight_decay dtype reading demos sft_tokens facts drills data keep form classic max_turns tier choice wrong
    noise env persona patience""".split())
OF_STUDIES = set("name resume preset minutes study grid tests seeds jobs".split())    # not of a study's runs


def typed(s: Settings) -> list[str]:
    """The settings of a run as one would type them."""
    kept = [each for each in fields(s) if each.name not in OF_STUDIES and getattr(s, each.name) != each.default]
    return [f"--{each.name}={getattr(s, each.name)}" for each in kept]


def grid_cells(s: Settings, option: str, text: str) -> dict[str, dict[str, str]]:
    """The cells of a grid, name -> {setting: value as typed}; ValueError for what is no grid."""
    cells: dict[str, dict[str, str]] = {}
    for part in filter(None, map(str.strip, text.split("|"))):
        label, colon, axes = part.partition(": ")
        if not colon:
            label, axes = "", part
        values = {}
        for axis in filter(None, map(str.strip, axes.split(";"))):
            key, equals, several = axis.partition("=")
            key = Settings.ALSO.get(key, key)
            if not equals:
                raise ValueError(f"--{option}: {axis!r} is not setting=value,value")
            if key in OF_STUDIES | {"seed", "workers"} | ({"model", "dtype", "device"} if option == "tests" else set()):
                raise ValueError(f"--{option}: {key} is of the whole {'study' if option == 'grid' else 'evaluation'}")
            if key in values:
                raise ValueError(f"--{option}: {key} is there twice; its values stand together, {key}=value,value")
            values[key] = [meant(s, key, value.strip()) for value in several.split(",")]
        if not values:
            raise ValueError(f"--{option}: {part!r} names no setting")
        varied = [key for key in values if len(values[key]) > 1]
        for each in itertools.product(*values.values()):
            cell = dict(zip(values, each))
            words = [label] if label else []
            words += [word(s, key, cell[key]) for key in varied or (values if not label else [])]
            name = folder_name(words)
            if name in cells:
                raise ValueError(f"--{option}: two cells are called {name}")
            if option == "grid" and name in ("cold", "SFT", "expert"):
                raise ValueError(f"--grid: no cell may be called {name}: a study's own runs are")
            cells[name] = cell
    if option == "grid":
        no_twins(s, cells)
    return cells


def no_twins(s: Settings, cells: dict) -> None:
    """ValueError if two cells differ in nothing that their credit reads."""
    known: dict[frozenset, str] = {}
    for name, values in cells.items():
        read = {"combine": s.combine, **values}
        if read["combine"] == "loo":
            read = {key: value for key, value in read.items() if key not in ("turn", "trajectory")}
        twin = known.setdefault(frozenset(read.items()), name)
        if twin != name:
            why = ": loo reads neither turn nor trajectory" if read["combine"] == "loo" else ""
            raise ValueError(f"--grid: {twin} and {name} are the same{why}")


def folder_name(words: list[str]) -> str:
    """Words as the name of a folder."""
    return re.sub(r"[^\w.-]+", "_", "-".join(words))


def meant(s: Settings, key: str, text: str) -> str:
    """What a grid means by a value: "50%" of a number, "+" for a comma in a text."""
    now = getattr(s, key, None)
    if isinstance(now, str):
        return text.replace("+", ",")
    if isinstance(now, (int, float)) and re.fullmatch(r"\d+(\.\d+)?%", text):
        return str(type(now)(now * float(text[:-1]) / 100))
    return text


def word(s: Settings, key: str, value: str) -> str:
    """A setting in the name of a cell: "naive", but "gamma0.8"."""
    return value if value and isinstance(getattr(s, key, None), str) else f"{key}{value}"


def examine(s: Settings) -> None:
    """eval of one policy with each of the --tests, in one process; what was measured before is not measured again.

    With the --name of one that was stopped it goes on.
    """
    run = grpo.Run(s, "eval")
    s = run.s
    tests = {name: variant(s, "eval", name, values) for name, values in grid_cells(s, "tests", s.tests).items()}
    if s.model not in SCRIPTED:
        model, tokenizer = grpo.chosen_policy(s)
    run.begin()
    for name, test in tests.items():
        run.s, policy = test, s.model
        if s.model not in SCRIPTED:
            tokenizer.thinking = test.thinking
            policy = grpo.Engine(model, tokenizer, rows=test.rows, max_len=test.context, graphs=test.graphs)
            grpo.must_fit(policy, first_envs(test))
        measure(run, policy, make_user(test), name)
    for _, alike in itertools.groupby(run.evals.items(), key=lambda item: list(item[1]["gyms"])):
        alike = list(alike)
        for first in range(0, len(alike), 6):                           # as many columns as fit
            print_table(dict(alike[first:first + 6]), s.split)
    print(f"written to {run.path}/eval.json")


@dataclass
class Job:
    """One run of a study, in a process of its own.

    name: its folder under runs/; argv: the command and its settings, all of which `wanted` has; labels: the evaluations
    that it ends with; needs: names of jobs that come before; script: empty for this one.
    """
    name: str
    argv: list[str]
    wanted: dict
    labels: tuple[str, ...]
    needs: list[str]
    script: list[str] = field(default_factory=list)
    began: float = 0.0


def variant(s: Settings, command: str, name: str, values: dict) -> Settings:
    """The settings with some other values; ValueError, in one line that begins with the name, for what is wrong."""
    argv = [f"--{key}={value}" for key, value in values.items()]
    try:
        return grpo.parse([command, *typed(s), *argv], Settings, COMMANDS)[1]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def planned(s: Settings, command: str, name: str, values: dict, needs: list[str]) -> Job:
    """The job of a cell, of a cold start, or of tests."""
    own, study = {"name": name, "workers": 1}, name.partition("/")[0]
    run = variant(s, command, name, {**values, **own})
    if command != "sft" and not run.files:                              # a file to imitate is of the cold start alone
        run = replace(run, data="", keep="")
    expert = () if run.files or any(map(without_expert, gym_names(run))) else ("expert",)
    labels = {"sft": ("SFT", *expert), "train": ("RL", *expert), "eval": tuple(grid_cells(s, "tests", run.tests))}
    chairs = [run.user, *(test.get("user", "") for test in grid_cells(s, "tests", run.tests).values())]
    named = itertools.chain(*map(users, chairs))
    needs = needs + [user.removeprefix("userlm:runs/") for user in named if user.startswith(f"userlm:runs/{study}/")]
    own |= {"tests": run.tests} if run.tests else {}
    argv = [command, *typed(run), *(f"--{key}={value}" for key, value in own.items())]
    return Job(name, argv, asdict(run), labels[command], needs)


def study_jobs(s: Settings, name: str, cells: dict, tests: str) -> list[Job]:
    """All runs of a study, in their order: for each seed the cold starts and the cells, then the tests."""
    jobs: dict[str, Job] = {}
    starts: dict[tuple, tuple[str, dict]] = {}                          # what is tested, and how it talks
    for seed, (cell, values) in itertools.product(range(s.seed, s.seed + s.seeds), cells.items()):
        of_cold = {key: value for key, value in values.items() if key in COLD}
        model, needs = values.get("model", s.model), []
        words = [values["model"]] if "model" in values else []          # that tell the cells' starts apart
        if model == "tiny" and grpo.typed("--sft_steps", of_cold.get("sft_steps", s.sft_steps), int):
            differing = [key for key in of_cold if len({str(other.get(key)) for other in cells.values()}) > 1]
            words = [word(s, key, of_cold[key]) for key in differing]
            cold = f"{name}/{folder_name(['cold', *words, f's{seed}'])}"
            model, needs = f"runs/{cold}", [cold]
            if cold not in jobs:
                jobs[cold] = planned(s, "sft", cold, {**of_cold, "seed": seed}, [])
        talks = {key: values[key] for key in ("form", "thinking", "context", "max_new_tokens") if key in values}
        if model != "tiny":
            starts[folder_name(["SFT", *words]), seed] = model, {k: v for k, v in talks.items() if k in of_cold}
        run = f"{name}/{cell}-s{seed}"
        starts[cell, seed] = f"runs/{run}", talks
        jobs[run] = planned(s, "train", run, {**values, "model": model, "seed": seed}, needs)
    if not s.files:
        starts["expert", s.seed] = "expert", {}
    for test, values in grid_cells(s, "tests", tests).items():
        variant(s, "eval", test, values)
    for (policy, seed), (model, talks) in starts.items() if tests else []:
        run = f"{name}/{policy}-s{seed}-tests"
        needs = [model.removeprefix("runs/")] if model.startswith(f"runs/{name}/") else []
        jobs[run] = planned(s, "eval", run, {**talks, "model": model, "seed": seed, "tests": tests}, needs)
    userlm = f"{name}/userlm"
    if any(userlm in each.needs for each in jobs.values()):
        wanted = {"seed": s.seed, "sft_steps": s.sft_steps, "notes": 0.5, "workers": 1, "device": s.device}
        argv = ["sft", f"--name={userlm}", *[f"--{key}={value}" for key, value in wanted.items()]]
        script = [str(Path(__file__).with_name("userlm_r1.py"))]
        jobs = {userlm: Job(userlm, argv, wanted, ("SFT",), [], script), **jobs}
    return list(jobs.values())


def standing(job: Job) -> str:
    """How far a job is: "new", "begun" or "done"; ValueError if its folder holds something else."""
    path = Path("runs") / job.name
    config = grpo.read_json(path / "config.json", {})
    if not config:
        if path.exists() and any(file.suffix != ".part" for file in path.iterdir()):
            raise ValueError(f"{path} is no run (it has no config.json): move it away, or choose another --name")
        return "new"
    if config.get("command") != job.argv[0]:
        raise ValueError(f"{path} was not made by '{job.argv[0]}': choose another --name")
    for key, value in job.wanted.items():
        if key not in ("name", "resume") and config.get(key, value) != value:
            raise ValueError(f"{path} has --{key}={config[key]}, not {value}: choose another --name, or take that")
    evals = grpo.read_json(path / "eval.json", {})
    done = all(measured(evals.get(label)) for label in job.labels)
    return "done" if done else "begun"


def measured(result: dict | None) -> bool:
    """Has an evaluation a number? Not if it failed, or if a gym's user did in all its conversations."""
    return bool(result) and "failed" not in result and result.get("macro", {"return": 0.0})["return"] is not None


def run_jobs(jobs: list[Job], side_by_side: int, tell) -> dict[str, str]:
    """Run what is not done, each in a process of one thread; name -> why, of those that failed.

    tell(job, finished) is called as each begins and ends.  Ctrl-C lets them finish their steps and save, then raises
    grpo.Stop; if this process is killed, they end, too.
    """
    waiting = [job for job in jobs if standing(job) != "done"]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    running, lost, warned = {}, {}, False
    try:
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)]
            for job in ready[:side_by_side - len(running)]:
                waiting.remove(job)
                tell(job, False)
                job.began = time.time()
                running[job.name] = job, begin(job)
            for name, (job, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                said = grpo.leave([process]).strip().splitlines()
                if not process.returncode and standing(job) == "done":
                    done.add(name)
                    tell(job, True)
                elif not grpo.interrupted:
                    ended = f"it ended with status {process.returncode}"        # -9: killed, often for its memory
                    lost[name] = said[-1] if said else ended if process.returncode else "its evaluation failed"
                    print(f"! {name}: {lost[name]}", flush=True)
            if grpo.interrupted and not warned:
                warned = True
                waiting.clear()
                for _, process in running.values():
                    process.send_signal(signal.SIGINT)
            if not running and not any(done.issuperset(job.needs) for job in waiting):
                break
            time.sleep(0.1)
    finally:
        grpo.leave([process for _, process in running.values()], patience=0)
    if grpo.interrupted:
        raise grpo.Stop
    return lost | {job.name: "what it needs failed" for job in waiting}


def begin(job: Job):
    """The process of a job that is new, or goes on."""
    argv = job.argv
    if standing(job) == "begun" and argv[0] != "eval":
        argv = [*argv, "--resume=True"]
    return grpo.spawn([*(job.script or grpo.this_script()), *argv], {**os.environ, "OMP_NUM_THREADS": "1"})


# ---- what a study found

def numbers(result: dict) -> dict[str, float | None]:
    """An evaluation in one flat row: return, ci95 (over tasks), each gym's return, means over gyms, pass@k, …"""
    gyms = result["gyms"]
    row = {**result["macro"], **{gym: of["return"] for gym, of in gyms.items()}}
    for key in ("success", "turns", "effective_turns", "time_weighted"):
        row[key] = average(of[key] for of in gyms.values())
    for kind in ("pass", "best"):
        for k in next(iter(gyms.values())).get(f"{kind}_at", {}):
            row[f"{kind}@{k}"] = average(of[f"{kind}_at"][k] for of in gyms.values())
    return row | gyms.get("travel", {}).get("userbench", {}).get("overall", {})


def study_results(study: dict) -> dict:
    """What its runs have measured so far.

    cells: cell -> seed -> {"start", "RL", "demonstrator", "expert": `numbers`}; tests: policy -> test -> seed ->
    `numbers`.  Only what is there; seeds are text, as JSON has them.
    """
    runs, found = Path("runs") / study["name"], {"cells": {}, "tests": {}}
    for cell, seed in itertools.product(study["cells"], study["seeds"]):
        evals = grpo.read_json(runs / f"{cell}-s{seed}" / "eval.json", {})
        cold = grpo.read_json(runs / str(study["starts"].get(f"{cell}-s{seed}")) / "eval.json", {})
        evals = {"demonstrator": cold.get("demonstrator"), "start": evals.get("untrained"), **evals}
        row = {label: numbers(evals[label]) for label in ("start", "RL", "demonstrator", "expert") if evals.get(label)}
        if row.get("RL", {}).get("return") is not None:
            found["cells"].setdefault(cell, {})[str(seed)] = row
    for policy, seed in itertools.product(study["policies"], study["seeds"]):
        for test, result in grpo.read_json(runs / f"{policy}-s{seed}-tests" / "eval.json", {}).items():
            if result["macro"]["return"] is not None:
                found["tests"].setdefault(policy, {}).setdefault(test, {})[str(seed)] = numbers(result)
    return found


def keep_results(study: dict) -> list[str]:
    """Write study.json and table.txt, as they are now; the lines of the table."""
    study["results"] = study_results(study)
    lines = study_lines(study)
    for file, text in {"study.json": json.dumps(study, indent=1), "table.txt": "\n".join(lines).strip() + "\n"}.items():
        path = Path("runs") / study["name"] / file
        part = path.with_suffix(".part")
        part.write_text(text)
        part.replace(path)
    return lines


def tell(study: dict, todo: list[str], side_by_side: int, seconds: dict, job: Job, finished: bool) -> None:
    """Say that a job begins, or what it found, how long the rest takes, and the table as it grows.

    todo: names of the jobs that are not done; seconds: command -> what its jobs took, {} at first.
    """
    command = job.argv[0]
    if not finished:
        print(f"   {job.name} …", flush=True)
        return
    todo.remove(job.name)
    seconds.setdefault(command, []).append(time.time() - job.began)
    every = list(itertools.chain(*seconds.values()))
    kinds = ["eval" if name.endswith("-tests") else "sft" if "/cold" in name else "train" for name in todo]
    means = {kind: average(seconds.get(kind, every)) for kind in dict.fromkeys(kinds)}
    left = sum(means[kind] for kind in kinds) / side_by_side
    macro = grpo.read_json(Path("runs") / job.name / "eval.json", {})[job.labels[0]]["macro"] if not job.script else {}
    returned = f": return {shown(macro)}" if macro else ""
    print(f"{job.name}{returned} | {grpo.clock(seconds[command][-1])} minutes; {len(todo)} to go, about "
          f"{grpo.clock(left)} minutes", flush=True)
    lines = keep_results(study)
    seed = job.name.rpartition("-")[2]
    if command == "train" and todo and not any(name.endswith(f"-{seed}") for name in todo):
        print("\n".join(lines), flush=True)


def pm(values, sign: str = "") -> str:
    """Mean over seeds and half width of its 95 % interval; of one seed the number alone."""
    values = list(values)
    if not values or None in values:
        return "-"
    return plus_minus(*rewards.mean_ci(values), sign)


def study_lines(study: dict) -> list[str]:
    """The tables of a study, from its study.json."""
    cells, show = study["results"]["cells"], study["show"].split()
    width = max(map(len, [*study["cells"], "± over tasks"])) + 2
    head = ["seeds", "start", "RL", "± over tasks", "gain", *show]
    lines = ["", f"{study['name']}: {study['question']}".rstrip(": "),
             f"{'':{width}}{head[0]:>6}" + "".join(f"{title:>17}" for title in head[1:])]
    means = {cell: average(row["RL"]["return"] for row in rows.values()) for cell, rows in cells.items()}
    for cell in sorted(means, key=means.get, reverse=True):
        rows = list(cells[cell].values())
        end, start = [row["RL"] for row in rows], [row.get("start", {}).get("return") for row in rows]
        gain = [] if None in start else [row["return"] - before for row, before in zip(end, start)]
        # not divided by the number of seeds: all meet the same tasks, of which some are hard for all
        tasks = average(row["ci95"] for row in end)
        texts = [pm(start), pm(row["return"] for row in end), f"{tasks:.3f}", pm(gain, "+")]
        texts += [pm(row.get(key) for row in end) for key in show]
        lines.append(f"{cell:{width}}{len(rows):6d}" + "".join(f"{text:>17}" for text in texts))
    for label in ("start", "demonstrator", "expert"):
        if reached := in_common(cells, label):
            averages = [average(row.get(key) for row in reached) for key in ["return", *show]]
            texts = ["-" if mean is None else f"{mean:.3f}" for mean in averages]
            texts[1:1] = ["", ""]                                       # under "± over tasks" and "gain"
            lines.append(f"{label:{width}}{'':23}" + "".join(f"{text:>17}" for text in texts))
    lines.append(f"(mean return on {tasks_of(study)}, RL after, start before; ± half a 95 % interval over seeds; "
                 "over tasks: of one run)")
    seeds = [seed for seed in map(str, study["seeds"]) if all(seed in rows for rows in cells.values())]
    returns = {cell: [rows[seed]["RL"]["return"] for seed in seeds] for cell, rows in cells.items()}
    lines += separation(returns)
    for setting, margin in margins(study["cells"], returns).items():
        means = ", ".join(f"{value} {average(of):.3f}" for value, of in margin.items())
        lines += ["", f"{setting}, mean over all else: {means}", *separation(margin)]
    return lines + list(itertools.chain(*[matrix_lines(study, key) for key in ["return", *show]]))


def in_common(cells: dict, label: str) -> list[dict]:
    """A seed's `numbers` of what is beside all cells ("start", "demonstrator", "expert"), for each seed.

    [] unless all cells of a seed measured the same: several cold starts, or one with several users, have no mean.
    """
    of_seed: dict[str, list[dict]] = {}
    for seed, run in itertools.chain(*(rows.items() for rows in cells.values())):
        if run.get(label, {}).get("return") is not None:
            of_seed.setdefault(seed, []).append(run[label])
    alike = all(len({row["return"] for row in some}) == 1 for some in of_seed.values())
    return [some[0] for some in of_seed.values()] if alike else []


def matrix_lines(study: dict, key: str) -> list[str]:
    """Each policy on each test, one of its `numbers`; a row a test where there are more of them."""
    table = study["results"]["tests"]
    rows, columns = list(table), [test for test in study["tests"] if any(test in row for row in table.values())]
    cell = {(row, test): pm(each.get(key) for each in of.values()) for row in rows for test, of in table[row].items()}
    corner = "policy | test"
    if len(columns) > 7:
        rows, columns, corner = columns, rows, "test | policy"
        cell = {(test, policy): text for (policy, test), text in cell.items()}
    if not set(cell.values()) - {"-"}:
        return []
    width = max(map(len, [*rows, corner])) + 2
    lines = ["", f"{key} on the tests", f"{corner:{width}}" + "".join(f"{short(test):>18}" for test in columns)]
    for row in rows:
        lines.append(f"{row:{width}}" + "".join(f"{cell.get((row, column), '-'):>18}" for column in columns))
    return lines


def two_sided(t: float, df: int) -> float:
    """Chance that Student's t is further from 0 than this (Abramowitz & Stegun 26.7.3 and 4; df: whole)."""
    angle = math.atan2(abs(t), math.sqrt(df))
    cosine, odd = math.cos(angle), df % 2
    term = cosine if odd else 1.0
    total = term if df > 1 else 0.0
    for i in range(3 if odd else 2, df - 1, 2):
        term *= cosine ** 2 * (i - 1) / i
        total += term
    inside = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if odd else inside))


def critical(df: int, chance: float) -> float:
    """The t that Student's t exceeds, on both sides together, with this chance; of many degrees of freedom, the
    normal distribution's."""
    if df > 1000:
        return NormalDist().inv_cdf(1 - chance / 2)
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, df) > chance else (low, middle)
    return high


def separation(returns: dict[str, list[float]]) -> list[str]:
    """Which cells differ by more than seeds do, and else how many seeds it would take.

    returns: cell -> a number per seed, the same seeds for all.  Cells of a seed share its cold start, so what counts is
    the spread that cell and seed leave (a two-way layout without interaction, one spread for all cells):
    s^2 = sum (y_cs - mean_c - mean_s + mean)^2 / ((C - 1)(S - 1)).  Two means differ beyond chance if they are
    further apart than t s sqrt(2 / S); t for .05, or, since the pair was picked among all, .05 / pairs (Bonferroni).
    """
    cells, y = list(returns), np.array(list(returns.values()), dtype=float)
    if len(cells) < 2:
        return []
    if y.shape[1] < 2:
        return ["one seed says nothing of chance: cells are compared from the second on"]
    count, seeds = y.shape
    means = y.mean(1)
    rest = y - means[:, None] - y.mean(0) + y.mean()
    s, pairs = float(np.sqrt((rest ** 2).sum() / ((count - 1) * (seeds - 1)))), count * (count - 1) // 2

    def least(n: int, chance: float) -> float:
        return critical((count - 1) * (n - 1), chance) * s * math.sqrt(2 / n)

    def fewest(chance: float) -> str:
        low, high = 1, 10_000
        while high - low > 1:                                           # `least` falls with n
            middle = (low + high) // 2
            low, high = (low, middle) if least(middle, chance) < gap else (middle, high)
        return f"{high}" if high < 10_000 else "10,000 or more"
    best, worst = int(means.argmax()), int(means.argmin())
    gap = float(means[best] - means[worst])
    if not gap:
        return ["All cells earn the same."]
    lines = [f"Over the same {seeds} seeds two cells differ by more than chance from {least(seeds, .05):.3f} on; "
             f"picked among {pairs} pairs, from {least(seeds, .05 / pairs):.3f} on.",
             f"Furthest apart: {cells[best]} over {cells[worst]}, by {gap:.3f}: "
             + ("separated." if gap > least(seeds, .05 / pairs) else
                "separated if it was the one pair to look at, not as the widest of all."
                if gap > least(seeds, .05) else "not separated.")]
    if gap <= least(seeds, .05 / pairs):
        need = [fewest(chance) for chance in (.05, .05 / pairs)]
        lines.append(f"To tell this gap it would take {need[0]} seeds for a pair named beforehand, {need[1]} for the "
                     f"widest: the fewest n with t(n) s sqrt(2 / n) < {gap:.3f}, s = {s:.3f}.")
    return lines


def margins(cells: dict[str, dict], returns: dict[str, list[float]]) -> dict[str, dict[str, list[float]]]:
    """Of a grid in which two or more settings vary, each setting by itself: setting -> value -> a number per seed, the
    mean over all else.  Every cell tells of every setting: gaps are seen that are lost between two cells.

    cells: cell -> {setting: value}.  Cells that are not part of the largest grid are left out.  {} before a seed is
    whole.
    """
    alike: dict[tuple, list[str]] = {}
    for cell in returns:
        alike.setdefault(tuple(cells[cell]), []).append(cell)
    grid = max(alike.values(), key=len, default=[])
    values = {key: list(dict.fromkeys(cells[cell][key] for cell in grid)) for key in (cells[grid[0]] if grid else {})}
    varied = {key: some for key, some in values.items() if len(some) > 1}
    if len(varied) < 2 or len(grid) < math.prod(map(len, varied.values())) or not returns[grid[0]]:
        return {}
    found: dict[str, dict] = {}
    for key, some in varied.items():
        found[key] = {}
        for value in some:
            rows = [returns[cell] for cell in grid if cells[cell][key] == value]
            found[key][value] = [average(of_seed) for of_seed in zip(*rows)]
    return found


def ablate(s: Settings) -> None:
    """A grid of settings, or a ready --study: a run per cell and seed, side by side, and a table that compares them."""
    if "RANK" in os.environ:
        raise ValueError("ablate starts its processes itself: run it without torchrun")
    ready = STUDIES.get(s.study, {})
    name = s.name or s.study or "ablate"
    folder = Path("runs") / name
    if "/" in name or (folder / "config.json").exists():
        raise ValueError(f"{folder} is a run, not a study: choose another --name")
    grids = {"grid": s.grid or ready.get("grid", ""), "tests": s.tests or ready.get("tests", "")}
    if any("{user}" in text for text in grids.values()):
        if s.user == "scripted":
            print("no language model was given (--user=llm:MODEL@URL): the study goes without one")
            grids = {key: "|".join(part for part in text.split("|") if "{user}" not in part)
                     for key, text in grids.items()}
        for user in filter(served, users(s.user)):                      # a server that is not there is said at once
            one_user(s, user)
        grids = {key: text.replace("{user}", s.user.replace(",", "+")) for key, text in grids.items()}
        s = replace(s, user="scripted", llm_prompts="")
    grids = {key: text.replace("{name}", name) for key, text in grids.items()}
    cells = grid_cells(s, "grid", grids["grid"])
    if not cells:
        raise ValueError(f"ablate needs --grid=setting=value,value, or --study, one of {', '.join(STUDIES)}")
    jobs = study_jobs(s, name, cells, grids["tests"])
    todo = [job for job in jobs if standing(job) != "done"]             # whatever is wrong is said before the first
    folder.mkdir(parents=True, exist_ok=True)
    grpo.hold(folder)
    tested = [job.name.split("/")[1].rpartition("-s")[0] for job in jobs if job.argv[0] == "eval"]
    own = [policy for policy in tested if policy not in (*cells, "expert")]         # the starts, then the cells
    starts = {job.name.split("/")[1]: job.needs[0].split("/")[1] for job in jobs if job.needs}
    study = {"name": name, "question": ready.get("question", ""), **grids, "show": ready.get("show", "success turns"),
             "seeds": list(range(s.seed, s.seed + s.seeds)), "split": s.split, "cells": cells,
             "tests": list(grid_cells(s, "tests", grids["tests"])), "starts": starts,
             "policies": [*dict.fromkeys(own), *cells, "expert"]}
    gpu = (s.device or ("cuda" if grpo.torch.cuda.is_available() else "cpu")) != "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    side_by_side = s.jobs or (1 if gpu else cores)
    keep_results(study)
    print(f"study {folder}: {len(jobs)} runs, {len(jobs) - len(todo)} done; {side_by_side} side by side", flush=True)
    try:
        lost = run_jobs(jobs, side_by_side, partial(tell, study, [job.name for job in todo], side_by_side, {}))
    except grpo.Stop:
        print("stopped; the same command goes on")
        raise
    print("\n".join(keep_results(study)))
    page = f"  python userrl.py report {folder}" if lost else f" {write_report(folder)}"
    print(f"everything is in {folder}/; pictures:  python userrl.py plot {folder}\na page for a browser:{page}")
    if lost:
        raise ValueError(f"{len(lost)} of {len(jobs)} runs failed, {min(lost)} because: {lost[min(lost)]}")


# ---------------------------------------------------------------------------------------------- pictures

# A picture is drawn when matplotlib is there, and told in text in any case: (file's name, lines of text, draw(figure)).

STYLE = {"font.size": 9, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.edgecolor": "#b0b0b0", "axes.axisbelow": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.8,
         "xtick.color": "#444444", "ytick.color": "#444444", "xtick.labelsize": 8, "ytick.labelsize": 8,
         "legend.frameon": False, "legend.fontsize": 8, "svg.fonttype": "none", "svg.hashsalt": "userrl"}
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #6b6b6b #8c564b".split()     # told apart by most eyes
GREY = "#8a8a8a"


def read_log(path: Path) -> list[dict]:
    """The lines of a log, without those that cannot be read: a run may have been killed in the middle of one."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def curve(path: Path, key: str = "return") -> dict[int, float]:
    """RL step -> what a run earned by then: on validation tasks if it has some, else in training, a mean of 5 steps."""
    rows = read_log(path / "metrics.jsonl")
    phase = "val" if any(row.get("phase") == "val" for row in rows) else "rl"
    points = [(row["step"], row[key]) for row in rows if row.get("phase") == phase and row.get(key) is not None]
    window = 5 if phase == "rl" else 1
    return {step: average(value for _, value in points[max(0, i + 1 - window):i + 1])
            for i, (step, _) in enumerate(points)}


def band(curves: list[dict[int, float]]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that all curves have, and at each their mean, least and most."""
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    values = [[one[step] for one in curves] for step in steps]
    return steps, [average(some) for some in values], [*map(min, values)], [*map(max, values)]


def spark(values: list[float], low: float, high: float, width: int = 48) -> str:
    """A curve as a line of text."""
    picked = [values[i * len(values) // width] for i in range(width)] if len(values) > width else values
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (value - low) / ((high - low) or 1)))] for value in picked)


def bar(value: float | None, most: float, width: int = 40) -> str:
    """A number as a bar of text."""
    return "" if value is None else "█" * round(width * max(0.0, value) / (most or 1))


def curves_picture(panels: dict[str, dict[str, list]]):
    """Learning curves.  panels: title -> label -> a `curve` per seed."""
    found: dict[str, dict] = {}
    for title, lines in panels.items():
        for label, curves in lines.items():
            if (line := band(curves))[0]:
                found.setdefault(title, {})[label] = line
    if not found:
        return None
    every = [value for lines in found.values() for line in lines.values() for value in line[1]]
    low, high = min(every), max(every)
    text = [f"return by RL step, from {low:.3f} ▁ to {high:.3f} █ (mean over seeds)"]
    named = {f"{title} {label}".strip(): line[1] for title, lines in found.items() for label, line in lines.items()}
    width = max(24, *map(len, named))
    text += [f"{name:{width}} {mean[0]:6.3f} {spark(mean, low, high)} {mean[-1]:6.3f}" for name, mean in named.items()]
    labels = list(dict.fromkeys(label for lines in found.values() for label in lines))
    several = any(len(curves) > 1 for lines in panels.values() for curves in lines.values())

    def draw(figure):
        wide = min(3, len(found))
        tall = math.ceil(len(found) / wide)
        figure.set_size_inches(1.2 + 3.2 * wide, 0.6 + 2.5 * tall)
        axes = figure.subplots(tall, wide, sharey=True, squeeze=False).flatten()
        for axis, (title, lines) in zip(axes, found.items()):
            for label, (steps, mean, least, most) in lines.items():
                colour = COLOURS[labels.index(label) % len(COLOURS)]
                axis.plot(steps, mean, color=colour, label=label, linewidth=1.6)
                axis.fill_between(steps, least, most, color=colour, alpha=0.15, linewidth=0)
            axis.set_title(title, loc="left")
            axis.set_xlabel("RL step")
            axis.grid(axis="y")
            if len(found) > 1:
                axis.legend()
            else:
                axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
        for axis in axes[len(found):]:
            axis.set_visible(False)
        note = "; band: lowest and highest seed" if several else ""
        figure.supylabel(f"return; in training a mean of 5 steps{note}", fontsize=8)
    return "curves", text, draw


def dots_picture(study: dict):
    """A row a cell, a column a number: mean and interval over seeds, the seeds, and the policies that it is beside."""
    cells = study["results"]["cells"]
    runs, beside = [run for rows in cells.values() for run in rows.values()], {}
    gyms = [gym for gym in envs.GYMS if any(gym in run["RL"] for run in runs)]
    columns = list(dict.fromkeys(["return", *gyms, *study["show"].split()]))
    earned = {cell: average(run["RL"]["return"] for run in rows.values()) for cell, rows in cells.items()}
    order = sorted(cells, key=earned.get)
    for label in ("demonstrator", "expert"):
        reached = in_common(cells, label)
        beside |= {(column, label): average(row.get(column) for row in reached) for column in columns}

    def draw(figure):
        figure.set_size_inches(1.8 + 2.0 * len(columns), 1.3 + 0.26 * len(order))
        axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axis, column in zip(axes, columns):
            for y, cell in enumerate(order):
                values = [run["RL"].get(column) for run in cells[cell].values()]
                if None in values:
                    continue
                mean, half = rewards.mean_ci(values)
                axis.plot(values, [y] * len(values), "o", color=COLOURS[5], markersize=3, markeredgewidth=0, alpha=0.8)
                axis.errorbar(mean, y, xerr=0 if math.isnan(half) else half, fmt="o", color=COLOURS[0], markersize=5,
                              linewidth=1.2)
                before = average(run["start"].get(column) for run in cells[cell].values() if "start" in run)
                if before is not None:                                  # cells may differ in their cold start
                    axis.plot(before, y, "|", color=GREY, markersize=10, markeredgewidth=1.5)
            left, right = axis.get_xlim()
            for label, style in (("demonstrator", "--"), ("expert", ":")):
                x = beside[column, label]
                # an expert far away would squeeze all that the picture is about
                if x is not None and left - (right - left) <= x <= right + (right - left):
                    axis.axvline(x, color=GREY, linestyle=style, linewidth=1)
            axis.set_title("mean over gyms" if column == "return" else column, loc="left")
            axis.set_yticks(range(len(order)), order)
            axis.grid(axis="x")
            axis.locator_params(axis="x", nbins=4)
            axis.tick_params(axis="y", length=0)
        figure.supxlabel(f"on {tasks_of(study)}: mean and 95 % interval over seeds, small: each seed; grey: before RL "
                         "(tick), demonstrator (dashes), expert (dots)", fontsize=8)
    return "cells", [], draw


def heat_picture(name: str, grids: dict[str, tuple[list[str], list[str], dict]], note: str):
    """Heat maps side by side.  grids: title -> (rows, columns, {(row, column): numbers of the seeds})."""
    text = []
    for title, (rows, columns, cells) in grids.items():
        width = max(map(len, rows)) + 2
        text += ["", title, " " * width + "".join(f"{short(column):>17}" for column in columns)]
        for row in rows:
            text.append(f"{row:{width}}" + "".join(f"{pm(cells.get((row, column), [])):>17}" for column in columns))
    rows = max((rows for rows, _, _ in grids.values()), key=len)

    def draw(figure):
        wide = sum(len(columns) for _, columns, _ in grids.values())
        slanted = max(len(column) for _, columns, _ in grids.values() for column in columns) > 9
        figure.set_size_inches(2.0 + 0.95 * wide + 0.3 * len(grids), 1.5 + 0.5 * slanted + 0.42 * len(rows))
        ratios = [len(columns) for _, columns, _ in grids.values()]
        axes = figure.subplots(1, len(grids), squeeze=False, width_ratios=ratios)[0]
        named = None
        for axis, (title, (rows_here, columns, cells)) in zip(axes, grids.items()):
            means = np.full((len(rows_here), len(columns)), np.nan)
            for (row, column), values in cells.items():
                if values and None not in values:
                    means[rows_here.index(row), columns.index(column)] = average(values)
            # an expert far above would leave the others one colour; twice the range keeps it light enough for text
            usual = means[[row != "expert" for row in rows_here]][:, [column != "expert" for column in columns]]
            known = usual[~np.isnan(usual)]
            low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
            axis.imshow(means, cmap="YlGnBu", aspect="auto", vmin=low, vmax=low + 2 * (high - low))
            for (i, j), value in np.ndenumerate(means):
                if not np.isnan(value):
                    dark = value > low + 1.2 * (high - low)
                    axis.text(j, i, f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}", ha="center", va="center",
                              fontsize=8, color="white" if dark else "black")
            axis.set_title(title, loc="left")
            axis.set_xticks(range(len(columns)), columns, rotation=30 if slanted else 0,
                            ha="right" if slanted else "center")
            axis.set_yticks(range(len(rows_here)), [""] * len(rows_here) if rows_here == named else rows_here)
            named = rows_here                                           # by the map to the left
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        figure.supxlabel(note, fontsize=8)
    return name, text, draw


def bars_picture(columns: dict[str, dict], tasks: str = TASKS["test"]):
    """What each policy of a run earns in each gym, with intervals over tasks."""
    gyms = list(dict.fromkeys(itertools.chain(*[column["gyms"] for column in columns.values()])))
    none = {"return": None, "ci95": None}                               # of tests in other gyms
    value = {(name, gym): column["gyms"].get(gym, none) for name, column in columns.items() for gym in gyms}
    most = max([of["return"] or 0.0 for of in value.values()])
    text = []
    for gym in gyms:
        for name in columns:
            of = value[name, gym]
            text.append(f"{gym:10} {short(name):16} {shown(of):>15} {bar(of['return'], most)}")

    def draw(figure):
        figure.set_size_inches(3.2 + 0.28 * len(gyms) * (len(columns) + 1), 3.2)
        axis = figure.subplots()
        for i, name in enumerate(columns):
            heights = [value[name, gym]["return"] or 0.0 for gym in gyms]
            errors = [value[name, gym]["ci95"] or 0.0 for gym in gyms]
            places = [(len(columns) + 1) * g + i for g in range(len(gyms))]
            axis.bar(places, heights, yerr=errors, width=0.9, color=COLOURS[i % len(COLOURS)], label=short(name),
                     error_kw={"linewidth": 1, "ecolor": "#444444"})
        axis.set_xticks([(len(columns) + 1) * g + (len(columns) - 1) / 2 for g in range(len(gyms))], gyms)
        axis.set_ylabel(f"return on {tasks}")
        axis.tick_params(axis="x", length=0)
        axis.grid(axis="y")
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return "gyms", text, draw


def strips_picture(path: Path, settings: dict):
    """What each turn of a conversation was credited with under every scheme: each gym's last one that earned."""
    talks = {}
    for row in read_log(path / "samples.jsonl"):
        if any(row.get("rewards") or []):
            talks[row["gym"]] = row
    schemes = {gym: {"reward": row["rewards"]} for gym, row in talks.items()}
    for gym, row in talks.items():
        for turn in rewards.TURN:
            schemes[gym][turn] = rewards.turn_credits(row["rewards"], turn, settings["gamma"], settings["k"])
        schemes[gym]["advantage"] = row["advantages"]
    text = []
    for gym, strips in schemes.items():
        text.append(f"{gym}, step {talks[gym]['step']}: return {sum(strips['reward']):.2f}; turns from left to right")
        text += [f"  {name:10}" + "".join(f"{value:+7.2f}" for value in strip) for name, strip in strips.items()]

    def draw(figure):
        wide = [len(strips["reward"]) for strips in schemes.values()]
        figure.set_size_inches(1.6 + 0.46 * max(wide), 0.5 + 2.0 * len(schemes))
        for axis, (gym, strips) in zip(figure.subplots(len(schemes), 1, squeeze=False).flat, schemes.items()):
            # each strip has colours of its own: they differ in scale
            shades = [[value / (max(map(abs, strip)) or 1) for value in strip] for strip in strips.values()]
            axis.imshow(shades, cmap="RdBu", vmin=-1.6, vmax=1.6, aspect="auto")
            for (i, name), (j, _) in itertools.product(enumerate(strips), enumerate(strips["reward"])):
                axis.text(j, i, f"{strips[name][j]:.2f}", ha="center", va="center", fontsize=7)
            axis.set_xlim(-0.5, max(wide) - 0.5)
            axis.set_title(f"{gym}: return {sum(strips['reward']):.2f}", loc="left")
            axis.set_yticks(range(len(strips)), strips)
            axis.set_xticks(range(len(strips["reward"])), range(1, 1 + len(strips["reward"])))
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        figure.supxlabel(f"turn; each row shaded by its own largest; advantage: as trained "
                         f"({settings['combine']}, {settings['normalize']})", fontsize=8)
    return ("strips", text, draw) if talks else None


def study_pictures(folder: Path, study: dict) -> list:
    """The pictures of a study."""
    cells_of, results = study["cells"], study["results"]
    parts: dict[tuple, list[str]] = {}
    for cell, values in study["cells"].items():
        parts.setdefault(tuple(values), []).append(cell)
    panels, grids = {}, {}
    for keys, cells in parts.items():
        first, *rest = [key for key in keys if len({cells_of[cell][key] for cell in cells}) > 1] or [""]
        if not rest:
            panels.setdefault("", {}).update({cell: cell for cell in cells})
            continue
        again = any(title.startswith(f"{first} (") for title in grids)  # another grid with these rows: say which
        fixed = [f"; {key} {cells_of[cells[0]][key]}" for key in keys if again and key not in (first, *rest)]
        label = {cell: ", ".join(f"{key} " * again + cells_of[cell][key] for key in rest) for cell in cells}
        earned = {}
        for cell in cells:
            row = cells_of[cell][first]
            panels.setdefault("".join([f"{first} {row}", *fixed]), {})[label[cell]] = cell
            earned[row, label[cell]] = [run["RL"]["return"] for run in results["cells"].get(cell, {}).values()]
        title = "".join([f"{first} (down), {', '.join(rest)} (across)", *fixed])
        grids[title] = *map(list, map(dict.fromkeys, zip(*earned))), earned
    paths = {cell: [folder / f"{cell}-s{seed}" for seed in rows] for cell, rows in results["cells"].items()}
    curves = {title: {label: [*map(curve, paths.get(cell, []))] for label, cell in lines.items()}
              for title, lines in panels.items()}
    pictures = [curves_picture(curves), dots_picture(study)]
    if grids:
        pictures.append(heat_picture("grid", grids, f"return on {tasks_of(study)}, mean over seeds"))
    tests = results["tests"]
    tables = {}
    for key in ["return", *study["show"].split()]:
        cells = {(test, policy): [row.get(key) for row in of.values()] for policy in tests
                 for test, of in tests[policy].items()}
        if any(None not in values for values in cells.values()):
            rows, columns = list(study["tests"]), list(tests)
            if len(rows) <= 7:
                rows, columns, cells = columns, rows, {(policy, test): of for (test, policy), of in cells.items()}
            tables[key] = rows, columns, cells
    if tables:
        name, _, draw = heat_picture("tests", tables, "mean over seeds")
        pictures.append((name, [], draw))                               # in text they are in the study's table
    for path in [*itertools.chain(*paths.values())][:1]:
        pictures.append(strips_picture(path, grpo.read_json(path / "config.json", {})))
    return pictures


def run_pictures(path: Path) -> list:
    """The pictures of a run."""
    settings, evals = grpo.read_json(path / "config.json", {}), grpo.read_json(path / "eval.json", {})
    lines = {"mean": [curve(path)], **{gym: [curve(path, gym)] for gym in envs.GYMS}}
    pictures = [curves_picture({"": lines})]
    columns = {name: column for name, column in evals.items() if name != "untrained" and "failed" not in column
               and isinstance(column["gyms"], dict)}                    # not the fidelity of a self-play's user
    if columns:
        pictures.append(bars_picture(columns, tasks_of(settings)))
    return [*pictures, strips_picture(path, settings)]


def save_picture(path: Path, draw) -> None:
    """Draw, and write a PNG and an SVG; without matplotlib say so."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        print(f"({path.name}: no picture, matplotlib is not installed)")
        return
    path.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(layout="constrained")
        draw(figure)
        figure.savefig(f"{path}.png", dpi=150)
        figure.savefig(f"{path}.svg", metadata={"Date": None})
    print(f"({path}.png, .svg)")


def plot(s: Settings) -> None:
    """Draw runs, or studies: plot runs/demo runs/credit.  PNG and SVG with matplotlib, and as text in any case."""
    if s.model == "tiny":
        raise ValueError("plot needs the folders of runs or studies:  python userrl.py plot runs/demo")
    for place in listed(s.model):
        folder = Path(place)
        study = grpo.read_json(folder / "study.json", {})
        if not study and "turn" not in grpo.read_json(folder / "config.json", {}):
            raise ValueError(f"{folder} is neither a run of userrl.py nor a study" if folder.exists() else
                             f"{folder} does not exist")
        if study and study.get("results") == {"cells": {}, "tests": {}}:
            raise ValueError(f"no run of {folder} is finished yet")
        try:
            pictures = study_pictures(folder, study) if study else run_pictures(folder)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} does not hold what a run or a study writes: {error!r}") from None
        if not any(pictures):
            raise ValueError(f"{folder} has no number yet: nothing to draw")
        if study:
            print("\n".join(study_lines(study)))
        for name, text, draw in filter(None, pictures):
            print("\n".join(["", *text]))
            save_picture(folder / "pictures" / name, draw)


# ---------------------------------------------------------------------------------------------- the report

# The numbers of an evaluation's table that a report shows, and their names there.
MEASURES = {"return": "return", "ci95": "± (half a 95 % interval)", "success": "share of tasks solved",
            "turns": "turns", "effective_turns": "turns until the last reward",
            "time_weighted": "rewards, each divided by its turn", "n": "number of tasks"}
PAPER = {"gamma": 0.8, "k": 2.0, "normalize": "std"}                    # UserRL's numbers
MOST_TALKS = 2000                                                       # conversations in a report


def rounded(data):
    """The same data with four significant digits, because the page shows fewer; NaN and infinity, as None."""
    if isinstance(data, dict):
        return {key: rounded(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [rounded(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return float(f"{data:.4g}") if isinstance(data, float) else data


def runs_in(folder: Path) -> list[tuple[Path, dict]]:
    """(folder, settings) of a run, or of each run in a folder of runs; ValueError in one line if there is none."""
    found = []
    for path in [folder] if (folder / "config.json").exists() else sorted(folder.glob("*/")):
        settings = grpo.read_json(path / "config.json", {})
        if {"command", "gyms", "turn", "trajectory", "combine", *PAPER} <= set(settings):
            found.append((path, settings))
    if not found:
        raise ValueError(f"{folder} is no run of userrl.py, nor a folder of such runs")
    return found


def all_numbers(values: list) -> bool:
    """Are these numbers, or None?"""
    return all(value is None or isinstance(value, (int, float)) for value in values)


def curves(rows: list[dict]) -> dict[str, dict]:
    """Of each phase a list of numbers per column of metrics.jsonl, None where there is none; at most some 400 rows."""
    table = {}
    for phase in ("sft", "rl", "val"):
        some = [row for row in rows if row.get("phase") == phase]
        some = some[::1 + len(some) // 400]
        keys = dict.fromkeys(itertools.chain(*some))
        columns = {key: [row.get(key) for row in some] for key in keys}
        table[phase] = {key: values for key, values in columns.items() if all_numbers(values)}
    return table


def group_record(rows: list[dict], settings: dict) -> tuple[list[dict], list[dict]]:
    """The conversations of a group, and its `rewards.workings` with the run's own numbers and with the paper's.

    No workings unless the whole group is in the log: an advantage compares.
    """
    talks = []
    for place, row in enumerate(rows):
        talks.append({
            "id": f"{row['step']}/{row.get('group')}/{place}", "gym": row["gym"], "step": row["step"], "place": place,
            "status": row["status"], "rewards": row["rewards"],
            "said": [["agent" if m["role"] == "assistant" else m["role"], str(m["content"])] for m in row["messages"]],
            "tokens": row.get("tokens") or [], "thoughts": row.get("thoughts") or []})
        rewards.turn_credits(row["rewards"], "naive")                   # an error unless they are numbers
    if len(rows) != rows[0].get("of"):
        return talks, []
    earned, tokens = [talk["rewards"] for talk in talks], [talk["tokens"] for talk in talks]
    own = {key: settings[key] for key in PAPER}
    return talks, [rewards.workings(earned, tokens, **numbers) for numbers in (own, PAPER)]


def conversations(path: Path, settings: dict, most: int) -> tuple[list[dict], dict[str, list], int]:
    """Of a run: the last conversations of samples.jsonl, then those of talks.json; the workings of each group.

    Also how many conversations samples.jsonl has.
    """
    by_group: dict[str, list[dict]] = {}
    for row in read_log(path / "samples.jsonl"):
        by_group.setdefault(f"{path.name}/{row.get('step')}/{row.get('group')}", []).append(row)
    talks, groups = [], {}
    for name, rows in reversed(by_group.items()):
        try:
            some, numbers = group_record(rows, settings)
        except (ValueError, TypeError, LookupError, AttributeError):    # not what a run writes
            continue
        if len(talks) + len(some) > most:
            break
        if numbers:
            groups[name] = numbers
        talks = [{**talk, "group": name if numbers else None} for talk in some] + talks
    for policy, gyms in grpo.read_json(path / "talks.json", {}).items():
        for gym, talk in gyms.items():
            talks.append({"id": f"{policy}/{gym}", "gym": gym, "policy": policy, "status": talk["status"],
                          "said": talk["history"], "rewards": list(talk["rewards"]), "tokens": [], "thoughts": []})
    return talks, groups, sum(map(len, by_group.values()))


def run_record(path: Path, settings: dict) -> dict:
    """What a report shows of a run beside its conversations."""
    evals = {}
    for policy, result in grpo.read_json(path / "eval.json", {}).items():
        if not isinstance(result["gyms"], dict):                        # the fidelity of a self-play's user
            continue
        tables = {**result["gyms"], "macro average": result["macro"], "micro average": result["micro"]}
        rows = {name: {key: row.get(key) for key in MEASURES} for name, row in tables.items()}
        evals[policy] = {"table": rows, "failed": result.get("failed", "")}
    return {"name": path.name, "settings": settings, "evals": evals, "curves": curves(read_log(path / "metrics.jsonl"))}


def write_report(folder: Path) -> Path:
    """Write report.html into a run's folder, or a folder of runs; ValueError in one line where there is none.

    The page needs neither network nor packages.  Every number in it was computed here.
    """
    runs = runs_in(folder)
    data = {"title": folder.resolve().name, "endings": ENDINGS, "measures": MEASURES,
            "runs": [], "talks": [], "groups": {}, "rules": {}, "logged": 0}
    for path, settings in runs:
        try:
            talks, groups, logged = conversations(path, settings, MOST_TALKS // len(runs))
            data["runs"].append(run_record(path, settings))
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{path} does not hold what a run writes: {grpo.reason(error)}") from None
        data["talks"] += [{**talk, "id": f"{path.name}/{talk['id']}", "run": path.name} for talk in talks]
        data["groups"] |= groups
        data["logged"] += logged
    # a gym's docstring says what it pays for (there is none of a reader's own gym); only its example keeps its lines
    played = [talk["gym"] for talk in data["talks"]]
    for gym in [gym for gym in envs.GYMS if gym in played]:
        data["rules"][gym] = re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.getdoc(envs.GYMS[gym]) or "")
    columns = itertools.chain(*[run["curves"]["rl"] for run in data["runs"]])
    data["gyms"] = [key for key in dict.fromkeys(columns) if key not in (*COLUMNS, "open_thoughts", "echo")]
    # "<" as JSON may also write it: no text of a model ends the script that the data stand in
    text = json.dumps(rounded(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    part = folder / "report.html.part"
    tasks = " and ".join(dict.fromkeys(tasks_of(settings) for _, settings in runs))
    part.write_text(PAGE.replace("__TASKS__", tasks).replace("__DATA__", text))
    return part.replace(folder / "report.html")


def report(s: Settings) -> None:
    """Write a page for a browser about runs, or folders of runs: report runs/demo.  Curves, tables, conversations."""
    if s.model == "tiny":
        raise ValueError("report needs the folder of a run, or of a study:  python userrl.py report runs/demo")
    for place in listed(s.model):
        print(f"written to {write_report(Path(place))}")


COMMANDS = {"demo": demo, "sft": sft, "train": train, "eval": eval_, "selfplay": selfplay, "ablate": ablate,
            "plot": plot, "report": report, "play": play}


def main(argv: list[str]) -> int:
    if argv[:1] == ["ablate"] and not any(item.startswith(("--study=", "--grid=")) for item in argv):
        argv = [*argv, "--study=credit"]
    if argv[:1] in (["plot"], ["report"]):                              # folders as they are
        places = [item for item in argv[1:] if not item.startswith("-")]
        argv = [item for item in argv if item not in places] + [f"--model={','.join(places)}"] * bool(places)
    return grpo.command_line(argv, __doc__, Settings, COMMANDS, "userrl.py")


# ---------------------------------------------------------------------------------------------- the report's page

# __DATA__ is what `write_report` collects, __TASKS__ what was evaluated.
PAGE = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<!-- nothing is fetched from anywhere, whatever a model wrote into a conversation -->
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none'; img-src data:;
  style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>report</title>
<style>
:root {
  color-scheme: light dark;
  --paper: light-dark(#faf9f7, #15171b); --card: light-dark(#fff, #1d2026); --line: light-dark(#e2dfd9, #343842);
  --ink: light-dark(#22252b, #e3e5e9); --dim: light-dark(#646974, #9aa1ad); --link: light-dark(#1f5fbf, #8ab4f8);
  --more: light-dark(#2f76d2, #4a86e0); --less: light-dark(#d9730d, #d0701f); --mark: light-dark(#eef3fb, #262c38);
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1240px; padding: 0 20px 60px; background: var(--paper); color: var(--ink);
       font: 15px/1.55 system-ui, sans-serif; font-variant-numeric: tabular-nums }
header { display: flex; gap: 16px; align-items: start; justify-content: space-between; padding: 26px 0 4px }
h1 { font-size: 24px; line-height: 1.25; margin: 0 }
h2 { font-size: 18px; margin: 40px 0 6px }
h3 { font-size: 14px; margin: 0 }
p { margin: 6px 0; max-width: 84ch }
a { color: var(--link); text-decoration: none }
mark { color: inherit; padding: 1px 5px; border-radius: 4px }
.dim { color: var(--dim) }
.small { font-size: 13px }
.scroll { overflow-x: auto }
.maths { font: 13px/1.6 ui-monospace, monospace; overflow-wrap: anywhere }
:focus-visible, label:has(:focus-visible) { outline: 2px solid var(--link); outline-offset: 1px }
button, select, input { font: inherit; font-size: 13px; color: inherit; background: var(--card); padding: 3px 9px;
                        border: 1px solid var(--line); border-radius: 7px }
button, summary, label { cursor: pointer }
input { width: 5.5em }
table { border-collapse: collapse; font-size: 14px }
td, th { padding: 5px 14px 5px 0; text-align: left; font-weight: 400; white-space: nowrap;
         border-bottom: 1px solid var(--line) }
th, legend { color: var(--dim); font-size: 13px }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 8px 0; max-width: 90ch }
dd { margin: 0 }
figure, #schemes, #list { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 0 }
#charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px }
figure { padding: 12px 14px }
svg { display: block; width: 100%; height: auto; margin-top: 6px; font-size: 10px; fill: var(--dim) }
.key { display: flex; flex-wrap: wrap; gap: 1px 10px; font-size: 12px; min-height: 3.1em; align-content: start }
.key i { display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-right: 4px }
#schemes { display: flex; flex-wrap: wrap; gap: 8px 22px; padding: 10px 14px; position: sticky; top: 0; z-index: 1 }
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; max-width: 266px }
fieldset:last-child { max-width: none }
fieldset:disabled { opacity: .45 }
fieldset input { position: absolute; opacity: 0; width: 1px }
legend { padding: 0 }
label { display: inline-block; font-size: 13px; padding: 2px 9px; border: 1px solid var(--line); margin-right: -1px }
label:first-of-type { border-radius: 7px 0 0 7px }
label:last-of-type { border-radius: 0 7px 7px 0 }
label:has(:checked) { background: var(--link); border-color: var(--link); color: var(--card) }
#filters { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 8px 0 }
#browser { display: grid; grid-template-columns: 290px minmax(0, 1fr); gap: 22px; align-items: start }
#list { height: calc(100vh - 150px); overflow-y: auto; position: sticky; top: 135px }
.row { display: flex; flex-wrap: wrap; justify-content: space-between; padding: 6px 12px; font-size: 13px;
       color: inherit; border-bottom: 1px solid var(--line) }
.row:hover, .row[aria-current] { background: var(--mark) }
.row[aria-current] { box-shadow: inset 3px 0 var(--link) }
.row .strip { width: 100% }
.strip { display: inline-flex; gap: 2px; flex-wrap: wrap; padding-top: 5px; vertical-align: top }
.strip i { width: 12px; height: 12px; border-radius: 3px; border: 1px solid var(--line) }
.group { display: grid; grid-template-columns: repeat(2, max-content) 1fr; gap: 0 14px; font-size: 13px }
.say { margin: 10px 0; max-width: 78ch; scroll-margin-top: 140px }
.said { white-space: pre-wrap; overflow-wrap: anywhere; padding: 8px 13px; border: 1px solid var(--line);
        border-radius: 4px 12px 12px 12px; background: var(--card) }
.said.maths { font-size: 12px }
.agent { margin-left: 28px }
.agent .said { border-radius: 12px 4px 12px 12px; cursor: pointer }
.agent.on .said { outline: 2px solid var(--link) }
.thought { font-style: italic; padding: 3px 13px; overflow-wrap: anywhere }
.who { display: flex; flex-wrap: wrap; gap: 3px 12px; align-items: baseline; font-size: 13px; color: var(--dim) }
.who b { color: var(--ink) }
#why { margin: 8px 0 18px 28px; max-width: 78ch; padding: 12px 16px; background: var(--mark); border-radius: 10px }
#why li { margin: 7px 0 }
#why td { padding: 0; border: 0; height: 30px }
#why th { border: 0; vertical-align: bottom }
#why th:first-child { position: sticky; left: 0; background: var(--mark) }
#why td button { width: 100%; height: 100%; border-radius: 0; text-align: right }
#why button[aria-pressed=true] { outline: 2px solid var(--link); outline-offset: -2px; font-weight: 600 }
@media (max-width: 760px) {
  body { padding: 0 12px 40px }
  #browser { grid-template-columns: minmax(0, 1fr) }
  #list, #schemes { position: static; max-height: 40vh }
  .agent, #why { margin-left: 0 }
  .say { scroll-margin-top: 8px }
}
</style>
<header>
  <div><h1 id="title"></h1><div id="about" class="dim"></div></div>
  <button id="theme" title="light or dark">◐ theme</button>
</header>
<p>An agent talks with simulated users, and some of its turns earn a <b>reward</b>. It is trained on <b>groups</b>:
  several conversations that begin alike, with the same user and the same task. An <b>advantage</b> says what training
  does with a turn: above 0 its words become <mark id="more">more likely</mark>, below 0
  <mark id="less">less likely</mark>, at 0 nothing happens. How rewards become advantages is a choice, a <b>scheme</b>.
  Under <a href="#conversations">Conversations</a> every scheme can be compared on every turn: click on what the agent
  said, and the arithmetic is spelled out.</p>
<details><summary>Words used here</summary><dl id="words"></dl></details>
<details><summary>Settings</summary><pre id="settings" class="small scroll"></pre></details>
<section id="results"><h2>Results on __TASKS__</h2>
  <p class="dim small">Held-out and validation tasks were never trained on; ± is half a 95 % interval over the tasks.
    In the macro average every gym counts the same, in the micro average every task.
    <select id="measure" aria-label="measure"></select>
    <select id="policy" aria-label="policy"><option value="">every policy</option></select></p>
  <div class="scroll"><table id="table"></table></div></section>
<section id="curves"><h2>Learning curves</h2>
  <p class="dim small">Thin: each step of each run. Thick: the mean of five steps, and of runs that differ in their seed
    alone. Point at a curve to read it.</p>
  <div id="charts"></div></section>
<section id="conversations"><h2>Conversations</h2>
  <p class="dim small" id="count"></p>
  <div id="schemes"></div>
  <div id="filters"></div>
  <div id="browser"><nav id="list" aria-label="conversations"></nav><main id="talk"></main></div></section>
<script type="application/json" id="data">__DATA__</script>
<script>
"use strict";
// ---- helpers; text reaches the page as text only, never as HTML

const D = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
function el(tag, props, ...kids) {
  const e = Object.assign(document.createElement(tag), props);
  e.append(...kids.filter(kid => kid != null));
  return e;
}
function svg(tag, attributes, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const key in attributes) e.setAttribute(key, attributes[key]);
  if (text != null) e.textContent = text;
  return e;
}
function num(x) {
  if (typeof x !== "number") return "–";
  const size = Math.abs(x), digits = size >= 100 ? 0 : size && size < 0.1 ? 3 : 2;
  return (Number(x.toFixed(digits)) === 0 ? 0 : x).toFixed(digits).replace("-", "−");
}
const signed = x => (x > 0 ? "+" : "") + num(x);
const sub = n => String(n).replace(/\d/g, d => "₀₁₂₃₄₅₆₇₈₉"[d]);
const power = n => String(n).replace(/\d/g, d => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d]);
const small = text => el("span", {className: "dim small"}, text);
const total = list => list.reduce((a, b) => a + b, 0);
const mean = list => list.length ? total(list) / list.length : null;
const unique = list => [...new Set(list)];
const known = list => list.filter(x => x != null);

// ---- the head of the page

const WORDS = {
  turn: "one message of the agent, and what the user replies to it",
  token: "a word or a piece of one, which is what training counts",
  reward: "r, what a turn earned by the rules of its gym (the game that is played)",
  return: "the sum of a conversation's rewards",
  rollout: "one conversation of a group",
  credit: "w, how much of what was earned is said to be this turn's doing",
  score: "R, one number for a whole conversation",
  r2g: "reward-to-go, a credit and also a score: the score is the credit of turn 1; discounted if γ is below 1",
  z: "how much better R is than the group's mean R, in units of its standard deviation (std) or mean size (mean)",
  advantage: "A, what training does with the words of a turn: more likely above 0, less likely below",
  "γ (gamma)": "the discount: a reward that comes n turns later counts γⁿ times",
  numbers: "γ and the unit of z: as this run was trained with, or as in the UserRL paper"};
const define = (word, says) => $("words").append(el("dt", {}, word), el("dd", {}, says));
for (const word in WORDS) define(word, WORDS[word]);
const one = D.runs.length === 1, first = (D.runs.find(run => run.curves.rl.step) || D.runs[0]).settings;
const trained = s => s.combine === "loo" ? "loo" : `${s.turn} ${s.trajectory} ${s.combine}`;
document.title = $("title").textContent = D.title;
$("about").textContent = !one ? D.runs.length + " runs" : `${first.command}, ${first.steps} steps of RL, seed ${
  first.seed}; gyms: ${first.gyms}; user: ${first.user}; trained with the scheme ${trained(first)}`;
// of several runs only what differs
for (const run of D.runs) {
  const lines = Object.entries(run.settings).filter(([key, value]) => key !== "checksum"
    && (one || D.runs.some(other => other.settings[key] !== value)));
  $("settings").append((one ? "" : `\n${run.name}\n`) + lines.map(([key, value]) => `${key} = ${value}\n`).join(""));
}
const dark = () => (document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches
  ? "dark" : "light")) === "dark";
$("theme").onclick = () => { document.documentElement.style.colorScheme = dark() ? "light" : "dark"; };

function drawTable() {
  const measure = $("measure").value, rows = [];
  for (const run of D.runs)
    for (const policy in run.evals)
      if ($("policy").value === "" || $("policy").value === policy)
        rows.push({run: run.name, policy, ...run.evals[policy]});
  const names = unique(rows.flatMap(row => Object.keys(row.table)))
    .filter(name => rows.some(row => row.table[name]?.[measure] != null));
  const cell = x => el("td", {}, measure === "n" ? x?.n ?? "–" : num(x?.[measure]),
    measure === "return" && x?.ci95 != null ? small(" ± " + num(x.ci95)) : null);
  $("table").replaceChildren(
    el("tr", {}, ...[...(one ? [] : ["run"]), "policy", ...names].map(name => el("th", {scope: "col"}, name))),
    ...rows.map(row => el("tr", {}, one ? null : el("td", {}, row.run),
      el("td", {}, row.policy + (row.failed ? " (not measured)" : ""), small(tasks(row))),
      ...names.map(name => cell(row.table[name])))));
}
function tasks({table}) {
  const n = known(Object.values(table).map(x => x.n));
  return n.length ? `, ${unique([Math.min(...n), Math.max(...n)]).join(" to ")} tasks a gym` : "";
}
for (const key in D.measures) if (key !== "ci95") $("measure").append(el("option", {value: key}, D.measures[key]));
const policies = unique(D.runs.flatMap(run => Object.keys(run.evals)));
for (const name of policies) $("policy").append(el("option", {value: name}, name));
$("policy").hidden = one;
if (!one && policies.includes("RL")) $("policy").value = "RL";
$("policy").onchange = $("measure").onchange = drawTable;
drawTable();
$("results").hidden = !policies.length;

// ---- curves: lines is {name: [{x: [...], y: [...]}, one per run]}; a y may be null

function smooth(runs) {
  const x = unique(runs.flatMap(run => run.x)).sort((a, b) => a - b);
  const rows = runs.map(run => new Map(run.x.map((at, i) => [at, run.y[i]])));
  const y = x.map(at => mean(known(rows.map(row => row.get(at)))));
  return {x, y: y.map((now, i) => now == null ? null : mean(known(y.slice(Math.max(0, i - 4), i + 1))))};
}
function chart(title, hint, lines) {
  const hsl = (i, light) => `hsl(${(215 + i * 137.5) % 360} 60% ${light + i % 2 * 6}%)`;
  const colour = i => `light-dark(${hsl(i, 46)}, ${hsl(i, 64)})`;
  const drawn = Object.entries(lines).map(([name, runs]) => ({name, runs: runs.filter(run => known(run.y).length)}))
    .filter(line => line.runs.length).map((line, i) => ({...line, ...smooth(line.runs), colour: colour(i)}));
  if (!drawn.length) return;
  const runs = drawn.flatMap(line => line.runs), W = 320, H = 170, left = 34, low = H - 18;
  const xs = unique(runs.flatMap(run => run.x)), x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  const ys = known(runs.flatMap(run => run.y)), y0 = Math.min(0, ...ys);
  const span = (Math.max(...ys) - y0 || 1) * 1.05, unit = 10 ** Math.floor(Math.log10(span / 3));
  const gap = unit * [1, 2, 5, 10].find(n => span / (unit * n) <= 4.2);
  const X = x => left + (x - x0) / (x1 - x0) * (W - left - 6), Y = y => low - (y - y0) / span * (low - 8);
  const last = drawn.map(line => `${line.name} ${num(known(line.y).at(-1))}`).join(", ");
  const art = svg("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}, at the end: ${last}`});
  for (let y = Math.ceil(y0 / gap) * gap; y <= y0 + span; y += gap)
    art.append(svg("line", {x1: left, x2: W - 6, y1: Y(y), y2: Y(y), stroke: "var(--line)"}),
      svg("text", {x: left - 5, y: Y(y) + 3, "text-anchor": "end"}, +y.toPrecision(3)));
  art.append(svg("text", {x: left, y: H - 4}, x0),
    svg("text", {x: W - 6, y: H - 4, "text-anchor": "end"}, "step " + x1));
  const draw = (run, style) => art.append(svg("polyline", {...style, fill: "none", points: run.x.map((x, i) =>
    run.y[i] == null ? "" : `${X(x).toFixed(1)},${Y(run.y[i]).toFixed(1)}`).join(" ")}));
  for (const line of drawn) {
    for (const run of line.runs) draw(run, {stroke: line.colour, "stroke-width": 1, opacity: 0.5});
    draw(line, {stroke: line.colour, "stroke-width": 2});
  }
  const hair = svg("line", {y1: 8, y2: low, stroke: "var(--dim)", visibility: "hidden"});
  const key = el("div", {className: "key"});
  art.append(hair);
  const read = x => key.replaceChildren(...x == null ? [] : [el("b", {}, "step " + x)], ...drawn.map(line => {
    const y = line.y[line.x.indexOf(x)];
    return el("span", {}, el("i", {style: `background:${line.colour}`}), line.name + (y == null ? "" : " " + num(y)));
  }));
  art.onpointermove = event => {
    const box = art.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * W;
    const x = xs.reduce((best, x) => Math.abs(X(x) - at) < Math.abs(X(best) - at) ? x : best);
    for (const end of ["x1", "x2"]) hair.setAttribute(end, X(x));
    hair.setAttribute("visibility", "visible");
    read(x);
  };
  art.onpointerleave = () => { hair.setAttribute("visibility", "hidden"); read(); };
  read();
  $("charts").append(el("figure", {}, el("h3", {}, title), el("div", {className: "dim small"}, hint), art, key));
}
const curve = (run, phase, key) => ({x: run.curves[phase].step || [], y: run.curves[phase][key] || []});
// a study's runs, CELL-s0, CELL-s1, ..., are one line
function cells(phase, key) {
  const lines = {};
  for (const run of D.runs) (lines[run.name.replace(/-s\d+$/, "")] ??= []).push(curve(run, phase, key));
  return lines;
}
for (const [phase, hint] of [["rl", "what training conversations earned"], ["val", "on validation tasks"]]) {
  const keys = {"all gyms": "return", ...Object.fromEntries(D.gyms.map(gym => [gym, gym]))}, lines = {};
  for (const name in keys)
    if (one) lines[name] = [curve(D.runs[0], phase, keys[name])];
    else chart("Return, " + name, hint, cells(phase, keys[name]));
  chart("Return", hint, lines);
}
chart("Dead groups", "share of groups that teach nothing: all earned the same", cells("rl", "dead"));
chart("Turns", "length of a conversation", cells("rl", "turns"));
chart("Entropy", "how undecided the agent is about its next word", cells("rl", "entropy"));
chart("Distance from the start", "KL to the policy that RL started from", cells("rl", "kl_ref"));
chart("Cold start: loss", "imitating the demonstrator", cells("sft", "loss"));
$("curves").hidden = !$("charts").children.length;

// ---- schemes: S is the chosen one; D.groups has, per group, the numbers as trained and as in the paper

const PAPER = Object.values(D.groups)[0]?.[1], like = c => `γ ${c.gamma}, ${c.normalize}`;
const PARTS = {
  turn: ["credit w of a turn", {naive: "its own reward", equalized: "the same for every turn",
    r2g: "its reward and all later ones", em: "its own reward, squeezed: ½ for nothing, 1 for 1"}],
  trajectory: ["score R of a conversation", {sum: "all rewards added", mean: "all rewards, averaged",
    r2g: "all rewards added"}],
  combine: ["advantage A", {scale: "z, dealt out by credit (UserRL's code)",
    paper: "credit against the mean score (as printed)", shift: "z, moved by the turn's credit",
    loo: "what was still to come, against the other rollouts"}],
  set: ["numbers", PAPER && D.runs.some(run => like(run.settings) !== like(PAPER)) ?
    {0: one ? `this run (${like(first)})` : "as trained", 1: `UserRL (${like(PAPER)})`} : {}]};
const S = {turn: first.turn, trajectory: first.trajectory, combine: first.combine, set: 0}, at = {talk: -1, turn: -1};
function drawSchemes() {
  $("schemes").replaceChildren(...Object.entries(PARTS).map(([part, [title, options]]) => {
    const idle = S.combine === "loo" && (part === "turn" || part === "trajectory");
    const pick = value => el("label", {}, el("input", {type: "radio", name: part, value,
      checked: String(S[part]) === value, onchange: () => choose({[part]: part === "set" ? +value : value})}),
    part === "set" ? options[value] : value);
    return !Object.keys(options).length ? "" : el("fieldset", {disabled: idle}, el("legend", {}, title),
      ...Object.keys(options).map(pick), part === "set" ? null : el("div", {className: "dim small"},
        idle ? "loo does not read it" : says(part)));
  }));
}
for (const [title, options] of Object.values(PARTS).slice(0, 3))
  for (const name in options) define(`${title.split(" ")[0]} ${name}`, options[name]);
const workings = talk => D.groups[talk?.group]?.[S.set];
const says = (part, now = workings(D.talks[at.talk]) || first) =>
  PARTS[part][1][S[part]] + (S[part] === "r2g" && now.gamma < 1 ? ", discounted" : "");
const advantages = (talk, s = S) => workings(talk)?.advantages[trained(s)][talk.place];
const largest = talk => Math.max(1e-9, ...workings(talk).advantages[trained(S)].flat().map(Math.abs));
const tint = (a, top) => !a ? "" : `background: color-mix(in srgb, var(--${a > 0 ? "more" : "less"}) ${
  Math.round(10 + 55 * Math.min(1, Math.abs(a) / top))}%, var(--card))`;
$("more").style = tint(1, 2);
$("less").style = tint(-1, 2);

// ---- why a turn was paid: the scheme's formula, filled in with the numbers that Python computed

function explain(talk, t) {
  const c = workings(talk), i = talk.place, T = sub(t + 1), r = talk.rewards, A = signed(advantages(talk)[t]);
  const g = c.gamma === 1 ? "" : "γ ", count = c.R.sum.length, centred = c.normalize === "center", lines = [];
  const add = (maths, words) => lines.push(el("li", {}, el("div", {className: "maths"}, maths), el("div", {}, words)));
  const over = unit => centred ? "" : ` / ${num(unit)}`;
  const size = {std: "standard deviation", mean: "mean size"}[c.normalize];
  const divided = what => centred ? "." : `; the unit is the ${size} of ${what}.`;
  const factor = j => g && j ? `${c.gamma}${j > 1 ? power(j) : ""} · ` : "";
  const sum = from => r.slice(from).map((x, j) => x && factor(j) + num(x)).filter(Boolean).join(" + ") || "0";
  const is = (text, x) => text === num(x) ? text : `${text} = ${num(x)}`;
  const toGo = `r${T} + ${g}r${sub(t + 2)} + … = ${is(sum(t), c.w.r2g[i][t])}`;
  if (S.combine === "loo") {
    const G = c.w.r2g, theirs = G.filter((_, j) => j !== i).map(row => num(row[t] ?? 0)).join(", ");
    add(`G${T} = ${toGo}`, "What this conversation earned from this turn on.");
    add(`mean G${T} of the others = (${theirs}) / ${count - 1} = ${num(c.others[i][t])}`,
      `What the other ${count - 1} rollouts earned from their turn ${t + 1} on; 0 where they had ended.`);
    add(`A${T} = (${num(G[i][t])} − ${num(c.others[i][t])})${over(c.unit.r2g)} = ${A}`,
      "More than the others is above 0, less is below"
      + divided("the group's G₁, one unit for all turns, to keep them comparable"));
    return lines;
  }
  const key = S.trajectory, w = c.w[S.turn][i][t], R = c.R[key][i], z = c.z[key][i], m = num(c.mean[key]);
  add({naive: `w${T} = r${T} = ${num(w)}`, equalized: `w${T} = 1`, r2g: `w${T} = ${toGo}`,
    em: `w${T} = ½ + ½ · (1 − e^(−${c.k} · ${num(r[t])})) / (1 − e^−${c.k}) = ${num(w)}`}[S.turn],
  `The credit of this turn: ${says("turn")}.`);
  if (S.combine === "paper") {
    add(`mean R = (${c.R[key].map(num).join(", ")}) / ${count} = ${m}`,
      `The scores of the group's ${count} rollouts: ${says("trajectory")}.`);
    add(`A${T} = (w${T} − mean R)${centred ? "" : " / unit"} = (${num(w)} − ${m})${over(c.paper_unit[key])} = ${A}`,
      "The credit of one turn, against the mean score of whole conversations" + divided("the scores"));
    return lines;
  }
  const plain = r.filter(Boolean).map(num).join(" + ") || "0";
  add({sum: `R = r₁ + r₂ + … = ${is(plain, R)}`, mean: `R = (${plain}) / ${r.length} turns = ${num(R)}`,
    r2g: `R = r₁ + ${g}r₂ + … = ${is(sum(0), R)}`}[key],
  `The score of this conversation: ${says("trajectory")}.`);
  add(`z = (R − mean R)${centred ? "" : " / unit"} = (${num(R)} − ${m})${over(c.unit[key])} = ${signed(z)}`,
    `This conversation did ${z > 0 ? "better than" : z < 0 ? "worse than" : "as well as"} its group's mean`
    + divided("the group's scores"));
  if (S.combine === "scale") {
    const used = c.used[S.turn][i], all = c.sum[S.turn][i];
    add(all ? `A${T} = z · w${T} / mean w = ${num(z)} · ${num(w)} / (${num(all)} / ${used}) = ${A}` : `A${T} = 0`,
      !all ? "No turn of this conversation has credit: there is nothing to deal z out by."
      : !w ? "A turn without credit gets no share of z, however the conversation went."
      : `z is dealt out by credit; ${num(all)} / ${used} is the mean credit of a word in the turns that have any.`
        + (z < 0 && S.turn !== "equalized" ? " As z is below 0, more credit means more blame." : ""));
  } else {
    const own = num(c.m[S.turn][i]), range = c.range[S.turn];
    if (range) add(`A${T} = z + (w${T} − own mean w)${centred ? "" : " / range"} = ${num(z)} + (${num(w)} − ${own})${
      over(range)} = ${A}`, "More credit than this conversation's mean lifts a turn above z, less lowers it below"
      + (centred ? "." : "; the range is the group's largest credit minus its smallest."));
    else add(`A${T} = z = ${A}`, "All credits in the group are equal: nothing moves z.");
  }
  return lines;
}
function inShort(talk, t) {
  const now = talk.rewards[t], later = total(talk.rewards.slice(t + 1)), n = num(now), l = num(later);
  return `This turn earned ${now ? n : "nothing"}, and ${later ? l : "nothing"} came later: ` + (
    now && later ? "naive credits it with the first, r2g and loo with both."
    : now ? "naive, r2g and loo credit it with the same."
    : later ? "naive gives it no credit, r2g and loo count what came."
    : "naive, r2g and loo give it no credit; equalized and em do.");
}
function drawWhy(talk, t) {
  const c = workings(talk), A = advantages(talk)[t], dead = !known(Object.values(c.advantages).flat(2)).some(Boolean);
  const top = Math.max(...Object.values(c.advantages).map(a => Math.abs(a[talk.place][t])));
  const cell = (change, rows) => {
    const s = {...S, ...change}, a = advantages(talk, s)[t];
    return el("td", {rowSpan: rows}, el("button", {style: tint(a, top), title: trained(s),
      ariaPressed: trained(s) === trained(S), onclick: () => choose(change)}, signed(a)));
  };
  const head = (name, formula) => el("th", {scope: "col"}, el("b", {}, name), el("div", {className: "maths"}, formula));
  const rows = Object.keys(PARTS.turn[1]).map((turn, row) => el("tr", {},
    el("th", {scope: "row"}, el("b", {}, turn), " " + num(c.w[turn][talk.place][t])),
    ...["scale", "paper", "shift"].map(combine => cell({turn, combine}, 1)), row ? null : cell({combine: "loo"}, 4)));
  const grid = el("table", {}, el("tr", {}, head("credit", "w"), head("scale", "z·w/mean w"),
    head("paper", "(w−mean R)/unit"), head("shift", "z+(w−mean w)/range"), head("loo", "(G−others' G)/unit")), ...rows);
  const does = A ? `Its ${talk.tokens[t]} tokens become ${A > 0 ? "more" : "less"} likely.` : "Nothing changes.";
  const box = el("section", {id: "why", ariaLabel: "why this advantage"},
    el("h3", {}, `Turn ${t + 1}, ${trained(S)}: advantage ${signed(A)}. `, el("span", {className: "dim"}, does)),
    el("p", {}, inShort(talk, t)));
  if (dead) {
    box.append("All rollouts of this group earned the same: there is nothing to compare, and every scheme pays 0.");
    return box;
  }
  const R = num(c.R[S.trajectory][talk.place]), z = signed(c.z[S.trajectory][talk.place]);
  // scores that are equal under this scheme alone, such as sums of conversations of several lengths
  const idle = !known(c.advantages[trained(S)].flat()).some(Boolean);
  box.append(idle ? el("p", {}, "By this scheme all rollouts of the group have the same score: it pays all of them 0.")
    : el("ol", {}, ...explain(talk, t)), el("p", {className: "dim small"}, "The same turn under every scheme, "
    + `on one scale of colour. By ${S.trajectory}, R is ${R}, mean R ${num(c.mean[S.trajectory])}, z ${z}. `
    + "Click one for its arithmetic."),
  el("div", {className: "scroll"}, grid));
  return box;
}

// ---- the browser of conversations

// groups that earned nothing come last
const paying = new Set(D.talks.filter(talk => talk.rewards.some(Boolean)).map(talk => talk.group ?? talk.id));
D.talks.sort((a, b) => paying.has(b.group ?? b.id) - paying.has(a.group ?? a.id));
const list = $("list"), end = el("div", {style: "height:1px"}), byId = new Map(D.talks.map((talk, i) => [talk.id, i]));
const mates = {}, chosen = {};
D.talks.forEach((talk, i) => (mates[talk.group] ??= []).push(i));
const earned = talk => total(talk.rewards), status = talk => D.endings[talk.status] || talk.status;
const stage = talk => talk.step == null ? talk.policy : "step " + talk.step;
let shown = [], drawn = 0;
function strip(talk) {
  const a = advantages(talk), top = a && largest(talk);
  return el("span", {className: "strip"}, ...talk.rewards.map((r, t) => el("i", {style: a ? tint(a[t], top) : "",
    title: `turn ${t + 1}: reward ${num(r)}` + (a ? `, advantage ${signed(a[t])}` : "")})));
}
// the address says which conversation, turn and scheme: "#run/step/group/rollout~turn~naive sum scale~0"
const link = (i, turn = -1) => "#" + encodeURIComponent([D.talks[i].id, turn, trained(S), S.set].join("~"));
function row(i) {
  const talk = D.talks[i];
  return el("a", {className: "row", href: link(i)}, el("span", {}, talk.gym + " ",
    el("span", {className: "dim"}, `${stage(talk)}, ${status(talk)}${one ? "" : ", " + talk.run}`)),
  el("span", {}, num(earned(talk))), strip(talk));
}
// rows are drawn when they are about to be seen
function fill(upTo) {
  for (; drawn < Math.min(upTo, shown.length); drawn++) end.before(row(shown[drawn]));
}
function drawList() {
  const top = list.scrollTop;
  drawn = 0;
  list.replaceChildren(end);
  fill(Math.max(60, shown.indexOf(at.talk) + 30));
  list.scrollTop = top;
  showRow();
}
function showRow() {
  list.querySelector("[aria-current]")?.removeAttribute("aria-current");
  const now = list.children[shown.indexOf(at.talk)], box = list.getBoundingClientRect();
  if (!now || now === end) return;
  now.setAttribute("aria-current", "true");
  const {top, bottom} = now.getBoundingClientRect();
  if (top < box.top || bottom > box.bottom) list.scrollTop += top - box.top - box.height / 3;
}
new IntersectionObserver(seen => seen.at(-1).isIntersecting && fill(drawn + 60), {root: list, rootMargin: "400px"})
  .observe(end);

const FILTERS = {run: talk => talk.run, gym: talk => talk.gym, step: stage, status};
for (const key in FILTERS) {
  const values = unique(D.talks.map(FILTERS[key])).sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
  chosen[key] = el("select", {ariaLabel: key, onchange: filter, hidden: values.length < 2},
    el("option", {value: ""}, "any " + key), ...values.map(value => el("option", {value}, value)));
}
for (const key of ["least", "most"])
  chosen[key] = el("input", {type: "number", step: "0.1", ariaLabel: key + " return", oninput: filter});
const {least, most, ...picks} = chosen;
$("filters").append(...Object.values(picks), small("return from"), least, small("to"), most);
function filter() {
  const all = D.talks.length, lost = D.logged - D.talks.filter(talk => talk.step != null).length;
  const passes = talk => Object.keys(picks).every(key => !picks[key].value || picks[key].value === FILTERS[key](talk))
    && !(earned(talk) < parseFloat(least.value) - 1e-9) && !(earned(talk) > parseFloat(most.value) + 1e-9);
  shown = D.talks.map((_, i) => i).filter(i => passes(D.talks[i]));
  $("count").textContent = `${shown.length} of ${all} conversations` + (lost > 0 ? ` (${lost} more were logged)` : "")
    + ". A square is a turn, shaded by its advantage; the number is the return. Keys: j and k change the conversation, "
    + "← and → the turn. Groups that earned nothing come last.";
  drawList();
  if (at.talk >= 0 && !shown.includes(at.talk)) shut("The conversation that was open is not among these.");
}
function shut(why) {
  Object.assign(at, {talk: -1, turn: -1});
  history.replaceState(null, "", "#conversations");
  showRow();
  $("talk").replaceChildren(el("p", {className: "dim"}, why + " Choose one from the list."));
}

const folded = (title, text, look = "said") => el("details", {className: "small"}, el("summary", {}, title),
  el("div", {className: look}, text));
function drawTalk() {
  const talk = D.talks[at.talk], a = advantages(talk), top = a && largest(talk), parts = [];
  parts.push(el("h3", {}, `${talk.gym}, ${stage(talk)}: return ${num(earned(talk))}, ended: ${status(talk)} `,
    el("a", {href: link(at.talk, at.turn)}, "link")));
  if (a) {
    const rollouts = mates[talk.group].map((i, n) => [
      el("a", {href: link(i)}, `rollout ${n + 1}${i === at.talk ? " ◂" : ""}`),
      el("span", {}, "return " + num(earned(D.talks[i]))), strip(D.talks[i])]);
    parts.push(el("details", {open: true}, el("summary", {className: "small"}, `Rollout ${talk.place + 1} of ${
      rollouts.length} of its group. Full colour: an advantage of ${num(top)}.`),
    el("div", {className: "group"}, ...rollouts.flat())));
  } else
    parts.push(el("p", {className: "dim small"}, talk.step == null ? "An evaluation: nothing was trained here."
      : "The log lacks the rest of its group, so that there are no advantages to show."));
  const {classic} = D.runs.find(run => run.name === talk.run).settings, rules = D.rules[talk.gym];
  if (rules) parts.push(folded(`The rules of ${talk.gym}, and what they pay${classic ? " (here: classic)" : ""}`, rules,
    "said maths"));
  let t = -1;
  for (const [role, text] of talk.said) {
    if (role === "system") {
      parts.push(folded("What the agent was told first", text));
    } else if (role !== "agent") {
      const thought = talk.thoughts[t];
      parts.push(el("div", {className: "say"}, el("div", {className: "who"}, "user"),
        el("div", {className: "said"}, text),
        thought ? el("div", {className: "thought dim small"}, "hidden thought: " + thought) : null));
    } else
      parts.push(...agentTurn(talk, ++t, text, a, top));
  }
  $("talk").replaceChildren(...parts);
}
function agentTurn(talk, t, text, a, top) {
  const paid = a && t < a.length, here = paid && at.turn === t;
  const go = () => location.replace(link(at.talk, here ? -1 : t));
  const fact = (name, value) => el("span", {}, name + " ", el("b", {}, value));
  const who = el("div", {className: "who"}, "agent, turn " + (t + 1), fact("reward", num(talk.rewards[t])));
  if (paid) {
    const w = workings(talk).w[S.combine === "loo" ? "r2g" : S.turn][talk.place][t];
    who.append(fact("credit", num(w)), fact("advantage", signed(a[t])), talk.tokens[t] + " tokens",
      el("button", {onclick: go, ariaExpanded: here}, here ? "close" : "why?"));
  }
  const said = el("div", {className: "said", style: paid ? tint(a[t], top) : "",
    onclick: paid ? () => getSelection().isCollapsed && go() : null}, text);
  return [el("div", {className: "say agent" + (here ? " on" : "")}, who, said), ...here ? [drawWhy(talk, t)] : []];
}
function choose(change) {
  Object.assign(S, change);
  drawSchemes();
  drawList();
  if (at.talk < 0) return;
  history.replaceState(null, "", link(at.talk, at.turn));
  drawTalk();
}
function follow() {
  let hash = location.hash.slice(1);
  try { hash = decodeURIComponent(hash); } catch { /* cut off; then it is no conversation's */ }
  const parts = hash.split("~"), [turn, scheme, set] = parts.splice(-3);
  const i = byId.get(parts.join("~")), before = trained(S) + S.set;
  if (i == null && hash && !$(hash)) shut(`No conversation here has the address ${hash}.`);
  if (i == null) return;
  const [credit, trajectory, combine] = scheme.split(" ");
  if (credit === "loo") S.combine = credit;
  else if (Object.hasOwn(workings(D.talks[i])?.advantages || {}, scheme))
    Object.assign(S, {turn: credit, trajectory, combine});
  if (Object.hasOwn(PARTS.set[1], set)) S.set = +set;
  const moved = i !== at.talk;
  Object.assign(at, {talk: i, turn: +turn});
  drawSchemes();
  drawTalk();
  if (before !== trained(S) + S.set || shown.indexOf(i) >= drawn) drawList();
  else showRow();
  if (moved && (at.turn >= 0 || $("talk").getBoundingClientRect().top < 0)) goThere();
}
const goThere = () => (document.querySelector(".agent.on") || $("conversations")).scrollIntoView();
onhashchange = follow;
onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  const step = {j: 1, k: -1}[event.key], turn = {ArrowRight: 1, ArrowLeft: -1}[event.key], talk = D.talks[at.talk];
  const next = shown[Math.max(0, shown.indexOf(at.talk) + step)];
  if (step && next != null) location.replace(link(next));
  if (!turn || !talk || !advantages(talk)) return;
  event.preventDefault();
  location.replace(link(at.talk, Math.max(0, Math.min(talk.rewards.length - 1, at.turn + turn))));
  follow();
  goThere();
};

// begin where most is paid, or where the address says
const paid = D.talks.map(talk => talk.rewards.some(Boolean) ? total((advantages(talk) || []).map(Math.abs)) : -1);
at.talk = paid.indexOf(Math.max(...paid));
$("conversations").hidden = !D.talks.length;
if (D.talks.length) {
  filter();
  drawSchemes();
  drawTalk();
  follow();
  if (location.hash.includes("~") || at.talk < 0) goThere();
}
</script>
</html>
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

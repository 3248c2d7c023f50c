"""An agent that learns from simulated users: cold start, GRPO, evaluation, play (UserRL, arXiv 2509.19736).

    python userrl.py                                  the demo: a tiny model learns on a laptop CPU, nothing to download
    python userrl.py sft   --name=cold                cold start only: imitate the scripted demonstrator
    python userrl.py train --model=runs/cold --steps=200                     GRPO from a run's checkpoint
    python userrl.py eval  --model=runs/demo --gyms=travel                   held-out tasks; --model=expert works too
    python userrl.py eval  --model=NAME@http://localhost:8000/v1 --gyms=all  a served model; the same --name: a column
    python userrl.py sft   --data=runs/eval/talks.jsonl --keep=top:1         imitate the best of what was written
    python userrl.py selfplay --model=runs/demo --user=userlm:runs/speaker   agent and user learn from each other
    python userrl.py play  --gyms=telepathy           you are the agent;  with --model=…  you are its user
    python userrl.py demo  --name=demo --resume=True  go on after Ctrl-C, kill -9 or a power cut
    python userrl.py --help                           every command and setting

A run lives in runs/<name>/: config.json, metrics.jsonl (one line a step, reproducible bit for bit), times.jsonl
(seconds, memory), eval.json, talks.json (each gym's first held-out task, as each policy played it), samples.jsonl
(whole training conversations with reward, credit and advantage of each turn), talks.jsonl (every conversation of an
evaluation, --save_talks), checkpoint/, best/ (--eval_every), reference/ (the policy that RL started from, for --kl).
Gyms, users and models of your own: --gyms=MODULE:CLASS, --user=MODULE:ARGUMENT, --model=MODULE:FUNCTION, or a script
that registers them and calls `main`.

On a CPU `workers` processes share the work, elsewhere as many as torchrun starts.  Left out: sweeps, dashboards,
asynchronous rollouts.  envs.py says what is rewarded, rewards.py who gets the credit, grpo.py how a policy talks
and learns and what a run is; this file which tasks are demonstrated, trained on and measured, and what is printed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import queue
import random
import re
import sys
import threading
import time
import zlib
from collections import deque
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import grpo                             # before torch: it sets how torch's threads wait
import envs
import numpy as np
import rewards


@dataclass
class Settings(grpo.RunSettings):
    # the run
    model: str = "tiny"             # "tiny", a run, hub name, .gguf, MODULE:FUNCTION; eval: "expert", NAME@URL, too
    gyms: str = "travel,persuade,intention,turtle"      # names, MODULE:CLASS (an Env of your own), or "all" eight
    hold_out: str = "tau"           # gyms that are evaluated, not trained (a tiny model cannot write tau's long calls)
    minutes: float = 0.0            # about how long on two cores: the default sft_steps and steps x minutes / 10
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
    steps: int = 42                 # each: rollouts, then an update
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
    split: str = "test"             # eval: whose tasks; "train" to collect conversations for sft --data
    save_talks: bool = False        # every conversation that is evaluated goes to talks.jsonl (a served model's always)
    timeout: float = 120.0          # seconds in which a served model must have answered; --rows are asked at once
    eval_every: int = 0             # RL steps between two validations; the best policy is kept in best/; 0: none
    val_tasks: int = 16             # validation tasks per trained gym, neither training nor held-out tasks

    CHOICES = {"turn": rewards.TURN, "trajectory": rewards.TRAJECTORY, "combine": rewards.COMBINE,
               "normalize": rewards.NORMALIZE, "mixture": ("signal", "equal"), "decay": ("cosine", "constant"),
               "choice": ("single", "multi"), "ratio": ("token", "sequence"),
               "aggregate": ("token", "sequence", "constant"), "form": envs.FORMS, "split": tuple(envs.SPLITS)}
    LEAST = {**grpo.RunSettings.LEAST, "sft_tokens": 1, "updates": 1, "eval_tasks": 1, "demos": 1, "samples": 1,
             "max_turns": 1, "val_tasks": 1, "llm_requests": 1, "llm_tokens": 1, "llm_timeout": 0.01, "llm_tries": 1,
             "llm_context": 64}
    MOST = {**grpo.RunSettings.MOST, "wrong": 100, "noise": 100}
    ALSO = {"gym": "gyms"}

    @classmethod
    def preset(cls, values: dict) -> dict:
        """--minutes as numbers of steps: no clock is asked, so that the same settings give the same run."""
        minutes = values.get("minutes", 0.0)
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
        for name in users(self) or [self.user]:                         # "mix:" alone is no user, and refused
            check_user(self, name)
        kept([], self.keep)
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
            if gym in COLUMNS or (gym == "echo" and self.echo):
                raise ValueError(f"a gym may not be called {gym!r}, like another number of metrics.jsonl")
        for gym in trained(self) if self.eval_every else []:
            try:
                make_env(self, gym, 0, "val", None)
            except Exception as error:                                  # whatever a gym of yours says to a third split
                raise ValueError(f"--eval_every: {gym} has no validation tasks: {error!r}") from None


# What stands beside the returns of the gyms, each by its name, in the lines of metrics.jsonl; with --echo "echo", too.
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
    rules = any(name.partition(":")[0] in ("scripted", "userlm") for name in users(s))
    beyond = [f"{gym} ({envs.BEYOND_RULES[gym]})" for gym in dict.fromkeys(chosen(s)) if gym in envs.BEYOND_RULES]
    if rules and beyond:
        raise ValueError(f"--data: rules know too little of {', '.join(beyond)}: give a language model, "
                         "--user=llm:MODEL@http://server/v1 or --user=llm:FOLDER, or leave them out of --gyms")
    for gym in chosen(s):
        if lacking(s, gym, "train") and (why := lacking(s, gym, "test")):
            raise ValueError(f"--data: {why}")


def env_options(s: Settings, gym: str) -> dict:
    """What --env says of a gym; ValueError names what there is instead."""
    found = {}
    for item in listed(s.env):
        place, equals, text = item.partition("=")
        owner, dot, name = place.partition(".")
        if not dot or not equals:
            raise ValueError(f"--env: {item!r} is not gym.option=value")
        try:
            option = envs.read_options(owner, {name: text})
        except ValueError as error:
            raise ValueError(f"--env: {error}") from None
        if owner == gym:
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
    return envs.make(gym, index, split, task, user, **{**options, **env_options(s, gym)})


def first_envs(s: Settings) -> dict[str, envs.Env]:
    """Each gym that is evaluated, on its first held-out task: for `grpo.must_fit`, which reads the opening alone."""
    return {gym: make_env(s, gym, 0, s.split if s.files else "test", None) for gym in gym_names(s)}


def users(s: Settings) -> list[str]:
    """The one user of --user, or all that mix:A,B names."""
    mixed = s.user.startswith("mix:")
    return listed(s.user.removeprefix("mix:")) if mixed else [s.user]


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
    if not colon or name in ("llm:", "mix:"):
        raise ValueError(f"--user is 'scripted', 'userlm:FOLDER', 'llm:MODEL@URL', 'llm:FOLDER', 'mix:A,B' or "
                         f"'MODULE:ARGUMENT', not {name!r}")
    return grpo.plug("user", f"{'userlm_r1' if module == 'userlm' else module}:load_user")


def served(model: str) -> bool:
    """Is that a model behind a server, and no folder?"""
    return "@http" in model


def make_user(s: Settings):
    """The user in every gym; one object for all conversations, so that a model answers them in batches."""
    made = [one_user(s, name) for name in users(s)]
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
        self.engine = grpo.Engine(model, tokenizer, rows=s.llm_requests, max_len=s.llm_context)
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
        solved = [sum(e["solved"] for e in same) for same in tasks.values() if len(same) == samples]
        earned = [[sum(e["rewards"]) for e in same] for same in tasks.values() if len(same) == samples]
        row["pass_at"] = {k: average(rewards.pass_at_k(samples, count, k) for count in solved)
                          for k in range(1, samples + 1)}
        row["best_of"] = {k: average(rewards.best_of_k(values, k) for values in earned)
                          for k in range(1, samples + 1)}
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
            if note and not grpo.rank():
                note(line)
            thoughts = open_thoughts(line["messages"])
            line |= {"open": thoughts} if thoughts else {}
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
            history = [["agent" if m["role"] == "assistant" else "user", m["content"]] for m in line["messages"][1:]]
            talks[line["gym"]] = {"history": history, "rewards": line["rewards"], "status": line["status"]}
    turns = sum(len(line["rewards"]) for line in lines)
    if (thoughts := sum(line.get("open", 0) for line in lines)) > turns / 10 and not grpo.rank():
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
    "messages": the conversation, in form "tool" also "tools"; in travel "tier" and "metrics"}.
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
    threads = min(s.rows, len(todo))
    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()              # Ctrl-C, twice, waits for no server
    failures, began = 0, time.time()
    for count in range(1, len(todo) + 1):
        at, outcome = over.get()
        if isinstance(outcome, BaseException):
            raise outcome
        yield at, outcome
        failures = failures + 1 if outcome[2] == "agent_error" else 0
        if failures >= max(threads, 8):
            unasked = [waiting.popleft() for _ in range(len(waiting))]
            yield from ((at, ([], [], *outcome[2:])) for at, _ in unasked)
            for _ in range(len(todo) - count - len(unasked)):           # those that are still under way
                yield over.get()
            return
        if count % max(1, len(todo) // 10) == 0:
            print(f"   {count} of {len(todo)} conversations, {grpo.clock(time.time() - began)} minutes", flush=True)


def wire(talk: list[dict], tools: bool) -> list[dict]:
    """A conversation as an OpenAI-compatible server takes it: without thoughts; calls of tools in a field of their own.

    Where a turn is no call that can be read, the reply to it comes from the user: a server takes no other.
    """
    messages: list[dict] = []
    for i, m in enumerate(talk):
        role, text = m["role"], m["content"]
        if role == "assistant":
            text = text.rpartition("</think>")[2].strip()
            before, tag, after = text.partition("<tool_call>")
            try:
                call, _ = json.JSONDecoder().raw_decode(after.strip()) if tag and tools else ({}, 0)
                function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
                calls = [{"id": f"call_{i}", "type": "function", "function": function}]
                messages.append({"role": role, "content": before.strip(), "tool_calls": calls})
                continue
            except (ValueError, LookupError, TypeError):
                pass
        if role == "tool" and "tool_calls" in messages[-1]:
            messages.append({"role": role, "tool_call_id": f"call_{i - 1}", "content": text})
            continue
        messages.append({"role": "user" if role == "tool" else role, "content": text})
    return messages


def said_by(message: dict) -> str:
    """What a server's message says, as one text: its thought, its words, and its first call of a tool."""
    text = message.get("content") or ""
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and "</think>" not in text:
        text = f"<think>\n{thought.strip()}\n</think>\n\n{text}"
    with contextlib.suppress(LookupError, TypeError):                   # calls that are none
        function = message["tool_calls"][0]["function"]
        call = {"name": function["name"], "arguments": function["arguments"]}
        with contextlib.suppress(ValueError, TypeError):
            call["arguments"] = json.loads(call["arguments"])
        text += f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    return envs.well_formed(text)


def open_thoughts(messages: list[dict]) -> int:
    """How many turns are a thought that was never closed."""
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    return sum(text.lstrip().startswith("<think>") and "</think>" not in text for text in said)


def shown(x: dict) -> str:
    """An `interval`: "0.512 ± 0.048", or "-"."""
    return "-" if x["return"] is None else f"{x['return']:.3f} ± {x['ci95']:.3f}"


def percent(ended: dict[str, int], how: str) -> str:
    """Share of the conversations that ended so."""
    every = sum(ended.values())
    return f"{100 * ended[how] / every:.0f} %" if every else "-"


def short(name: str, width: int = 16) -> str:
    """A long name without its middle: both ends of a path tell policies apart."""
    half = width // 2
    return name if len(name) <= width else f"{name[:half - 1]}…{name[-half:]}"


def print_table(columns: dict[str, dict]) -> None:
    """Mean return on held-out tasks, a column a policy, a row a gym; then what only some evaluations have."""
    def line(title, cells):
        print(f"{title:28}" + "".join(f"{cell:>17}" for cell in cells))
    several = list(columns.values())
    print()
    line("return on held-out tasks", [short(re.sub("@https?://.*", "…", name)) for name in columns])
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
    print(f"({several[-1]['user']}; ± is half a 95 % interval over the tasks)")
    for name, column in columns.items():
        if "failed" in column:
            print(f"{name}: not measured: {column['failed']}")
        for gym, row in column["gyms"].items():
            if "pass_at" in row and row["n"]:
                print(f"{name}, {gym}: " + ", ".join(f"pass@{k} {p:.3f}" for k, p in row["pass_at"].items()))
                print(f"{name}, {gym}: " + ", ".join(f"best@{k} {r:.3f}" for k, r in row["best_of"].items()))
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
    rows = []
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


def kept(talks: list[dict], keep: str) -> list[dict]:
    """The conversations that --keep names, rule after rule: the rest of rejection sampling."""
    for rule in listed(keep):
        name, _, number = rule.partition(":")
        if not (rule == "solved" or name == "top" and re.fullmatch("[1-9][0-9]*", number)
                or name == "least" and re.fullmatch(r"-?[0-9]*\.?[0-9]+", number)):
            raise ValueError(f"--keep: {rule!r} is not top:N, solved or least:X")
        if not all(isinstance(t.get("rewards"), list) and {"gym", "task", "solved"} <= t.keys() for t in talks):
            raise ValueError("--keep goes by the rewards in talks.jsonl: this file has none")
        if rule == "solved":
            talks = [talk for talk in talks if talk["solved"]]
        elif name == "least":
            talks = [talk for talk in talks if sum(talk["rewards"]) >= float(number)]
        else:
            tasks: dict[tuple, list] = {}
            for talk in talks:
                tasks.setdefault((talk["gym"], talk["task"]), []).append(talk)
            best = (sorted(same, key=lambda talk: -sum(talk["rewards"])) for same in tasks.values())
            talks = list(itertools.chain(*(same[:int(number)] for same in best)))
    return talks


def encoded(s: Settings, tokenizer, talks: list[dict]) -> list:
    """The conversations of --data as trajectories; ValueError if --keep or --context leaves none."""
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
        ref_logps = grpo.token_logps(reference, batch, s.temperature, s.micro_tokens) if s.kl else None
        rows.append(grpo.grpo_step(
            run.model, run.optimizer, batch, [advantages[i] for i in picked], lr=lr, temperature=s.temperature,
            clip_low=s.clip_low, clip_high=s.clip_high, kl_coef=s.kl, ref_logps=ref_logps,
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
    file = run.path / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []      # what is missing, the run has said
    return [row for row in map(json.loads, lines) if row["phase"] == "rl"]


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
        times["rollout"] = time.time() - began
        metrics = update(run, reference, step, talks, advantages, signals)
        remember_spread(mixture, talks)
        row = {**step_row(s, talks, counts), **metrics}
        rows.append(row)
        seconds, gb = run.log_step("rl", step, row, began, times)
        speed = grpo.summed([times.get("sampled", 0)])[0] / max(times["rollout"], 1e-9)
        left = grpo.time_left(since, step - first, s.steps - first)
        print(f"rl {step:4d}/{s.steps} | {step_line(row, counts)} | {speed:5.0f} tok/s {seconds:4.1f} s {gb:4.2f} GB | "
              f"{left} left", flush=True)
        for line in alarms(rows, s) if step % ALARM_EVERY == 0 else []:
            print(f"   ! {line}", flush=True)
        if talks and (step % s.sample_every == 0 or step == 1):
            show_sample(run, step, talks[step % len(talks)], advantages[step % len(talks)])
        if s.eval_every and (step % s.eval_every == 0 or step == s.steps):
            val = validate(run, user, step, val)
        run.finish_step(step, s.steps, "rl", mixture=mixture, val=val)


def show_sample(run: grpo.Run, step: int, talk, advantages: list[float]) -> None:
    """Write a conversation to samples.jsonl and print it, with each turn's reward and advantage."""
    s = run.s
    turn = "r2g" if s.combine == "loo" else s.turn          # what loo reads, whatever --turn says
    run.log("samples.jsonl", {
        "phase": "rl", "step": step, "gym": talk.gym, "status": talk.status, "messages": talk.messages,
        "rewards": talk.turn_rewards, "credits": rewards.turn_credits(talk.turn_rewards, turn, s.gamma, s.k),
        "advantages": advantages, "hidden": talk.infos[-1]["hidden"] if talk.infos else {}})
    print(f"   .-- a {talk.gym} conversation ({talk.status}); reward and advantage of each turn on the right")
    history = [("agent" if m["role"] == "assistant" else "user", m["content"]) for m in talk.messages[1:]]
    earned = [f"{reward:5.2f} {advantage:+6.2f}" for reward, advantage in zip(talk.turn_rewards, advantages)]
    for line in talk_lines(history, earned):
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
    columns, talks = list(run.evals), run.read("talks.json", {})
    if "RL" not in columns:
        return
    names, gain = (columns[columns.index("RL") - 1], "RL"), {}
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
    """Evaluate a policy, once, and say so."""
    s, tasks, keeps = run.s, run.s.eval_tasks, {}
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
    print(f"-- {label}: macro-average return {shown(result['macro'])} on held-out tasks{failed}", flush=True)
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


def learn(run: grpo.Run, phases: tuple[str, ...]) -> None:
    """Take a policy through the phases ("sft", "rl"), evaluating before and after each; go on from a checkpoint."""
    s, user = run.s, make_user(run.s)
    scripted = envs.ScriptedUser(s.user_noise, s.user_vague)            # with whom the demonstrator talks: fast

    written = kept(read_talks(s.data), s.keep) if s.data and not s.files else []

    def texts():
        shown = range(0 if written else 60 * len(trained(s)))
        talks = [talk["messages"] for talk in written]
        talks += [demonstration(s, number, s.max_turns, scripted) for number in shown]
        return [m["content"] for talk in talks for m in talk] + reference_text(s, 0, 2000)
    grpo.first_policy(run, texts, first_envs(s))
    tell = partial(measure, run, run.engine, user)
    draw = partial(lesson, s, run.tokenizer, scripted)
    if written:
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
        if envs.gym_class(gym).expert is envs.Env.expert:
            raise ValueError(f"{gym} has no expert: a cold start imitates one, and a tiny model has its words from one")
    began = time.time()
    run = grpo.Run(s, command)
    try:
        learn(run, phases)
    except grpo.Stop:
        print(f"stopped after {run.state['phase'] or 'start'}, step {run.state['step']}; go on with\n"
              f"    python userrl.py {command} --name={run.path.name} --resume=True")
        raise
    print_table(run.evals)
    if "best" in (val := run.state.get("val", {})):
        last = "-" if val["last"] is None else f"{val['last']:.3f}"
        print(f"on validation tasks the policy of RL step {val['step']} was best: {val['best']:.3f}, the last one "
              f"{last};\nit is in {run.path}/best, the table shows the last")
    before_and_after(run)
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
                 "workers", "timeout", "save_talks")


def eval_(s: Settings) -> None:
    """Evaluate a checkpoint, a served model, or the scripted expert or demonstrator, on held-out tasks.

    With the --name of an earlier evaluation it adds a column, or goes on where it was stopped.
    """
    if s.model == "tiny":
        raise ValueError("eval needs --model=<run or checkpoint folder> (or --model=expert)")
    if s.resume:
        raise ValueError("eval needs no --resume: with the --name of an evaluation it goes on, or adds a column")
    if s.data and not s.files:
        raise ValueError(f"--data={s.data} is no folder of task files")
    for gym in chosen(s) if s.files else []:
        if why := lacking(s, gym, s.split):
            raise ValueError(f"--data: {why}")
        if s.model in SCRIPTED and gym != "function":
            raise ValueError(f"--model={s.model} knows our own tasks; of those of --data it plays function only")
    policy = s.model
    if served(s.model):
        policy, s = envs.Server(s.model, s.timeout, at_once=s.rows), replace(s, workers=1)
    begun = bool(s.name) and (Path("runs") / s.name / "config.json").exists()
    run = grpo.Run(replace(s, resume=begun), "eval", differs=OF_THE_POLICY)
    s, user = run.s, make_user(run.s)
    label = s.model + (", tool" if s.form == "tool" else "") + (", thinking" if s.thinking else "")
    if any("agent_error" in row for row in run.evals.get(label, {}).get("gyms", {}).values()):
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
            print(f"stopped; {run.path}/{TALKS} keeps what was played, and --name={run.path.name} goes on from there")
        raise
    if isinstance(policy, envs.Server) and policy.counts["requests"]:
        c = policy.counts
        each = c["seconds"] / c["requests"]
        print(f"   {c['requests']} requests, {c['retries']} of them repeated, {each:.2f} s each; {c['prompt_tokens']} "
              f"tokens read, {c['completion_tokens']} written")
    print_table(run.evals)
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
    began, run = time.time(), grpo.Run(s, "selfplay")
    s = run.s
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
        print(f"stopped; go on with\n    python userrl.py selfplay --name={run.path.name} --resume=True")
        raise
    print_chairs(run)
    print(f"{grpo.clock(time.time() - began)} minutes, {grpo.peak_gb():.2f} GB at most; everything is in {run.path}/")


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
    demos = run.s.demos + (number - 1) * run.s.steps * run.s.tasks
    part = grpo.Run(replace(run.s, name=run.path.name, model=agents[-1], demos=demos, resume=resume), "selfplay", place)
    grpo.first_policy(part, None, first_envs(part.s))
    grpo.run_phases(part, ("rl",), {"rl": partial(train_rl, part, user)}, lambda label: None)
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
        run.write(file, sorted(set(itertools.chain(*grpo.gather(sorted(user.lines))))))
    grpo.gather("written")                                              # nobody reads before
    own = userlm_r1.Settings(name=run.path.name, seed=s.seed + number, workers=s.workers, device=s.device,
                             steps=s.user_steps, tasks=s.tasks, group=s.group, save_every=s.save_every)
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
        model=users[-1], seed=s.seed, device=s.device, gyms=",".join(dict.fromkeys(trained(s))),
        agents=",".join(dict.fromkeys([agents[0], agents[-1]])), agent_tasks=min(s.eval_tasks, 32),
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
    gym = chosen(s)[0]
    env = make_env(s, gym, s.index, "test", seated(make_user(s), s.seed, gym, s.index))
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


COMMANDS = {"demo": demo, "sft": sft, "train": train, "eval": eval_, "selfplay": selfplay, "play": play}


def main(argv: list[str]) -> int:
    return grpo.command_line(argv, __doc__, Settings, COMMANDS, "userrl.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

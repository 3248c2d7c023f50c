"""An agent that learns from simulated users: cold start, GRPO, evaluation, play (UserRL, arXiv 2509.19736).

    python userrl.py                                  the demo: a tiny model learns on a laptop CPU, nothing to download
    python userrl.py sft   --name=cold                cold start only: imitate the scripted demonstrator
    python userrl.py train --model=runs/cold --steps=200                     GRPO from a run's checkpoint
    python userrl.py eval  --model=runs/demo --gyms=travel                   held-out tasks; --model=expert works too
    python userrl.py selfplay --model=runs/demo --user=userlm:runs/speaker   agent and user learn from each other
    python userrl.py play  --gyms=telepathy           you are the agent;  with --model=…  you are its user
    python userrl.py demo  --name=demo --resume=True  go on after Ctrl-C, kill -9 or a power cut
    python userrl.py --help                           every command and setting

A run lives in runs/<name>/: config.json, metrics.jsonl (one line a step, reproducible bit for bit), times.jsonl
(seconds, memory), eval.json, talks.json (each gym's first held-out task, as each policy played it), samples.jsonl
(whole training conversations with reward, credit and advantage of each turn), checkpoint/, best/ (--eval_every),
reference/ (the policy that RL started from, for --kl).
Gyms, users and models of your own: --gyms=MODULE:CLASS, --user=MODULE:ARGUMENT, --model=MODULE:FUNCTION, or a script
that registers them and calls `main`.

On a CPU `workers` processes share the work, elsewhere as many as torchrun starts.  Left out: sweeps, dashboards,
asynchronous rollouts.  envs.py says what is rewarded, rewards.py who gets the credit, grpo.py how a policy talks
and learns and what a run is; this file which tasks are demonstrated, trained on and measured, and what is printed.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
import time
import zlib
from dataclasses import dataclass, replace
from functools import partial

import grpo                             # before torch: it sets how torch's threads wait
import envs
import numpy as np
import rewards


@dataclass
class Settings(grpo.RunSettings):
    # the run
    model: str = "tiny"             # "tiny" (made here), run or checkpoint, hub name, MODULE:FUNCTION; eval: "expert"
    gyms: str = "travel,persuade,intention,turtle"      # names, MODULE:CLASS (an Env of your own), or "all" eight
    hold_out: str = "tau"           # gyms that are evaluated, not trained (a tiny model cannot write tau's long calls)
    minutes: float = 0.0            # about how long on two cores: the default sft_steps and steps x minutes / 10
    micro_tokens: int = 1024        # padded tokens per forward pass in training: 1024 suits a CPU, 16384 a GPU
    # cold start (SFT) on a careless demonstrator
    slip: float = 0.75              # how careless: probability of a poor move; RL has to find the others
    sft_steps: int = 900            # optimiser steps
    reading: float = 0.06           # share of the SFT steps in which a tiny model only reads, in place of pre-training
    demos: int = 10_000             # training tasks per gym that are demonstrated, in turn; RL has later ones
    sft_tokens: int = 3000          # tokens of demonstrations per optimiser step
    facts: int = 16                 # lines of plain text a step while a tiny model reads, half as many once it imitates
    drills: int = 32                # pieces of demonstrations a step while it reads, three quarters of that later
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
    tier: str = "22"                # travel: preferences per aspect; several as 22,33, or "all"
    choice: str = "single"          # travel: one answer per aspect, or "multi"
    wrong: int = 6                  # travel: wrong options per aspect (UserBench: 10)
    noise: int = 0                  # travel: noise options per aspect (UserBench: 5)
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
    eval_every: int = 0             # RL steps between two validations; the best policy is kept in best/; 0: none
    val_tasks: int = 16             # validation tasks per trained gym, neither training nor held-out tasks

    CHOICES = {"turn": rewards.TURN, "trajectory": rewards.TRAJECTORY, "combine": rewards.COMBINE,
               "normalize": rewards.NORMALIZE, "mixture": ("signal", "equal"), "decay": ("cosine", "constant"),
               "choice": ("single", "multi"), "ratio": ("token", "sequence"),
               "aggregate": ("token", "sequence", "constant")}
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

    def check(self) -> None:
        super().check()
        if not 0 <= self.reading < 1 or not self.slip <= 1 >= max(self.user_noise, self.user_vague):
            raise ValueError("--reading must be below 1, and --slip, --user_noise, --user_vague are probabilities")
        if self.model == "tiny" and self.reading and not self.facts:
            raise ValueError("--facts must be at least 1 while --reading is above 0")
        for name in users(self) or [self.user]:                         # "mix:" alone is no user, and refused
            check_user(self, name)
        rewards.turn_credits([0.0], self.turn, self.gamma, self.k)      # says what is wrong with gamma and k
        if not gym_names(self):
            raise ValueError("--gyms names no gym")
        for gym in gym_names(self):
            for index in range(1 + self.tier.count(",")):               # several tiers take turns
                make_env(self, gym, index, "train", None)
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

def listed(text: str) -> list[str]:
    """["a", "b"] from "a, b"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def chosen(s: Settings) -> list[str]:
    """The gyms of --gyms, repeats included.  A MODULE:CLASS is imported and joins envs.GYMS under its name."""
    if s.gyms == "all":
        return list(envs.GYMS)
    return [envs.gym_class(name).name for name in listed(s.gyms)]


def gym_names(s: Settings) -> list[str]:
    """The gyms that are evaluated."""
    return list(dict.fromkeys(chosen(s)))


def trained(s: Settings) -> list[str]:
    """The gyms that are trained, in turn: one that is named twice in --gyms has twice the share."""
    return [name for name in chosen(s) if name not in listed(s.hold_out)]


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
    options = {"max_turns": s.max_turns, "persona": s.persona, "patience": s.patience}
    if gym == "travel":
        # several tiers take turns
        tiers = envs.TRAVEL_TIERS if s.tier == "all" else s.tier.split(",")
        options["tier"] = tiers[index % len(tiers)]
        index //= len(tiers)
        options |= {"wrong": s.wrong, "noise": s.noise, "one_choice": s.choice == "single"}
    return envs.make(gym, index, split, user=user, **{**options, **env_options(s, gym)})


def first_envs(s: Settings) -> dict[str, envs.Env]:
    """Each gym that is evaluated, on its first held-out task: for `grpo.must_fit`, which reads the opening alone."""
    return {gym: make_env(s, gym, 0, "test", None) for gym in gym_names(s)}


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


def demonstration(s: Settings, number: int, turns: int, user) -> list[dict]:
    """The first turns of the careless demonstrator on a training task of its own, as chat messages; gyms in turn."""
    gyms = trained(s)
    lap, place = divmod(number, len(gyms))
    gym = gyms[place]
    # a gym that --gyms names twice has two tasks a lap
    index = lap * gyms.count(gym) + gyms[:place].count(gym)
    env = make_env(s, gym, index % s.demos, "train", user)
    first, _ = env.reset()
    talk = [{"role": "system", "content": env.system_prompt}, {"role": "user", "content": first}]
    over = False
    while not over and env.turns < turns:
        action = envs.expert(env, slip=s.slip)
        text, _, terminated, truncated, _ = env.step(action)
        talk += [{"role": "assistant", "content": action}, {"role": "user", "content": text}]
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
           "user_error": "user error"}


def ending(env: envs.Env, status: str) -> str:
    """Why a conversation ended, one of ENDINGS, from its rollout's status: only the env knows that its user left."""
    return "left" if status == "done" and env.ended == "left" else status


def counted(endings) -> dict[str, int]:
    """How many conversations ended in each way."""
    endings = list(endings)
    return {how: endings.count(how) for how in ENDINGS}


def average(values) -> float | None:
    """Mean of some numbers; None if there are none, or one of them is None."""
    values = list(values)
    return None if not values or None in values else sum(values) / len(values)


def interval(values: list[float]) -> dict:
    """Mean and half width of its 95 % interval."""
    mean, half = rewards.mean_ci(values) if values else (None, None)
    return {"return": mean, "ci95": half}


def summarise(gym_episodes: dict[str, list[dict]], user: str, samples: int = 1) -> dict:
    """Per gym: return with its 95 % half width, success, turns, UserRL's efficiency metrics; macro, micro averages.

    gym_episodes: gym -> one {"task": id, "rewards": […], "solved": bool, "status": one of ENDINGS, "error": str} an
    episode, in travel also "tier" and "metrics".  Episodes whose user failed are counted, not scored; where a gym has
    no other, its numbers and the averages are None.  Intervals are over tasks: samples of one are averaged.
    """
    table = {gym: gym_summary(episodes, samples) for gym, episodes in gym_episodes.items()}
    gyms = list(table.values())
    macro = micro = interval([])
    if all(gym["n"] for gym in gyms):
        macro = {"return": average(gym["return"] for gym in gyms),
                 "ci95": math.sqrt(sum(gym["ci95"] ** 2 for gym in gyms)) / len(gyms)}
        micro = interval([value for gym in gyms for value in gym["returns"].values()])
    return {"gyms": table, "macro": macro, "micro": micro, "user": user}


def gym_summary(episodes: list[dict], samples: int) -> dict:
    """A gym's row of `summarise`."""
    scored = [e for e in episodes if e["status"] != "user_error"]
    errors = [e["error"] for e in episodes if e["status"] == "user_error"]
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
    if samples > 1:
        solved = [sum(e["solved"] for e in same) for same in tasks.values() if len(same) == samples]
        row["pass_at"] = {k: average(rewards.pass_at_k(samples, count, k) for count in solved)
                          for k in range(1, samples + 1)}
    if scored and "metrics" in scored[0]:
        row["userbench"] = userbench(scored)
    return row


USERBENCH = {"score": "score", "best_exist": "best", "correct_exist": "correct", "valid_search": "search%",
             "valid_action": "action%", "active": "active", "passive": "passive", "first_valid": "first",
             "timing": "timing"}
USERBENCH_NOTE = """\
(score: mean value of the answers; best, correct: aspects with the best, with a suiting answer; search%, action%:
 moves that got the task further, of all such moves; active, passive: preferences that were asked for, volunteered;
 first: first turn, from 0, in which an option that suits was answered; timing: such turns as a share of all, each
 turn weighing 1 / (turn + 1))"""


def userbench(episodes: list[dict]) -> dict[str, dict]:
    """UserBench's metrics (arXiv 2507.22034) of travel episodes, per tier and overall; None where there was no case.

    Valid searches and actions are shares of all that these episodes tried, all else is a mean over episodes.
    """
    tiers = {"overall": episodes}
    for e in episodes:
        tiers.setdefault(e["tier"], []).append(e)
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


def evaluate(s: Settings, policy, user, tasks: int, split: str = "test") -> dict:
    """Play `tasks` tasks of the split a gym, each `samples` times.  policy: a grpo.Engine, "expert", or "demonstrator".

    Touches no random state but its own, which depends on the task: alone or among others, a gym plays the same.
    If it could not be played to its end, "failed" says why, and there are no numbers.  "talks" has, per gym, the
    conversation on its first task: {"history": [[role, text], …], "rewards": […], "status": one of ENDINGS}.
    """
    every = itertools.product(gym_names(s), range(tasks), range(s.samples))
    mine, talks, failed = [], {}, ""
    try:
        mine, talks = played(s, policy, user, list(every)[grpo.rank()::grpo.world()], split)
    except (envs.UserError, OSError, NotImplementedError) as error:     # all processes must hear of it
        failed = grpo.reason(error)
    everyone = grpo.gather([mine, talks, failed])
    failed = max(why for *_, why in everyone)
    episodes: dict[str, list] = {gym: [] for gym in gym_names(s)}
    for theirs, first, _ in everyone if not failed else []:
        talks |= first
        for gym, episode in theirs:
            episodes[gym].append(episode)
    prompts = f" (prompts {s.llm_prompts})" if s.llm_prompts else ""
    who = (f"{s.user} user{prompts}, noise {s.user_noise}, vague {s.user_vague}, persona {s.persona or 'drawn'}, "
           f"patience {s.patience or 'endless'}")
    return summarise(episodes, who, s.samples) | ({"failed": failed} if failed else {"talks": talks})


def played(s: Settings, policy, user, tasks: list[tuple], split: str) -> tuple[list[tuple[str, dict]], dict]:
    """(gym, what is kept of an episode, as JSON) for each (gym, index, sample); the talks of `evaluate`."""
    todo = [make_env(s, gym, index, split, seated(user, s.seed, split, gym, index, again))
            for gym, index, again in tasks]
    if policy in SCRIPTED:
        act = partial(envs.expert, slip=s.slip) if policy == "demonstrator" else envs.expert
        outcomes = [scripted_outcome(env, earned) for env, earned in zip(todo, envs.play_together(todo, act))]
    else:
        # 1 is evaluation's stream of random numbers; training's are (s.seed, 3, …)
        seeds = [(1, zlib.crc32(env.task["id"].encode()), again) for env, (_, _, again) in zip(todo, tasks)]
        rollouts = grpo.rollout(policy, todo, seeds=seeds, temperature=s.eval_temperature or 1.0,
                               greedy=s.eval_temperature == 0, max_new_tokens=s.max_new_tokens)
        outcomes = [(talk.turn_rewards, talk.status, talk.error) for talk in rollouts]
    kept, talks = [], {}
    for env, (_, index, again), (earned, status, error) in zip(todo, tasks, outcomes):
        row = {"task": env.task["id"], "rewards": earned, "solved": env.solved, "status": ending(env, status),
               "error": error}
        if env.name == "travel" and status != "user_error":
            row |= {"tier": env.task["tier"], "metrics": env.metrics()}
        kept.append((env.name, row))
        if index == again == 0:
            talks[env.name] = {"history": env.history, "rewards": earned, "status": row["status"]}
    return kept, talks


def scripted_outcome(env: envs.Env, earned) -> tuple[list[float], str, str]:
    """Rewards, status and error of an episode: what `envs.play_together` says of it."""
    if isinstance(earned, Exception):
        return [], "user_error", f"{type(earned).__name__}: {grpo.reason(earned)}"
    return earned, env.ended or "done", ""


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
    line("return on held-out tasks", [short(name) for name in columns])
    for gym in several[-1]["gyms"]:
        n = max(c["gyms"][gym]["n"] for c in several)
        line(f"{gym} ({n} tasks)", [shown(c["gyms"][gym]) for c in several])
    for kind in ("macro", "micro"):
        line(f"{kind} average", [shown(c[kind]) for c in several])
    solved = [average(row["success"] for row in c["gyms"].values()) for c in several]
    line("tasks solved", ["-" if share is None else f"{100 * share:.0f} %" for share in solved])
    ended = [{how: sum(row["ended"][how] for row in c["gyms"].values()) for how in ENDINGS} for c in several]
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
            if row["user_errors"]:
                print(f"{name}, {gym}: {row['user_errors']} episodes left out, their user failed: {row['user_error']}")


def print_userbench(table: dict[str, dict]) -> None:
    """UserBench's metrics, a row a tier."""
    print(f"\n{'UserBench, tier':16}{'n':>6}" + "".join(f"{title:>9}" for title in USERBENCH.values()))
    for tier in sorted(set(table) - {"overall"}) + ["overall"]:
        cells = ["-" if table[tier][key] is None else f"{table[tier][key]:.3f}" for key in USERBENCH]
        print(f"{tier:16}{table[tier]['n']:6d}" + "".join(f"{cell:>9}" for cell in cells))
    print(USERBENCH_NOTE)


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
    return {"return": mean([earned for _, earned, _ in everyone]) or 0.0, **gyms,
            "dead": counts["dead"] / counts["groups"], "ended": counts["ended"],
            "turns": mean([turns for *_, turns in everyone]) or 0.0}


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
    tasks = run.s.eval_tasks
    if label == "untrained":                                            # it rambles to every limit
        tasks = math.ceil(tasks / 16)

    def take():
        result = evaluate(run.s, policy, user, tasks)
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

    def texts():
        talks = [demonstration(s, number, s.max_turns, scripted) for number in range(60 * len(trained(s)))]
        return [m["content"] for talk in talks for m in talk] + reference_text(s, 0, 2000)
    grpo.first_policy(run, texts, first_envs(s))
    tell = partial(measure, run, run.engine, user)
    draw = partial(lesson, s, run.tokenizer, scripted)
    size = sum(p.numel() for p in run.model.parameters())
    print(f"{size / 1e6:.2f} M parameters, {len(run.tokenizer)} tokens, gyms: {', '.join(gym_names(s))}", flush=True)
    if run.optimizer:
        print(f"going on after {run.state['phase']} step {run.state['step']}", flush=True)
    else:
        tell("untrained" if s.model == "tiny" else "start")
    teach = {"sft": partial(grpo.train_sft, run, draw, 0.0), "rl": partial(train_rl, run, user)}
    grpo.run_phases(run, phases, teach, tell)
    if "sft" in phases:
        measure(run, "demonstrator", user, "demonstrator")              # whom SFT imitated
    measure(run, "expert", user, "expert")


def start(s: Settings, command: str, phases: tuple[str, ...]) -> None:
    """A run: the phases one after the other, then the table."""
    if s.model in SCRIPTED:
        raise ValueError(f"--model={s.model} is for eval only")
    if not trained(s):
        raise ValueError("--hold_out leaves no gym to train in")
    for gym in trained(s) if "sft" in phases or s.model == "tiny" else []:
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


def eval_(s: Settings) -> None:
    """Evaluate a checkpoint, or the scripted expert or demonstrator, on held-out tasks."""
    if s.model == "tiny":
        raise ValueError("eval needs --model=<run or checkpoint folder> (or --model=expert)")
    if s.resume:
        raise ValueError("eval starts anew each time; --resume is for demo, sft and train")
    run = grpo.Run(s, "eval")
    user, policy = make_user(s), s.model
    if policy not in SCRIPTED:
        model, tokenizer = grpo.chosen_policy(s)
        policy = grpo.Engine(model, tokenizer, rows=s.rows, max_len=s.context)
        grpo.must_fit(policy, first_envs(s))
    run.begin()
    measure(run, policy, user, s.model)
    print_table(run.evals)
    if gym_names(s) == ["travel"] and run.evals[s.model]["gyms"]["travel"]["n"]:
        print_userbench(run.evals[s.model]["gyms"]["travel"]["userbench"])
    print(f"written to {run.path}/eval.json")


# ---------------------------------------------------------------------------------------------- both chairs

HELD_OUT_USER = dict(user_noise=0.2, persona="impatient", patience=6)  # nobody trains with it


def selfplay(s: Settings) -> None:
    """Agent (--model) and thinking user (--user=userlm:FOLDER) learn in turn, each from the other.

    A round: the agent does --steps of GRPO against the latest user and, in half of the conversations, one of those
    before it.  Then the latest agent and one of those before it converse with the latest user (on --tasks tasks a gym),
    and what the gyms made it say is what it practises in --user_steps of RL.  Rules judge both: the agent by what the
    gyms pay, the user's lines by rewards of its own (a line said whole, in character, and nothing beside it).  So the
    agent shapes what its user has to say; how well the agent does is not in the user's reward, or its failing would pay.

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
    return grpo.Engine(*grpo.chosen_policy(replace(s, model=model)), rows=s.rows, max_len=s.context)


def agent_round(run: grpo.Run, number: int, agents: list[str], user: envs.MixedUser) -> str:
    """The agent's turn to learn: a run of its own in the run folder, which is returned."""
    place = f"agent-{number}"
    if not run.s.steps:
        return agents[-1]
    print(f"-- round {number}: the agent learns", flush=True)
    resume = (run.path / place / "config.json").exists()
    part = grpo.Run(replace(run.s, name=run.path.name, model=agents[-1], resume=resume), "selfplay", place)
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
    own = userlm_r1.Settings(name=run.path.name, seed=s.seed, workers=s.workers, device=s.device, steps=s.user_steps,
                             tasks=s.tasks, group=s.group, save_every=s.save_every)
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

    def __init__(self, system_prompt: str, first: str):
        self.system_prompt, self.first = system_prompt, first

    def reset(self):
        return self.first, {}

    def turn(self, action: str):
        print(f"agent  {grpo.printable(action)}")
        reply = input("you    ")
        return reply, 0.0, not reply, False, {}
        yield                                                           # a generator, like every env's turn


def play(s: Settings) -> None:
    """You are the agent of a gym; or, with --model, the user of a trained agent.  An empty line ends it."""
    gym = gym_names(s)[0]
    env = make_env(s, gym, s.index, "test", seated(make_user(s), s.seed, gym, s.index))
    first, _ = env.reset()
    print(f"{gym}: {env.system_prompt}")
    if s.model != "tiny":
        model, tokenizer = grpo.chosen_policy(s)
        print(f"You are the user; an empty line ends it. For example: {first}")
        person = Person(env.system_prompt, input("you    ") or first)
        engine = grpo.Engine(model, tokenizer, rows=1, max_len=s.context)
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

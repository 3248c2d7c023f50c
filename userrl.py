"""An agent that learns from simulated users: cold start, GRPO, evaluation, play (UserRL, arXiv 2509.19736).

    python userrl.py                                  the demo: a tiny model learns on a laptop CPU, nothing to download
    python userrl.py sft   --name=cold                cold start only: imitate the scripted demonstrator
    python userrl.py train --model=runs/cold/checkpoint --steps=200          GRPO from a checkpoint
    python userrl.py eval  --model=runs/demo/checkpoint --gyms=travel        held-out tasks; --model=expert works too
    python userrl.py play  --gyms=telepathy           you are the agent;  with --model=…  you are its user
    python userrl.py demo  --name=demo --resume=True  go on after Ctrl-C, kill -9 or a power cut

Every setting is a field of `Settings`, given as --key=value.  A run lives in runs/<name>/:
config.json, metrics.jsonl (one line a step, reproducible bit for bit), times.jsonl (seconds, memory),
eval.json, samples.jsonl (whole conversations with reward, credit and advantage of each turn), checkpoint/.

On a CPU `workers` processes share the work, elsewhere as many as torchrun starts.  Left out: sweeps, dashboards,
asynchronous rollouts.  envs.py says what is rewarded, rewards.py who
gets the credit, grpo.py how a policy talks and learns; this file only wires them together.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import random
import re
import resource
import signal
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import grpo                             # before torch: it sets how torch's threads wait
import envs
import numpy as np
import rewards
import torch


@dataclass
class Settings:
    name: str = ""                  # run folder under runs/; empty: the command's name, numbered if it exists
    resume: bool = False            # go on with runs/<name> where its last checkpoint left it
    seed: int = 0
    gyms: str = "all"               # "all", or a comma-separated list
    hold_out: str = "tau"           # gyms that are evaluated, not trained (the tiny model cannot write tau's long calls)
    workers: int = 2                # processes that share the work (the numbers depend on it); torchrun sets its own
    model: str = "tiny"             # "tiny" (made here, from scratch), a checkpoint folder or name, or "expert" (eval)
    device: str = ""                # empty: cuda if there is one, else cpu
    micro_tokens: int = 2048        # padded tokens per forward pass in training: 2048 suits a CPU, 16384 a GPU
    # the tiny model
    vocab_size: int = 2048
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mimetic: bool = False           # attention begins near the identity (userlm_r1.py's does)
    # cold start (SFT) on a careless scripted demonstrator
    demos: int = 10_000             # training tasks per gym that are demonstrated, one after the other; RL has later ones
    slip: float = 0.2               # how careless: probability of a poor move
    sft_steps: int = 1100
    sft_tokens: int = 5000          # tokens of demonstrations per optimiser step
    sft_lr: float = 8e-3            # for the tiny model; a real checkpoint wants 1e-5
    muon: float = 2.5               # the tiny model's matrices learn by Muon, at this multiple of sft_lr; 0: AdamW
    # ... which a model made from scratch begins by reading plain text (the stand-in for pre-training)
    reading: float = 0.3            # share of the SFT steps that only read
    facts: int = 16                 # lines of text per optimiser step, half as many once it imitates
    # GRPO
    steps: int = 56
    tasks: int = 16                 # tasks per step
    mixture: str = "signal"         # whose: the gyms in turn ("equal"), or more from those whose rollouts differ ("signal")
    group: int = 8                  # rollouts per task
    updates: int = 1                # optimiser steps per batch of rollouts
    lr: float = 2.5e-4              # for the tiny model; a real checkpoint wants 1e-6
    rl_muon: float = 10.0           # as muon above, in RL; both only for models below ten million parameters
    gain: float = 300.0             # the last norm's gains, which scale all logits, learn at this multiple of lr
    warmup: float = 0.1             # share of the steps
    decay: str = "cosine"           # to 0 at the last step, or "constant"
    temperature: float = 1.0
    turn: str = "naive"             # turn credit: naive | equalized | r2g | em
    trajectory: str = "r2g"         # trajectory score: sum | mean | r2g
    combine: str = "shift"          # scale (released code) | paper (as printed) | shift (ours)
    normalize: str = "center"       # std | center
    gamma: float = 0.8
    k: float = 2.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: float = 0.05                # weight of the k3 KL to the policy RL started from: noise drifts, rewards do not
    ratio: str = "token"            # token | sequence (GSPO)
    aggregate: str = "token"        # token | sequence | constant (Dr. GRPO): the divisor of the loss
    resample: int = 0               # rounds of replacements for groups without signal (DAPO's dynamic sampling)
    # conversations
    rows: int = 96                  # conversations generated at once
    context: int = 1536             # tokens a conversation may hold
    max_new_tokens: int = 80        # per turn
    max_turns: int = 16
    tier: str = "22"                # travel: preferences per aspect; several as 22,33, or "all"
    choice: str = "single"          # travel: one answer per aspect, or "multi"
    wrong: int = 3                  # travel: wrong options per aspect (UserBench: 10)
    noise: int = 0                  # travel: noise options per aspect (UserBench: 5)
    user: str = "scripted"          # who talks: "scripted", or "userlm:runs/<name>" (userlm_r1.py; the rules still judge)
    user_noise: float = 0.0         # probability that the scripted user misunderstands
    user_vague: float = 0.0         # probability that it shrugs instead of answering
    persona: str = ""               # how it speaks: plain, polite, chatty, impatient, unsure; empty: drawn per episode
    patience: int = 0               # it leaves after so many turns in a row that earned nothing; 0: never
    # evaluation and bookkeeping
    eval_tasks: int = 128           # held-out tasks per gym
    eval_temperature: float = 1.0   # the policy as trained; 0 is greedy
    samples: int = 1                # conversations per held-out task: pass@k for k = 1 .. samples
    index: int = 0                  # play: which task
    save_every: int = 25
    sample_every: int = 10


    def check(self) -> None:
        """ValueError in one line for a setting out of its range."""
        for key, allowed in {"turn": rewards.TURN, "trajectory": rewards.TRAJECTORY, "combine": rewards.COMBINE,
                             "normalize": rewards.NORMALIZE, "mixture": ("signal", "equal"), "decay": ("cosine", "constant"), "choice": ("single", "multi"), "ratio": ("token", "sequence"),
                             "aggregate": ("token", "sequence", "constant")}.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"--{key} is one of {', '.join(allowed)}, not {getattr(self, key)!r}")
        least = {"group": 2, "workers": 1, "temperature": 1e-3, "sft_tokens": 1, "tasks": 1, "updates": 1, "rows": 1, "eval_tasks": 1, "demos": 1,
                 "samples": 1, "context": 64, "max_new_tokens": 2, "max_turns": 1, "save_every": 1, "sample_every": 1, "vocab_size": 300}
        check_ranges(self, least)
        if not 0 <= self.reading < 1 or not self.slip <= 1 >= max(self.user_noise, self.user_vague):
            raise ValueError("--reading must be below 1, and --slip, --user_noise and --user_vague are probabilities")
        if self.model == "tiny" and self.reading and not self.facts:
            raise ValueError("--facts must be at least 1 while --reading is above 0")
        if self.user != "scripted" and not self.user.startswith("userlm:"):
            raise ValueError(f"--user is 'scripted' or 'userlm:runs/<name>', not {self.user!r}")
        rewards.turn_credits([0.0], self.turn, self.gamma, self.k)
        check_device(self.device)
        for gym in gym_names(self):
            make_env(self, gym, 0, "train", None)
        if unknown := set(held_out(self)) - set(envs.GYMS):
            raise ValueError(f"--hold_out={unknown.pop()} is no gym; choose from {', '.join(envs.GYMS)}")
        if set(held_out(self)) >= set(gym_names(self)):
            raise ValueError("--hold_out leaves no gym to train in")


def check_ranges(s, least: dict) -> None:
    """ValueError for a number below its least (0 if `least` has none), or a run name that is no folder name."""
    least = {**dict.fromkeys(("hidden", "layers", "heads", "kv_heads"), 1), "head_dim": 2, **least}
    for key, value in dataclasses.asdict(s).items():
        if isinstance(value, (int, float)) and not value >= least.get(key, 0):
            raise ValueError(f"--{key} must be at least {least.get(key, 0)}, not {value}")
    if s.heads % s.kv_heads or s.head_dim % 2:
        raise ValueError("--heads is a multiple of --kv_heads, and --head_dim is even")
    if not re.fullmatch(r"[\w.-]*", s.name) or s.name in (".", ".."):
        raise ValueError(f"--name is a plain folder name, not {s.name!r}")


def check_device(device: str) -> None:
    """ValueError if torch cannot use it."""
    try:
        torch.zeros(1, device=device or "cpu").tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"--device={device}: {str(error).splitlines()[0]}") from None


class Stop(Exception):
    """The user pressed Ctrl-C; the step that ran is finished."""


# ---------------------------------------------------------------------------------------------- tasks and users

def gym_names(s: Settings) -> list[str]:
    names = list(envs.GYMS) if s.gyms == "all" else list(dict.fromkeys(g.strip() for g in s.gyms.split(",")))
    if unknown := [g for g in names if g not in envs.GYMS]:
        raise ValueError(f"unknown gym {unknown[0]!r}; choose from all, {', '.join(envs.GYMS)}")
    return names


def held_out(s: Settings) -> list[str]:
    return [g.strip() for g in s.hold_out.split(",") if g.strip()]


def trained(s: Settings) -> list[str]:
    """The gyms that are trained, in turn: one that is named twice in --gyms has twice the share.  All are evaluated."""
    names = gym_names(s) if s.gyms == "all" else [g.strip() for g in s.gyms.split(",")]
    return [g for g in names if g not in held_out(s)]


def make_env(s: Settings, gym: str, index: int, split: str, user) -> envs.Env:
    options = {"max_turns": s.max_turns, "persona": s.persona, "patience": s.patience}
    if gym == "travel":
        tiers = envs.TRIP_TIERS if s.tier == "all" else s.tier.split(",")        # several take turns
        options |= {"tier": tiers[index % len(tiers)], "wrong": s.wrong, "noise": s.noise, "one_choice": s.choice == "single"}
        index //= len(tiers)
    return envs.make(gym, index, split, user=user, **options)


def make_user(s: Settings):
    """The user in every gym; one object for all conversations, so that a model answers them in batches."""
    if s.user == "scripted":
        return envs.ScriptedUser(s.user_noise, s.user_vague)
    import userlm_r1                                                    # it imports this file
    return userlm_r1.load_user(s.user.removeprefix("userlm:"), s.user_noise, s.user_vague, s.device or None)


def demonstration(s: Settings, number: int, turns: int, user) -> list[dict]:
    """The first turns of the careless demonstrator on a training task of its own, as chat messages; gyms in turn."""
    gyms = trained(s)
    env = make_env(s, gyms[number % len(gyms)], number // len(gyms) % s.demos, "train", user)
    talk, over = [{"role": "system", "content": env.system_prompt}, {"role": "user", "content": env.reset()[0]}], False
    while not over and env.turns < turns:
        action = envs.expert(env, slip=s.slip)
        text, _, terminated, truncated, _ = env.step(action)
        talk += [{"role": "assistant", "content": action}, {"role": "user", "content": text}]
        over = terminated or truncated
    return talk[:-1]                                                   # the last feedback is read by nobody


def reference_text(s: Settings, index: int, lines: int) -> list[str]:
    """Lines of plain text that stand in for the pre-training which a model made from scratch lacks."""
    gyms = trained(s)
    return [envs.knowledge(gyms[i % len(gyms)], random.Random(f"{s.seed}/facts/{index}/{i}")) for i in range(lines)]


# ---------------------------------------------------------------------------------------------- evaluation

def summarise(gym_episodes: dict[str, list[dict]], user: str, samples: int = 1) -> dict:
    """Per gym: return with its 95 % half width, success, turns, UserRL's efficiency metrics; macro and micro averages.

    gym_episodes: gym -> one {"task": id, "rewards": […], "solved": bool, "status": str, "metrics": {…}} per episode.
    Episodes whose user failed are counted, not scored.  Intervals are over tasks: samples of one task are averaged.
    """
    table, everything = {}, []
    for gym, episodes in gym_episodes.items():
        scored = [e for e in episodes if e["status"] != "user_error"]
        tasks: dict[str, list] = {}
        for e in scored:
            tasks.setdefault(e["task"], []).append(e)
        returns = {task: sum(sum(e["rewards"]) for e in same) / len(same) for task, same in tasks.items()}
        everything += returns.values()
        mean, half = rewards.mean_ci(list(returns.values())) if returns else (math.nan, math.nan)
        average = lambda f: sum(map(f, scored)) / max(len(scored), 1)
        table[gym] = {"return": mean, "ci95": half, "success": average(lambda e: e["solved"]),
                      "turns": average(lambda e: len(e["rewards"])),
                      "effective_turns": average(lambda e: rewards.effective_turns(e["rewards"])),
                      "time_weighted": average(lambda e: rewards.time_weighted(e["rewards"])),
                      "n": len(tasks), "user_errors": len(episodes) - len(scored), "returns": returns}
        if samples > 1:
            full = [[e["solved"] for e in same] for same in tasks.values() if len(same) == samples]
            table[gym]["pass_at"] = {k: sum(rewards.pass_at_k(samples, sum(c), k) for c in full) / max(len(full), 1)
                                     for k in range(1, samples + 1)}
        if gym == "travel":
            table[gym]["userbench"] = userbench(scored)
    gyms = list(table.values())
    macro = {"return": sum(g["return"] for g in gyms) / len(gyms),
             "ci95": math.sqrt(sum(g["ci95"] ** 2 for g in gyms)) / len(gyms)}
    micro = dict(zip(("return", "ci95"), rewards.mean_ci(everything) if everything else (math.nan, math.nan)))
    return {"gyms": table, "macro": macro, "micro": micro, "user": user}


def userbench(episodes: list[dict]) -> dict[str, dict]:
    """UserBench's metrics (arXiv 2507.22034) of travel episodes, per tier and overall; None where nothing was valid."""
    tiers = {"overall": episodes}
    for e in episodes:
        tiers.setdefault(e["tier"], []).append(e)
    mean = lambda values: sum(values) / len(values) if values else None
    return {tier: {"n": len(some), **{key: mean([e["metrics"][key] for e in some if e["metrics"][key] is not None])
                                      for key in episodes[0]["metrics"]}} for tier, some in tiers.items()}


def evaluate(s: Settings, policy, user, tasks: int) -> dict:
    """Play `tasks` held-out tasks a gym, each `samples` times.  policy: a grpo.Engine, or "expert".

    Touches no random state but its own, which depends on the task: alone or among others, a gym plays the same.
    """
    every = [(gym, i, k) for gym in gym_names(s) for i in range(tasks) for k in range(s.samples)][grpo.rank()::grpo.world()]
    todo = [make_env(s, gym, i, "test", user) for gym, i, _ in every]
    if policy == "expert":
        played = [(envs.play(env, envs.expert), "done") for env in todo]
    else:
        seeds = [(1, zlib.crc32(env.task["id"].encode()), k) for env, (*_, k) in zip(todo, every)]
        talks = grpo.rollout(policy, todo, seeds=seeds, temperature=s.eval_temperature or 1.0, greedy=s.eval_temperature == 0,
                             max_new_tokens=s.max_new_tokens)
        played = [(t.turn_rewards, t.status) for t in talks]
    episodes: dict[str, list] = {gym: [] for gym in gym_names(s)}
    mine = [(env.name, {"task": env.task["id"], "rewards": earned, "solved": env.solved, "status": status,
                        **({"tier": env.task["tier"], "metrics": env.metrics()} if env.name == "travel" else {})})
            for env, (earned, status) in zip(todo, played)]
    for gym, episode in (x for part in grpo.gather(mine) for x in part):
        episodes[gym].append(episode)
    return summarise(episodes, f"{s.user} user, noise {s.user_noise}, vague {s.user_vague}, persona {s.persona or 'drawn'}, "
                               f"patience {s.patience or 'endless'}", s.samples)


def print_table(columns: dict[str, dict]) -> None:
    """Mean return on held-out tasks, one column a policy, one row a gym; then what only some evaluations have."""
    names, gyms = list(columns), list(columns.values())[-1]["gyms"]
    print(f"\n{'return on held-out tasks':28}" + "".join(f"{n[-16:]:>17}" for n in names))
    cell = lambda x: f"{x['return']:9.3f} ± {x['ci95']:.3f}"
    for gym, row in gyms.items():
        print(f"{gym + ' (' + str(row['n']) + ' tasks)':28}" + "".join(f"{cell(columns[n]['gyms'][gym]):>17}" for n in names))
    for kind in ("macro", "micro"):
        print(f"{kind + ' average':28}" + "".join(f"{cell(columns[n][kind]):>17}" for n in names))
    print(f"{'tasks solved':28}" + "".join(
        f"{100 * sum(g['success'] for g in columns[n]['gyms'].values()) / len(gyms):15.0f} %" for n in names))
    print(f"({list(columns.values())[-1]['user']}; ± is half a 95 % interval over the tasks)")
    for name in names:
        for gym, row in columns[name]["gyms"].items():
            if "pass_at" in row:
                print(f"{name[-16:]}, {gym}: " + ", ".join(f"pass@{k} {p:.3f}" for k, p in row["pass_at"].items()))


def print_userbench(table: dict[str, dict]) -> None:
    """UserBench's metrics, a row a tier."""
    titles = {"score": "score", "best_exist": "best", "correct_exist": "correct", "valid_search": "search%", "valid_action": "action%",
              "active": "active", "passive": "passive", "first_valid": "first", "timing": "timing"}
    print(f"\n{'UserBench, tier':16}{'n':>6}" + "".join(f"{title:>9}" for title in titles.values()))
    for tier in sorted(table, key=lambda t: (t == "overall", t)):
        row = table[tier]
        print(f"{tier:16}{row['n']:6d}" + "".join(f"{'-' if row[key] is None else f'{row[key]:.3f}':>9}" for key in titles))
    print("(score: mean value of the answers; best, correct: aspects with the best, with a suiting answer; search%, action%: moves\n"
          " that got the task further; active, passive: preferences that were asked for, volunteered; first: turn of the first\n"
          " valid move; timing: early valid moves weigh more, 1 if every turn was valid)")


# ---------------------------------------------------------------------------------------------- a run

class Run:
    """The run folder: what was set, what was measured, where to go on.  s: this file's Settings, or another dataclass
    with `name`, `resume` and `check`; part: a folder in the run folder, for a run of several policies."""

    def __init__(self, s, command: str, part: str = ""):
        self.s, self.command = s, command
        name = s.name or next(n for i in range(1, 10_000) for n in [command if i == 1 else f"{command}-{i}"]
                              if not (Path("runs") / n).exists())
        self.path = Path("runs") / grpo.gather(name)[0] / part
        self.state, self.writes = {"phase": "", "step": 0}, grpo.rank() == 0
        if s.resume:
            self._resume()
        elif not self.writes:
            pass
        elif (self.path / "config.json").exists():
            raise ValueError(f"{self.path} exists: add --resume=True to go on with it, or choose another --name")
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write("config.json", {"command": command, **dataclasses.asdict(s)})
        self.evals = grpo.gather(self.read("eval.json", {}))[0]

    def _resume(self) -> None:
        saved = self.read("config.json", None)
        if not isinstance(saved, dict):
            raise ValueError(f"nothing to resume: {self.path / 'config.json'} is missing or unreadable")
        if saved.pop("command", None) != self.command:
            raise ValueError(f"{self.path} was not started by '{self.command}'")
        try:
            saved = type(self.s)(**saved)
            saved.check()
        except TypeError:
            raise ValueError(f"{self.path / 'config.json'} was written by another version") from None
        if changed := [f.name for f in dataclasses.fields(saved) if f.name not in ("name", "resume")
                       and getattr(self.s, f.name) not in (f.default, getattr(saved, f.name))]:
            raise ValueError(f"a resumed run keeps its settings: --{changed[0]} was {getattr(saved, changed[0])!r} when it began")
        self.s = dataclasses.replace(saved, name=self.s.name, resume=True)

    def read(self, file: str, default):
        try:
            return json.loads((self.path / file).read_text())
        except (OSError, ValueError):
            return default

    def write(self, file: str, data) -> None:
        """All or nothing: a killed run never leaves half a JSON file."""
        if not self.writes:
            return
        part = self.path / (file + ".part")
        part.write_text(json.dumps(data, indent=1))
        part.replace(self.path / file)

    def log(self, file: str, row: dict) -> None:
        if not self.writes:
            return
        with open(self.path / file, "a") as f:
            f.write(json.dumps(row) + "\n")

    def rewind(self) -> None:
        """Drop the log lines that came after the checkpoint; the same steps will write them again."""
        if not self.writes:
            return
        order = {"sft": 0, "rl": 1}
        here = (order.get(self.state["phase"], -1), self.state["step"])
        for file in ("metrics.jsonl", "times.jsonl", "samples.jsonl"):
            if (self.path / file).exists():
                kept = []
                for line in (self.path / file).read_text().splitlines():
                    try:
                        row = json.loads(line)
                    except ValueError:
                        break                                                    # a line cut short by the kill
                    if (order[row["phase"]], row["step"]) <= here:
                        kept.append(line + "\n")
                part = self.path / (file + ".part")
                part.write_text("".join(kept))
                part.replace(self.path / file)

    def save(self, model, tokenizer, optimizer, **state) -> None:
        self.state = state
        if not self.writes:
            return
        for file in ("metrics.jsonl", "times.jsonl", "samples.jsonl"):          # a power cut must not lose logged steps
            if (self.path / file).exists():
                grpo.sync(self.path / file)
        grpo.save_checkpoint(self.path / "checkpoint", model, tokenizer, optimizer, state)

    def evaluate(self, label: str, measure) -> dict:
        """What measure() gives, kept in eval.json, so that a resumed run does not measure twice."""
        if label not in self.evals:
            self.evals[label] = measure()
            self.write("eval.json", self.evals)
        check_interrupt()
        return self.evals[label]

    def finish_step(self, step: int, last: int, phase: str, *learner, **state) -> None:
        """Checkpoint when it is time, and before an interrupt takes effect."""
        global interrupted
        interrupted = bool(grpo.summed([interrupted])[0])               # only the first process hears Ctrl-C
        if step % self.s.save_every == 0 or step == last or interrupted:
            self.save(*learner, phase=phase, step=step, **state)
        check_interrupt()


def peak_gb() -> float:
    """Peak resident memory of all processes; to be asked for by all of them."""
    return grpo.summed([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20])[0]             # Linux counts in KiB


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def lesson(s: Settings, tokenizer, user, step: int, number: int) -> tuple[list, int]:
    """This process's trajectories of an SFT step, and the number of its next demonstration: each is of a new task.

    A model made from scratch first reads plain text, and then meets the demonstrations cut short, one turn at first
    and whole only towards the end: attention learns to copy from a request in 100 tokens much sooner than in 600.
    """
    tiny, used = s.model == "tiny", 0
    progress = (step / s.sft_steps - s.reading) / (1 - s.reading) if tiny else 1.0       # negative: only reading
    turns = 1 + int(20 * progress**2) if tiny else 10_000
    lines = reference_text(s, step, s.facts // (1 if progress <= 0 else 2) if tiny else 0)
    batch = [grpo.text_trajectory(tokenizer, line) for line in lines[grpo.rank()::grpo.world()]]
    while progress > 0 and used < s.sft_tokens / grpo.world():
        batch.append(grpo.demo_trajectory(tokenizer, demonstration(s, number, turns, user)))
        number, used = number + grpo.world(), used + len(batch[-1].ids)
    return batch, number


def train_sft(run: Run, model, tokenizer, optimizer, first: int, draw, hold: float = 0.0) -> None:
    """The cold start: next-token prediction on what a demonstrator said.  draw(step, number) is a `lesson`; the learning
    rate falls only after a share `hold` of the steps."""
    s, start = run.s, time.time()
    number = run.state.get("numbers", range(grpo.world()))[grpo.rank()]    # of this process's next demonstration
    for step in range(first + 1, s.sft_steps + 1):
        began = time.time()
        batch, number = draw(step, number)
        m = grpo.sft_step(model, optimizer, batch, micro_tokens=s.micro_tokens,
                          lr=grpo.lr_schedule(step - 1, s.sft_steps, s.sft_lr, warmup=0.05, hold=hold))
        run.log("metrics.jsonl", {"phase": "sft", "step": step, **m})
        gb = peak_gb()
        run.log("times.jsonl", {"phase": "sft", "step": step, "seconds": time.time() - began, "gb": gb})
        if step % 100 == 0 or step == s.sft_steps:
            left = (time.time() - start) / (step - first) * (s.sft_steps - step)
            print(f"sft {step:4d}/{s.sft_steps} | loss {m['loss']:6.3f}  grad {m['grad_norm']:5.2f} | "
                  f"{time.time() - began:5.2f} s  {gb:4.2f} GB | {clock(left)} left", flush=True)
        run.finish_step(step, s.sft_steps, "sft", model, tokenizer, optimizer, numbers=grpo.gather(number))


def deal(s: Settings, mixture: dict, tasks: int) -> list[tuple[str, int]]:
    """(gym, index) of the next tasks; `mixture` remembers, so that a resumed run goes on as if never stopped.

    "signal" deals in proportion to how much a task's rollouts differed lately (the mean std of a group's returns): what
    always fails or always succeeds teaches nothing.  Every gym keeps a twentieth of the largest share, to be noticed.
    """
    gyms = trained(s)
    dealt, spread, credit = (mixture.setdefault(key, {}) for key in ("dealt", "spread", "credit"))
    top = max(spread.get(g, 1.0) for g in gyms) or 1.0
    weight = {g: gyms.count(g) * (max(spread.get(g, 1.0), top / 20) if s.mixture == "signal" else 1.0) for g in gyms}
    drawn = []
    for _ in range(tasks):                                              # smooth weighted round robin
        for g in weight:
            credit[g] = credit.get(g, 0.0) + weight[g] / sum(weight.values())
        g = max(weight, key=lambda g: credit[g])
        credit[g] -= 1.0
        drawn.append((g, s.demos + dealt.get(g, 0)))
        dealt[g] = dealt.get(g, 0) + 1
    return drawn


def collect(s: Settings, engine, user, step: int, mixture: dict, times: dict):
    """This process's share of a step's rollouts: (trajectories, their advantages, which carry a signal, counts).

    Tasks are dealt out whole, so that a group is never split; the counts are of all processes.  Trajectories whose user
    failed are left out: that was not a wrong move.  Groups without a signal (all scores equal) are counted and not
    trained on; with --resample, other tasks are drawn in their place.
    """
    talks, counts, alive = [], {"groups": 0, "user_error": 0}, 0
    for round_ in range(1 + s.resample):
        wanted = deal(s, mixture, s.tasks - alive)
        mine = [(f"{gym}-{index}", gym, index) for gym, index in wanted[grpo.rank()::grpo.world()] for _ in range(s.group)]
        todo = [make_env(s, gym, index, "train", user) for _, gym, index in mine]
        seeds = [(s.seed, 3, zlib.crc32(task.encode()), i % s.group) for i, (task, *_) in enumerate(mine)]
        drawn = grpo.rollout(engine, todo, groups=[task for task, *_ in mine], seeds=seeds, temperature=s.temperature,
                             max_new_tokens=s.max_new_tokens, clock=times)
        for talk, env in zip(drawn, todo):
            talk.gym = env.name
        talks += [t for t in drawn if t.status != "user_error" and t.turn_rewards]
        counts["groups"] += len(wanted)
        scores = [rewards.trajectory_score(t.turn_rewards, s.trajectory, s.gamma) for t in talks]
        keep, _ = rewards.signal_groups(scores, [t.group for t in talks])
        signals = {t.group for t, signal in zip(talks, keep) if signal}
        alive, errors = map(int, grpo.summed([len(signals), sum(t.status == "user_error" for t in drawn)]))
        counts["user_error"] += errors
        if alive == s.tasks:
            break
    advantages = rewards.turn_advantages([t.turn_rewards for t in talks], [t.tokens for t in talks], [t.group for t in talks],
                                         s.turn, s.trajectory, s.combine, s.gamma, s.k, s.normalize)
    return talks, advantages, keep, {**counts, "dead": counts["groups"] - alive}


def train_rl(run: Run, model, tokenizer, optimizer, first: int, user, engine) -> None:
    """GRPO: collect rollouts, give every turn its advantage, take `updates` clipped steps."""
    s, start = run.s, time.time()
    reference = start_policy(run, model, tokenizer) if s.kl else None
    mixture = run.state.get("mixture", {})
    constant = s.max_turns * s.max_new_tokens                           # Dr. GRPO's divisor: the longest there can be
    for step in range(first + 1, s.steps + 1):
        began, times = time.time(), {}
        talks, advantages, keep, counts = collect(s, engine, user, step, mixture, times)
        rolled = time.time()
        lr = grpo.lr_schedule(step - 1, s.steps, s.lr, warmup=s.warmup, kind=s.decay)
        ids = sorted({t.group for t, signal in zip(talks, keep) if signal})
        all_metrics = []
        for part in range(s.updates):
            mine = set(ids[part::s.updates])                            # whole groups: half of one is biased
            pick = [i for i, t in enumerate(talks) if t.group in mine]
            if grpo.summed([len(pick)])[0]:                             # the processes step together, or not at all
                batch = [talks[i] for i in pick]
                all_metrics.append(grpo.grpo_step(
                    model, optimizer, batch, [advantages[i] for i in pick], lr=lr, temperature=s.temperature,
                    clip_low=s.clip_low, clip_high=s.clip_high, kl_coef=s.kl, gspo=s.ratio == "sequence",
                    ref_logps=grpo.token_logps(reference, batch, s.temperature, s.micro_tokens) if s.kl else None,
                    aggregate=s.aggregate, constant_tokens=constant, micro_tokens=s.micro_tokens))
        over = {"ratio_max": np.max, "skipped": np.sum, "tokens": np.sum}
        m = {k: float(over.get(k, np.mean)([x[k] for x in all_metrics])) for k in (all_metrics[0] if all_metrics else {})}
        everyone = [x for part in grpo.gather([(t.gym, sum(t.turn_rewards), t.status, len(t.turn_rewards)) for t in talks]) for x in part]
        groups: dict[str, list] = {}
        for t in talks:
            groups.setdefault(t.group, []).append(sum(t.turn_rewards))
        for gym, spread in sorted(x for part in grpo.gather([(g.split("-")[0], float(np.std(r))) for g, r in groups.items()]) for x in part):
            mixture["spread"][gym] = 0.8 * mixture["spread"].get(gym, spread) + 0.2 * spread
        mean = lambda values: float(np.mean(values)) if values else None
        per_gym = {g: mean([r for gym, r, *_ in everyone if gym == g]) for g in gym_names(s) if g in trained(s)}
        row = {"phase": "rl", "step": step, "return": mean([r for _, r, *_ in everyone]) or 0.0, **per_gym,
               "dead": counts["dead"] / counts["groups"], "user_error": counts["user_error"],
               "truncated": mean([status in ("truncated", "length") for *_, status, _ in everyone]) or 0.0,
               "turns": mean([turns for *_, turns in everyone]) or 0.0, **m}
        seconds = time.time() - began
        run.log("metrics.jsonl", row)
        gb, speed = peak_gb(), grpo.summed([times.get("sampled", 0)])[0] / max(rolled - began, 1e-9)
        run.log("times.jsonl", {"phase": "rl", "step": step, "seconds": seconds, "rollout": rolled - began, "gb": gb, **times})
        left = (time.time() - start) / (step - first) * (s.steps - step)
        print(f"rl {step:4d}/{s.steps} | return {row['return']:6.3f} (" + " ".join(f"{g[:4]} {'   -' if r is None else f'{r:4.2f}'}" for g, r in per_gym.items()) +
              f") | dead {100 * row['dead']:3.0f}% cut {100 * row['truncated']:3.0f}% turns {row['turns']:4.1f} | "
              f"kl {m.get('kl', 0):7.1e} clip {m.get('clip_frac', 0):4.2f} grad {m.get('grad_norm', 0):5.2f} "
              f"ent {m.get('entropy', 0):4.2f} | {speed:5.0f} tok/s {seconds:4.1f} s {gb:4.2f} GB | {clock(left)} left", flush=True)
        if talks and (step % s.sample_every == 0 or step == 1):
            show_sample(run, step, talks, advantages)
        run.finish_step(step, s.steps, "rl", model, tokenizer, optimizer, mixture=mixture)


def start_policy(run: Run, model, tokenizer):
    """The frozen policy that RL started from, for the KL term; on disk, so that a resumed run has the same one."""
    folder = run.path / "reference"
    if run.writes and not (folder / "config.json").exists():
        grpo.save_checkpoint(folder, model, tokenizer)
    grpo.gather("saved")                                                # nobody reads before it is written
    return grpo.load_policy(str(folder.resolve()), device=run.s.device or None)[0]


def show_sample(run: Run, step: int, talks, advantages) -> None:
    """Write one conversation of the step to samples.jsonl and print it, with each turn's reward and advantage."""
    s, i = run.s, step % len(talks)
    talk, said = talks[i], [m for m in talks[i].messages if m["role"] == "assistant"]
    credits = rewards.turn_credits(talk.turn_rewards, s.turn, s.gamma, s.k)
    run.log("samples.jsonl", {"phase": "rl", "step": step, "gym": talk.gym, "status": talk.status, "messages": talk.messages,
                              "rewards": talk.turn_rewards, "credits": credits, "advantages": advantages[i],
                              "hidden": talk.infos[-1]["hidden"] if talk.infos else {}})
    print(f"   .-- a {talk.gym} conversation ({talk.status}); reward and advantage of each turn on the right")
    turn = 0
    for message in talk.messages[1:]:
        lines = message["content"].split("\n")
        text = (lines[0] + (f" … (+{len(lines) - 1} lines)" if len(lines) > 1 else ""))[:88]
        if message["role"] == "assistant" and turn < len(advantages[i]):
            print(f"   | agent {text:88} {talk.turn_rewards[turn]:5.2f} {advantages[i][turn]:+6.2f}")
            turn += 1
        else:
            print(f"   | user  {text}")
    print("   '--", flush=True)


# ---------------------------------------------------------------------------------------------- commands

def measure(run: Run, label: str, policy, user) -> None:
    """Evaluate a policy, once, and say so."""
    tasks = run.s.eval_tasks if label != "untrained" else -(-run.s.eval_tasks // 8)      # it rambles to every limit
    macro = run.evaluate(label, lambda: evaluate(run.s, policy, user, tasks))["macro"]
    print(f"-- {label}: macro-average return {macro['return']:.3f} ± {macro['ci95']:.3f} on held-out tasks", flush=True)
    spoken, replaced = grpo.summed([getattr(user, "spoken", 0), getattr(user, "replaced", 0)])
    if spoken:
        print(f"   so far the user model spoke {spoken:.0f} times; {100 * replaced / spoken:.1f} % were unfit and said by the rules", flush=True)


def start(s: Settings, command: str, phases: tuple[str, ...]) -> None:
    """Run the phases ("sft", "rl") one after the other, evaluating between them; go on from a checkpoint if asked."""
    if s.model == "expert":
        raise ValueError("--model=expert is for eval only")
    began = time.time()
    with_workers(s, command, __file__)
    run = Run(s, command)
    print(f"run folder {run.path}", flush=True)
    try:
        learn(run, phases)
    except Stop:
        print(f"stopped after {run.state['phase'] or 'start'}, step {run.state['step']}; go on with\n"
              f"    python userrl.py {command} --name={run.path.name} --resume=True")
        raise
    print_table(run.evals)
    print(f"{clock(time.time() - began)} minutes, {peak_gb():.2f} GB at most; everything is in {run.path}/\n"
          f"talk to it:  python userrl.py play --gyms={gym_names(run.s)[-1]} --model={run.path}/checkpoint")


def with_workers(s, command: str, file: str) -> None:
    """Start, or join, the processes that share the work.  A GPU is enough for one process; several need torchrun."""
    try:
        if s.resume:                                                        # a resumed run keeps its settings
            s.workers = int(json.loads((Path("runs") / s.name / "config.json").read_text())["workers"])
    except (OSError, ValueError, KeyError, TypeError):
        return                                                              # Run will say what is wrong
    cpu = (s.device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cpu"
    settings = [f"--{k}={v}" for k, v in dataclasses.asdict(s).items()]
    team.extend(grpo.join(s.workers if cpu else 1, [file, command, *settings]))


def first_policy(run: Run, texts, begin=None) -> tuple:
    """(model, tokenizer, optimizer): the run's checkpoint if it goes on, or the one at `begin`; else, without an optimizer, a
    tiny model made from scratch with the vocabulary of texts(), or --model.  What was logged after the checkpoint is dropped."""
    s, optimizer = run.s, None
    found = [f for f in [run.path / "checkpoint"] * s.resume + [begin] * bool(begin) if grpo.complete_checkpoint(str(f))]
    if found:
        model, tokenizer, optimizer, run.state = grpo.load_checkpoint(found[0], device=s.device or None)
    elif s.model == "tiny":
        model, tokenizer = grpo.tiny_policy(texts(), vocab_size=s.vocab_size, hidden=s.hidden, layers=s.layers, heads=s.heads,
                                            kv_heads=s.kv_heads, head_dim=s.head_dim, ffn=2 * s.hidden, mimetic=s.mimetic, seed=s.seed)
        model.to(s.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    else:
        model, tokenizer = grpo.load_policy(s.model, device=s.device or None)
    run.rewind()
    return model, tokenizer, optimizer


def run_phases(run: Run, phases: tuple[str, ...], model, optimizer, teach: dict, tell) -> None:
    """Each phase from where the checkpoint left it, then tell(label).  teach: phase -> function(optimizer, first step)."""
    s, resumed = run.s, optimizer is not None
    for phase in phases[phases.index(run.state["phase"]) if resumed else 0:]:
        first = run.state["step"] if resumed and phase == run.state["phase"] else 0
        if not first:
            factors = {"sft": {"muon": s.muon}, "rl": {"muon": s.rl_muon, "gain": s.gain}}[phase]
            small = sum(p.numel() for p in model.parameters()) < 10_000_000
            optimizer = grpo.make_optimizer(model, s.lr, **factors if small else {})     # each phase: fresh moments
        teach[phase](optimizer, first)
        tell({"sft": "SFT", "rl": "RL"}[phase])


def learn(run: Run, phases: tuple[str, ...]) -> None:
    s, user = run.s, make_user(run.s)
    scripted = envs.ScriptedUser(s.user_noise, s.user_vague)            # with whom the demonstrator talks: fast

    def texts():
        talks = [demonstration(s, number, s.max_turns, scripted) for number in range(60 * len(trained(s)))]
        return [m["content"] for talk in talks for m in talk] + reference_text(s, 0, 2000)
    model, tokenizer, optimizer = first_policy(run, texts)
    if optimizer:
        print(f"going on after {run.state['phase']} step {run.state['step']}", flush=True)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens, gyms: "
          f"{', '.join(gym_names(s))}", flush=True)
    engine = grpo.Engine(model, tokenizer, rows=s.rows, max_len=s.context)
    if not optimizer:
        measure(run, "untrained" if s.model == "tiny" else "start", engine, user)
    draw = lambda *at: lesson(s, tokenizer, scripted, *at)
    run_phases(run, phases, model, optimizer, tell=lambda label: measure(run, label, engine, user), teach={
        "sft": lambda optimizer, first: train_sft(run, model, tokenizer, optimizer, first, draw),
        "rl": lambda optimizer, first: train_rl(run, model, tokenizer, optimizer, first, user, engine)})
    measure(run, "expert", "expert", user)


def demo(s: Settings) -> None:
    start(s, "demo", ("sft", "rl"))


def sft(s: Settings) -> None:
    start(s, "sft", ("sft",))


def train(s: Settings) -> None:
    if s.model == "tiny" and not s.resume:
        print("note: --model=tiny has no cold start; expect RL to stall (try the demo, or sft first)")
    start(s, "train", ("rl",))


def eval_(s: Settings) -> None:
    """Evaluate a checkpoint, or the scripted expert, on held-out tasks."""
    if s.model == "tiny":
        raise ValueError("eval needs --model=<checkpoint folder> (or --model=expert)")
    user = make_user(s)
    policy = "expert"
    if s.model != "expert":
        policy = grpo.Engine(*grpo.load_policy(s.model, device=s.device or None), rows=s.rows, max_len=s.context)
    if s.resume:
        raise ValueError("eval starts anew each time; --resume is for demo, sft and train")
    with_workers(s, "eval", __file__)
    run = Run(s, "eval")
    measure(run, s.model, policy, user)
    print_table(run.evals)
    if gym_names(s) == ["travel"]:
        print_userbench(run.evals[s.model]["gyms"]["travel"]["userbench"])
    print(f"written to {run.path}/eval.json")


class Person:
    """A person in the user's chair, as an environment for the trained agent: what they type is the feedback."""
    user = None

    def __init__(self, system_prompt: str, first: str):
        self.system_prompt, self.first = system_prompt, first

    def reset(self):
        return self.first, {}

    def turn(self, action: str):
        print(f"agent  {action}")
        reply = input("you    ")
        return reply, 0.0, not reply, False, {}
        yield                                                               # a generator, like every env's turn


def play(s: Settings) -> None:
    """You are the agent of a gym; or, with --model, the user of a trained agent.  An empty line ends it."""
    gym = gym_names(s)[0]
    env = make_env(s, gym, s.index, "test", make_user(s))
    first, _ = env.reset()
    print(f"{gym}: {env.system_prompt}\n")
    if s.model != "tiny":
        engine = grpo.Engine(*grpo.load_policy(s.model, device=s.device or None), rows=1, max_len=s.context)
        print(f"You are the user. For example: {first}")
        grpo.rollout(engine, [Person(env.system_prompt, input("you    ") or first)], seeds=[(s.seed, int(time.time()))],
                     temperature=s.temperature, max_new_tokens=s.max_new_tokens)
        return
    print(f"user   {first}")
    total, over = 0.0, False
    while not over and (action := input("you    ")):
        text, reward, terminated, truncated, info = env.step(action)
        total, over = total + reward, terminated or truncated
        print(f"user   {text}\n       reward {reward:.2f}, so far {total:.2f}, turn {env.turns} of {env.max_turns}")
    print(f"return {total:.2f}; what was hidden: {env.task}")


team: list = []                                                             # processes that this one started
COMMANDS = {"demo": demo, "sft": sft, "train": train, "eval": eval_, "play": play}
interrupted = False


def check_interrupt() -> None:
    if interrupted:
        raise Stop


def on_interrupt(*_) -> None:
    global interrupted
    if interrupted:
        raise KeyboardInterrupt
    interrupted = True
    print("\nCtrl-C: finishing this step, then saving (once more to stop at once)", flush=True)


def parse(argv: list[str], kind: type, commands: dict) -> tuple:
    """("demo", settings) from ["demo", "--key=value", …]; ValueError with one clear line for anything else.

    kind: the dataclass of the settings, with a `check`.  commands: name -> function of the settings.
    """
    command = argv[0] if argv and not argv[0].startswith("-") else "demo"
    if command not in commands:
        raise ValueError(f"unknown command {command!r}; choose from {', '.join(commands)}")
    types, values = {f.name: type(f.default) for f in dataclasses.fields(kind)}, {}
    for item in argv[1 if argv and argv[0] == command else 0:]:
        key, equals, value = item.removeprefix("--").partition("=")
        if not item.startswith("--") or not equals:
            raise ValueError(f"cannot read {item!r}; settings look like --key=value")
        key = {"gym": "gyms"}.get(key, key)
        if key not in types:
            close = difflib.get_close_matches(key, types, 1)
            raise ValueError(f"unknown setting --{key}" + (f"; did you mean --{close[0]}?" if close else ""))
        try:
            values[key] = {"true": True, "false": False}[value.lower()] if types[key] is bool else types[key](value)
        except (ValueError, KeyError):
            raise ValueError(f"--{key} takes {types[key].__name__}, not {value!r}") from None
    settings = kind(**values)
    settings.check()
    return command, settings


def main(argv: list[str], doc: str = __doc__, kind: type = Settings, commands: dict = COMMANDS, file: str = "userrl.py") -> int:
    """The command line of this file, or of another one with settings and commands of its own.  Returns the exit status."""
    if argv and argv[0] in ("-h", "--help", "help"):
        print(doc)
        return 0
    try:
        command, s = parse(argv, kind, commands)
        if command not in ("play", "chat"):
            signal.signal(signal.SIGINT, on_interrupt if grpo.rank() == 0 else signal.SIG_IGN)
        commands[command](s)
        return 0
    except Stop:
        return 130
    except (KeyboardInterrupt, EOFError):
        print("\nstopped")
        return 130
    except (ValueError, OSError) as error:                                  # PolicyError is a ValueError
        print(f"{file}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if grpo.world() == 1 or "gloo" not in str(error):
            raise
        if grpo.rank() == 0:                                                # the others end silently with the first
            print(f"{file}: another process of this run died; --resume=True goes on from the last checkpoint", file=sys.stderr)
        return 3
    finally:
        grpo.leave(team)
        team.clear()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A user who thinks before it speaks: profiles, traps, reasoning, multi-reward RL (UserLM-R1, arXiv 2601.09215).

No code of the paper was published; the numbers and tables of words here are our own choices.  The roles are swapped:
the policy is the *user* (a caller), its environment is a scripted service agent, and grpo.py trains it unchanged.

    the prompt   who the caller is (static profile); what they know, want and feel (dynamic profile)
    agent        The deadline is Monday, so decide right now.            a claim: true, or one of eleven traps
    user         <think> five short lines: intent, concerns, plan, state, tone </think>
                 <answer> the dynamic profile, updated; then `say:` and the words.  Only those reach the agent </answer>

Read it from top to bottom: profiles, scenarios, the turn, what is right, the call, the teacher, rewards, the judge, the words,
evaluation, the user in the gyms, training.  Left out: learned reward models, dashboards, other languages.

    python userlm_r1.py                            the demo: SFT and RL of a tiny user, two baselines, on a laptop CPU
    python userlm_r1.py sft   --name=cold --mode=no_reasoning          imitate the scripted teacher only
    python userlm_r1.py train --model=runs/cold --drop=strategy        RL, here without one reward
    python userlm_r1.py sft   --name=speaker --notes=0.5               a user for the gyms: userrl.py --user=userlm:runs/speaker
    python userlm_r1.py eval  --model=runs/demo                        both tables and the fidelity report
    python userlm_r1.py chat  --model=runs/demo                        you are the agent; "?" shows the user's thought
    python userlm_r1.py profile --index=3                              a persona, its dynamic profile, a scripted call
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import sys
import time
import weakref
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import grpo                             # before torch: it sets how torch's threads wait
import envs
import numpy as np
import rewards
import torch
import userrl                           # the run folder, the SFT loop and the command line

# ---------------------------------------------------------------------------------------------- profiles

STATES = ("trust", "emotion", "patience", "participation")              # 0 to 10; may move by 2 a turn
STYLES = {"verbosity": ("brief", "chatty"), "manner": ("polite", "blunt"), "patience": ("patient", "hasty"),
          "rate": ("slow", "fast")}


@dataclass(frozen=True)
class Persona:
    """The static profile: background, personality, expression style, life."""
    name: str
    age: int
    job: str
    city: str
    mbti: str
    rate: str                           # of speech: slow | fast
    verbosity: str                      # brief | chatty
    patience: str                       # patient | hasty
    manner: str                         # polite | blunt
    phrase: str                         # what this person keeps saying
    life: str

    def text(self) -> str:
        return (f"who: {self.name}, {self.age}, {self.job}, {self.city}, {self.mbti}. style: {self.rate}, {self.verbosity}, "
                f"{self.patience}, {self.manner}, says {self.phrase}. life: {self.life}.")


def read_persona(text: str) -> Persona:
    """The inverse of `Persona.text`; ValueError if anything is off."""
    word = r"([^,.]+)"
    match = re.fullmatch(rf"who: {word}, (\d+), {word}, {word}, {word}\. style: {word}, {word}, {word}, {word}, says {word}\. "
                         rf"life: ([^.]+)\.", text)
    if not match:
        raise ValueError("a persona reads 'who: name, age, job, city, mbti. style: …, says …. life: ….'")
    return checked(Persona(*(int(x) if i == 1 else x for i, x in enumerate(match.groups()))))


def checked(p: Persona) -> Persona:
    """p itself; ValueError if a style is none of STYLES."""
    for key, allowed in STYLES.items():
        if getattr(p, key) not in allowed:
            raise ValueError(f"persona field {key!r} is one of {', '.join(allowed)}, not {getattr(p, key)!r}")
    return p


def make_persona(rng: random.Random) -> Persona:
    pick = lambda table: rng.choice(table.split())
    return Persona(pick(NAMES), rng.randint(20, 69), pick(JOBS), pick(CITIES), pick(TYPES),
                   *(rng.choice(STYLES[k]) for k in ("rate", "verbosity", "patience", "manner")), pick(PHRASES),
                   rng.choice(LIVES.split("|")))


@dataclass
class Dynamic:
    """The dynamic profile DP(t): what the user writes anew every turn; `memory` and `goal` stand in the prompt only."""
    open: list[str]                     # concerns not settled yet: the primary one first, then minor ones
    touched: list[str] = field(default_factory=list)                    # Touched Concerns, by the agent's turn
    core: str = "none"                  # Core Issues: what matters most now
    topic: str = "stay"                 # Topic Management: stay | shift | close
    plan: str = "none"                  # Planning: an act and its object, "challenge deadline"
    reply: str = "calm"                 # Current Response: its tone, calm | firm | warm
    end: bool = False                   # End Session
    state: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 5))
    memory: dict[str, str] = field(default_factory=dict)                # scenario memory: facts the user knows
    goal: tuple = ()                    # (primary concern, wanted, least)

    def text(self, whole: bool = False) -> str:
        some = lambda items: ", ".join(items) or "none"
        lines = [f"open: {some(self.open)}", f"touched: {some(self.touched)}", f"core: {self.core}", f"topic: {self.topic}",
                 f"plan: {self.plan}", f"reply: {self.reply}", f"end: {'yes' if self.end else 'no'}",
                 "state: " + ", ".join(f"{k} {self.state[k]}" for k in STATES)]
        if whole:
            lines = ["memory: " + some(f"{k} {v}" for k, v in self.memory.items()),
                     "goal: {} {}, least {}".format(*self.goal)] + lines
        return "\n".join(lines)


FIELDS = {"open": r"[a-z]+(, [a-z]+)*", "touched": r"[a-z]+(, [a-z]+)*", "core": r"[a-z]+", "topic": "stay|shift|close",
          "plan": r"(accept|reject|counter|ask|challenge|confirm|inform|end)( [\w-]+)?|none", "reply": "calm|firm|warm",
          "end": "yes|no", "state": ", ".join(rf"{k} (\d|10)" for k in STATES)}
WHOLE = {"memory": r"none|[a-z]+ [\w-]+(, [a-z]+ [\w-]+)*", "goal": r"[a-z]+ \d+, least \d+", **FIELDS}


def read_dynamic(text: str, whole: bool = False) -> Dynamic:
    """The inverse of `Dynamic.text`: these lines, in this order, nothing else; ValueError names the first bad one."""
    got, lines = {}, text.split("\n")
    for i, (key, pattern) in enumerate((WHOLE if whole else FIELDS).items()):
        match = re.fullmatch(rf"{key}: ({pattern})", lines[i]) if i < len(lines) else None
        if not match:
            raise ValueError(f"profile line {i + 1} should be '{key}: …', not {(lines + ['missing'] * 12)[i][:40]!r}")
        got[key] = match[1]
    if len(lines) > len(got):
        raise ValueError(f"the profile has {len(lines) - len(got)} lines too many")
    some = lambda s: [] if s == "none" else s.split(", ")
    pairs = lambda s: dict(x.split(" ") for x in some(s))
    goal = re.findall(r"[a-z]+|\d+", got.get("goal", ""))
    return Dynamic(some(got["open"]), some(got["touched"]), got["core"], got["topic"], got["plan"], got["reply"],
                   got["end"] == "yes", {k: int(v) for k, v in pairs(got["state"]).items()},
                   pairs(got.get("memory", "none")), (goal[0], int(goal[1]), int(goal[3])) if goal else ())


# ---------------------------------------------------------------------------------------------- scenarios

@dataclass(frozen=True)
class SOP:
    """A service agent's procedure.  steps: A asks a fact, C claims one, O offers, X mentions something new, E closes."""
    domain: str
    desk: str                           # who the agent is
    case: str                           # "parcel late": a thing and what is wrong with it
    concern: str                        # the caller's primary concern, a number of `unit`
    unit: str
    minor: str                          # minor concerns, of which a caller has one (in a single turn: one or none)
    excites: str                        # a concern the caller does not have until the agent mentions it
    steps: str


def all_sops() -> list[SOP]:
    """Six domains of five: the fifth case of each domain is held out, though its words occur in other cases."""
    out = []
    for d, line in enumerate(DOMAINS.strip().splitlines()):
        domain, desk, concern, unit, minor, excites, cases = (x.strip() for x in line.split("|"))
        steps = ("ACOE", "COAE", "XCOE", "AOCE", "OXCE")
        out += [SOP(domain, desk, case, concern, unit, minor, excites, steps[(d + i) % 5])
                for i, case in enumerate(cases.split(", "))]
    return out


def split_sops(split: str, sops: list[SOP]) -> list[SOP]:
    """The fifth SOP of each domain is for testing; a file with fewer serves both."""
    seen, parts = Counter(), {"train": [], "test": []}
    for sop in sops:
        seen[sop.domain] += 1
        parts["test" if seen[sop.domain] % 5 == 0 else "train"].append(sop)
    return parts[split] or sops


@lru_cache(maxsize=None)
def held_out(key: str, value: str) -> bool:
    """A quarter of the values of every fact is only ever true in testing (elsewhere the word may occur)."""
    return (VALUES[FACTS[key]].index(value) + zlib.crc32(key.encode())) % 4 == 0


def draw_value(rng, key, split, other_than=None) -> str:
    fits = [v for v in VALUES[FACTS[key]] if v != other_than and (other_than or held_out(key, v) == (split == "test"))]
    if other_than and split == "train":
        fits = [v for v in fits if not held_out(key, v)]
    return rng.choice(fits)


def make_task(kind: str, index: int, split: str, sops=None, personas=None) -> dict:
    """Kinds: "call" (a whole one) and the single turns "trap", "twin" (the same trap, but true) and "other".

    Keys of a task: id, kind, sop, persona, memory (fact -> value), goal (concern, wanted, least), best (the most the agent will go
    to), open (concerns, the primary one first), state, trap ("" if there is none) and the agent's moves: dicts of kind greet,
    ask (key), claim (trap; heard, what is claimed of which fact; key and said, the one that matters), offer (n, last), remark
    (key), close.
    """
    rng = random.Random(f"{split}/{'trap' if kind == 'twin' else kind}/{index}")
    sop = rng.choice(split_sops(split, sops or all_sops()))
    persona = rng.choice(personas) if personas else make_persona(rng)
    trap = list(TRAPS)[index % len(TRAPS)] if kind in ("trap", "twin") else rng.choice(list(TRAPS))
    keys = list(dict.fromkeys([TRAPS[trap][0], *(OVERLOAD if trap == "overload" else [])]))
    keys += rng.sample([k for k in FACTS if k not in keys], 4 - len(keys))
    rng.shuffle(keys)
    memory = {k: draw_value(rng, k, split) for k in keys}
    least = rng.randrange(30, 80, 10)
    best = least + rng.choice([-10, 0, 0, 10, 20])                       # the most the agent will go to
    minor = rng.sample(sop.minor.split(), 1 if kind == "call" else rng.choice([0, 1]))
    state = {k: rng.randint(4, 7) for k in STATES}
    state["patience"] = rng.randint(3, 5) if persona.patience == "hasty" else rng.randint(6, 9)
    task = dict(id=f"{kind}-{split}-{index}", kind=kind, sop=sop, persona=persona, memory=memory, least=least, best=best,
                goal=(sop.concern, least + 20, least), open=[sop.concern, *minor], state=state, trap="")
    key = TRAPS[trap][0]
    true = rng.random() < 0.5 if kind not in ("trap", "twin") else kind == "twin"
    if trap == "overload":        # one of three facts is false; if none, the total speaks
        lied = rng.choice(OVERLOAD)
        key = OVERLOAD[-1] if true else lied
    said = memory[key] if true else draw_value(rng, key, split, memory[key])
    heard = {k: memory[k] for k in (OVERLOAD if trap == "overload" else [key])}
    claim = dict(kind="claim", trap=trap, key=key, said=said, heard={**heard, key: said})
    asked = rng.choice([k for k in keys if k != key])
    offers = [max(10, best - rng.choice([10, 20])), best][rng.choice([0, 0, 1]):]
    moves = {"A": [dict(kind="ask", key=asked)], "C": [claim], "X": [dict(kind="remark", key=sop.excites)],
             "O": [dict(kind="offer", n=n, last=n == best) for n in offers], "E": [dict(kind="close")]}
    if kind == "call":
        task["moves"] = [dict(kind="greet"), *(m for step in sop.steps for m in moves[step])]
    elif kind == "other":
        task["moves"] = [rng.choice([dict(kind="greet"), *(m for step in "AOXEE" for m in moves[step])])]
    else:
        task["moves"] = [claim]
    if any(m["kind"] == "claim" for m in task["moves"]):
        task["trap"] = trap
    if task["moves"][0]["kind"] == "close" and rng.random() < 0.5:
        task["open"] = task["open"][1:]                                  # the deal was made before this turn
    return task


# ---------------------------------------------------------------------------------------------- the turn

STEPS = ("intent", "concerns", "plan", "state", "tone")                 # the five steps of the reasoning
MODES = ("full", "no_reasoning", "static")                              # static: no dynamic profile is read or written
INSTRUCTION = "You are the caller. Think in five steps, update your profile, then speak."
FORMAT = """You play a person who calls a service desk, never the agent. Check every claim against your memory. Answer so:
<think>
intent: what the agent does: greet | ask FACT | claim FACTS | offer NUMBER | remark CONCERN | close
concerns: what memory and goal say to it: memory FACT VALUE, heard VALUE agrees | differs (until one differs); least NUMBER,
  enough | too low; new CONCERN, or open CONCERNS (always one line)
plan: accept N | reject N | counter N | ask CONCERN | challenge FACT | confirm FACT | inform FACT | end
state: which of trust, emotion, patience, participation go up or down, or steady
tone: calm | firm | warm, brief | chatty, polite | blunt, says PHRASE
</think>
<answer>
your dynamic profile, the same eight lines from open to state, updated (a state moves by 2 at most)
say: one or two spoken sentences of at most 18 words
</answer>"""


@dataclass
class Reply:
    """What a user's turn says, as far as it can be read."""
    think: dict | None = None           # step -> text, if all five are there in order
    thought: str = ""                   # the raw reasoning
    profile: Dynamic | None = None
    fields: float = 0.0                 # share of the profile's lines that read well
    say: str = ""                       # what the agent hears; nothing without an <answer> with a say line
    tags: bool = False                  # <think>…</think><answer>…</answer>, each once, nothing around


def write_reply(think: dict, profile: Dynamic, say: str, mode: str = "full") -> str:
    thought = "" if mode == "no_reasoning" else "<think>\n" + "".join(f"{k}: {think[k]}\n" for k in STEPS) + "</think>\n"
    return thought + "<answer>\n" + (profile.text() + "\n" if mode != "static" else "") + f"say: {say}\n</answer>"


def read_reply(text: str, mode: str = "full") -> Reply:
    """Total: any text gives a Reply.  Only what stands behind `say:` in the <answer> is ever heard by the agent."""
    out, text = Reply(), text.strip()
    if match := re.search(r"<think>\s*(.*?)\s*</think>", text, re.S):
        out.thought = match[1]
        steps = re.fullmatch("\n".join(rf"{k}: *(.+)" for k in STEPS), match[1])
        out.think = dict(zip(STEPS, steps.groups())) if steps else None
    opening = "" if mode == "no_reasoning" else r"<think>\n.*\n</think>\n"
    once = all(text.count(tag) == (tag in opening + "<answer></answer>") for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    out.tags = once and bool(re.fullmatch(opening + r"<answer>\n.*\n</answer>", text, re.S))
    if answer := re.search(r"<answer>\n(.*?)\n</answer>", text, re.S):
        before, said, after = answer[1].rpartition("say: ")
        out.say = " ".join(after.split()) if said else ""
        lines = before.rstrip("\n")
        out.fields = sum(bool(re.fullmatch(f"{k}: ({p})", x)) for (k, p), x in zip(FIELDS.items(), lines.split("\n"))) / 8
        try:
            out.profile = read_dynamic(lines)
        except ValueError:
            out.fields = min(out.fields, 7 / 8)
    return out


def valid(reply: Reply, mode: str = "full") -> bool:
    """The strict parse: tags, five steps, a whole profile, words."""
    return bool(reply.tags and reply.say and (reply.think or mode == "no_reasoning")
                and (reply.profile or mode == "static"))


NOT = r"(\bnot|\bnever|\bcannot|n't)"
ACTS = {"end": r"(?<!n't )(?<!not )\b(good ?bye|bye|that is all|hang up)\b",
        "challenge": rf"\b(wrong|incorrect|doubt|prove|proof|odd)\b|{NOT}( \w+){{0,3}} (true|right|correct)\b|^(\w+, )?no, (it|the|my)\b|"
                     r"\bis [\w-]+, not (?!bad)\w+",
        "reject": rf"\b(refuse|reject|no thanks?|no deal)\b|{NOT}( \w+){{0,2}} (take|accept|want|enough|agree)\b",
        "counter": r"\b(too low|want|need|make it|at least|rather)\b.*\d|\d.*\b(or nothing|would be fair)\b",
        "accept": r"\b(accept|agreed|agree|deal|i take|take it)\b", "ask": r"\?",
        "confirm": r"\b(right|correct|indeed|true|yes)\b", "inform": r"\w"}


def act_of(say: str) -> str:
    """What the words do: the first of ACTS that they match, "none" if nothing was said."""
    return next((act for act, pattern in ACTS.items() if re.search(pattern, say.lower().replace("’", "'"))), "none")


def speech_faults(say: str, prompt: str = "", agent: str = "", earlier=(), facts=()) -> list[str]:
    """What makes words unfit to be a person's turn.  Any of these and the turn carries out nothing.

    facts: words that may be said again (names and values the caller knows) without parroting the agent.
    """
    words = lambda text: re.findall(r"\w+", text.lower())
    grams = lambda text, n, but=(): set(zip(*([w for w in words(text) if w not in but][i:] for i in range(n))))
    said, own, found = words(say), grams(say, 2, facts), []
    if not said:
        found.append("empty")
    if re.search(rf"[<>{{}}\[\]]|\b({'|'.join([*STEPS, *WHOLE, 'say', 'who', 'style', 'life'])}):|\bas an ai\b|\b(my|your) profile\b", say,
                 re.I) or grams(say, 5) & grams(prompt, 5):
        found.append("leak")
    if re.search(r"\b(how (can|may) i help|i can offer|we can offer|our (policy|manager|customers?)|your (call|case) is|assist you|"
                 r"happy to help|is there anything else)\b", say, re.I):
        found.append("role flip")
    if len(own) > 2 and len(own & grams(agent, 2, facts)) >= 0.6 * len(own):
        found.append("parrot")
    again = len(said) > 3 and any(words(e) == said for e in earlier)
    if again or len(said) > 7 and len(set(said)) < len(said) / 2:
        found.append("repeat")
    if re.search(r"^\s*([-*•]|\d+[.)])|\bfirst(ly)?\b.*\bsecond(ly)?\b|\bi understand your\b", say,
                 re.I) or len(said) > 30:
        found.append("robotic")
    return found


# ---------------------------------------------------------------------------------------------- what is right

@dataclass
class Right:
    """What a good caller makes of the agent's move: the yardstick of the rewards, and what the teacher writes."""
    intent: str
    check: str
    plan: str
    acts: dict[str, float]              # act -> how good it is here
    open: list[str]                     # concerns still open after a good turn
    must: str = ""                      # what the best act has to mention: a word, or "#number", "#note"
    moves: dict[str, int] = field(default_factory=dict)                 # state -> how it moves
    touched: list[str] = field(default_factory=list)
    topic: str = "stay"
    tone: str = "calm"

    @property
    def core(self) -> str:
        return self.open[0] if self.open else "none"

    @property
    def steps(self) -> str:
        return ", ".join(f"{k} {'up' if d > 0 else 'down'}" for k, d in self.moves.items()) or "steady"


def right(task: dict, move: dict, open_: list[str]) -> Right:
    """The rules of a good call, one branch a move.  The memory decides what is true, `least` what is enough (an offer that is
    enough is best taken at once)."""
    (concern, want, least), memory, kind, keep = task["goal"], task["memory"], move["kind"], list(open_)
    if kind == "greet":
        return Right("greet", f"open {concern}, {task['sop'].case}", f"inform {concern}", {"inform": 1}, keep, concern,
                     moves={"participation": 1})
    if kind == "ask":
        key = move["key"]
        return Right(f"ask {key}", f"memory {key} {memory[key]}", f"inform {key}", {"inform": 1, "confirm": .5}, keep, memory[key],
                     moves={"participation": 1})
    if kind == "claim":
        # the fact's name is followed by its value in the memory only: looking it up is one step for a small model
        known = []
        for key, said in move["heard"].items():                         # one after the other, until one is false
            false = said != memory[key]
            known.append(f"memory {key} {memory[key]}, heard {said} {'differs' if false else 'agrees'}")
            if false:
                break
        intent, check = "claim " + ", ".join(move["heard"]), ", ".join(known)
        if false:
            return Right(intent, check, f"challenge {key}", {"challenge": 1, "reject": .5, "inform": .5, "ask": .5}, keep, memory[key],
                         moves={"trust": -2, "patience": -1}, tone="firm")
        return Right(intent, check, f"confirm {key}", {"confirm": 1, "inform": .7, "accept": .7}, keep, moves={"trust": 1, "emotion": 1})
    if kind == "offer":
        n, rest = move["n"], [c for c in keep if c != concern]
        if n >= least:
            return Right(f"offer {n}", f"least {least}, enough", f"accept {n}", {"accept": 1, "counter": .7}, rest,
                         moves={"trust": 1, "emotion": 2}, touched=[concern], tone="warm")
        return Right(f"offer {n}", f"least {least}, too low", f"counter {want}", {"counter": 1, "reject": .6, "ask": .3}, keep, "#number",
                     moves={"emotion": -1, "patience": -1}, touched=[concern], tone="firm")
    if kind == "note":
        return Right("ask note", "note", "inform note", dict.fromkeys(ACTS, 1.0), keep, "#note", moves={"participation": 1})
    if kind == "remark":
        key = move["key"]
        return Right(f"remark {key}", f"new {key}", f"ask {key}", {"ask": 1, "challenge": .5, "reject": .5},
                     [c for c in keep if c != key], key, moves={"emotion": -1}, touched=[key])
    if rest := [c for c in keep if c != concern]:                       # close: minor concerns first, then goodbye
        return Right("close", "open " + ", ".join(rest), f"ask {rest[0]}", {"ask": 1}, [c for c in keep if c != rest[0]], rest[0],
                     topic="shift")
    return Right("close", "open none", "end", {"end": 1}, keep, topic="close", tone="calm" if keep else "warm")


# ---------------------------------------------------------------------------------------------- the call

@dataclass
class Turn:
    """One user turn as it is scored and counted: nothing in it comes from outside the call."""
    task: dict
    mode: str
    prompt: str
    agent: str                          # what the agent said
    move: dict
    right: Right
    before: Dynamic                     # DP(t-1)
    reply: Reply
    earlier: list[str]                  # the user's own words so far
    faults: list[str]
    act: str                            # what the words do; "none" if they are unfit
    scores: dict = field(default_factory=dict)


class CallEnv:
    """A scripted service agent on the line: the environment of a user policy.  What grpo.rollout needs, and no more.

        agent  Parcel desk, what can I do for you?
        user   …say: My parcel is late, I want a refund, please.            informs
        agent  Thank you. The deadline is Monday, so decide right now.      a claim; the user's memory says Friday
        user   …say: Honestly, the deadline is Friday, not Monday.          challenges, and names the fact
        agent  I see. I can offer you 30 euro.                              below the user's least: counter, and it goes up
        …
    A single-turn task ("trap", "twin", "other") ends after one reply.  The agent hangs up on two turns it cannot hear.
    `judge` (optional) answers a prompt about the turn with numbers that replace the rules' rubrics.
    """

    def __init__(self, task: dict, mode: str = "full", weights: dict | None = None, judge=None, long: bool = False):
        self.task, self.mode, self.user, self.long = task, mode, judge, long
        self.weights = weights or WEIGHTS

    def reset(self) -> tuple[str, dict]:
        task = self.task
        self.rng, self.log, self.queue = random.Random(task["id"].replace("twin", "trap")), [], list(task["moves"])
        self.open, self.deal, self.deaf, self.closes, self.over = list(task["open"]), None, 0, 0, False
        self.profile = Dynamic(list(task["open"]), core=(task["open"] or ["none"])[0], state=dict(task["state"]),
                               memory=task["memory"], goal=task["goal"])
        case = f"note: {task['note']}" if "note" in task else f"case: {task['sop'].case}"
        self.system_prompt = "\n".join([FORMAT if self.long else INSTRUCTION, task["persona"].text(), case] +
                                       [self.profile.text(whole=True)] * (self.mode != "static"))
        self.agent = self.speak("")
        return self.agent, {}

    def speak(self, react: str) -> str:
        """The next move in words, after a reaction to what was said.  The words themselves excite new concerns."""
        self.move, task = self.queue[0], self.task
        kind, sop = self.move["kind"], task["sop"]
        if kind == "claim":
            said = {**task["memory"], **self.move["heard"], "v": self.move["said"]}
            text = self.rng.choice(TRAPS[self.move["trap"]][1].split("|")).format(**said)
        else:
            text = self.rng.choice(AGENT["last" if self.move.get("last") else kind].split("|")).format(
                desk=sop.desk, k=self.move.get("key", ""), n=self.move.get("n", ""), u=sop.unit)
            text = text[0].upper() + text[1:]
        self.open = excite(self.open, text, sop)
        return (react + " " + text).strip()

    def turn(self, text: str):
        reply, move = read_reply(text, self.mode), self.move
        earlier = [t.reply.say for t in self.log]
        faults = speech_faults(reply.say, self.system_prompt.replace(self.task.get("note", "\n\n"), ""), self.agent, earlier,
                               {w.lower() for pair in self.task["memory"].items() for w in pair})
        act = "none" if faults else act_of(reply.say)
        t = Turn(self.task, self.mode, self.system_prompt, self.agent, move, right(self.task, move, self.open), self.profile,
                 reply, earlier, faults, act)
        t.scores = score(t)
        if self.user and not faults:                                    # unfit words are not worth a judge's time
            judged = verdict((yield judge_prompt(t)))
            self.user.unused += not judged
            t.scores = {**t.scores, **judged}
        self.log.append(t)
        self.profile = reply.profile or self.profile
        self.agent = feedback = self.answer(t)
        reward = sum(self.weights[c] * t.scores[c] for c in self.weights)
        info = {"public": {}, "hidden": {"move": move["kind"], "act": act, "faults": faults, "scores": t.scores}}
        return feedback, reward, self.over, False, info

    def answer(self, t: Turn) -> str:
        """What the agent replies; decides which move comes next and whether the call is over."""
        act, kind, named = t.act, t.move["kind"], re.findall(r"\w+", t.reply.say.lower())
        if act == "none":
            self.deaf += 1
            self.over = self.deaf >= 2 or self.task["kind"] != "call"
            sorry = "Sorry, I could not hear you. "
            return "Hello? I hang up now." if self.over else sorry + self.agent.removeprefix(sorry)
        if act == "ask":
            self.open = [c for c in self.open if c == self.task["goal"][0] or c not in named]
        if act == "accept" and kind == "offer":
            self.deal = t.move["n"]
            self.open = [c for c in self.open if c != self.task["goal"][0]]
            self.queue = [m for m in self.queue if m["kind"] != "offer"]
        elif kind == "close" and act == "ask" and self.closes < 2:
            self.closes += 1                                            # there was something else: close again
        else:
            self.queue = self.queue[1:]
        self.over = act == "end" or not self.queue or self.task["kind"] != "call"
        return "Goodbye." if self.over else self.speak(self.rng.choice(REACT[act].split("|")))


def excite(open_: list[str], agent: str, sop: SOP) -> list[str]:
    """The excitation test: a concern the agent's words bring up, and which was not there, joins the open ones."""
    return open_ + [sop.excites] if sop.excites in agent.lower().split() and sop.excites not in open_ else open_


# ---------------------------------------------------------------------------------------------- the teacher

def teacher(env: CallEnv, rng: random.Random, slip: float = 0.0) -> str:
    """A scripted user's turn: the format always right, the strategy only as good as `slip` lets it be.

    Careless, it trusts a claim unread or distrusts it unread, takes what is offered or asks for more, forgets what is open.
    """
    task, move, p = env.task, env.move, env.task["persona"]
    kind, believed, check, plan, knows = move["kind"], move, None, None, True
    if rng.random() < slip * (1 if kind == "claim" else .4):
        if kind == "claim":
            trusting = rng.random() < .8
            believed = {**move, "heard": {k: task["memory"][k] if trusting else "?" for k in move["heard"]}}
            check, knows = f"{list(move['heard'])[-1 if trusting else 0]} sounds {'fine' if trusting else 'odd'}", False
        elif kind == "offer":
            low = move["n"] < task["least"]
            check, plan = ("good enough", f"accept {move['n']}") if low else ("could be more", f"counter {task['goal'][1]}")
        elif kind == "remark":
            check, plan = f"{move['key']} sounds fine", f"confirm {move['key']}"
        elif kind == "close":
            check, plan = "open none", "end"
    r = right(task, believed, env.open)
    intent, check, plan = r.intent, check or r.check, plan or r.plan
    state = {k: max(0, min(10, env.profile.state[k] + r.moves.get(k, 0))) for k in STATES}
    keep = [c for c in env.open if c != task["goal"][0]] if plan.startswith("accept") else \
        [c for c in env.open if c not in plan.split()] if plan.startswith("ask") else env.open
    think = {"intent": intent, "concerns": check, "plan": plan, "state": r.steps,
             "tone": f"{r.tone}, {p.verbosity}, {p.manner}, says {p.phrase}"}
    profile = Dynamic(keep, r.touched, keep[0] if keep else "none", r.topic if plan == r.plan else "stay", plan,
                      r.tone, plan == "end", state)
    earlier = [t.reply.say for t in env.log]
    for _ in range(20):
        say = spoken(task, move, plan, knows, p, rng)
        if say not in earlier:
            break
    return write_reply(think, profile, say, env.mode)


def spoken(task, move, plan: str, knows: bool, p: Persona, rng) -> str:
    """The plan in this person's words; who has not looked the fact up (knows) can only doubt it."""
    act, _, thing = plan.partition(" ")
    key = "case" if move["kind"] == "greet" else "doubt" if act == "challenge" and not knows else act
    noun, fault = task["sop"].case.split()
    if "note" in task:
        body = task["note"].strip()
        body = body[0].lower() + body[1:] if rng.random() < .8 and not body.startswith(("I ", "I'")) else body
        text = (f"{p.phrase}, " if rng.random() < .8 else "") + body + (" Thank you." if p.manner == "polite" else "")
        return text[0].upper() + text[1:]
    text = rng.choice(SAY[key].split("|")).format(o=thing, v=task["memory"].get(thing, ""), s=move.get("said", ""),
                                                  x=noun, f=fault)
    if p.verbosity == "chatty" and rng.random() < .9:
        text += ", " + rng.choice(TAILS.split("|"))
    if p.manner == "polite" and rng.random() < .9:
        text += ", " + rng.choice(["please", "thank you"] if act not in ("accept", "confirm", "end") else ["thank you"])
    if rng.random() < .8:
        text = f"{p.phrase}, {text}"
    return text[0].upper() + text[1:] + ("?" if act == "ask" else ".")


def demonstration(env: CallEnv, rng: random.Random, slip: float, ask=None) -> list[dict]:
    """A call with the teacher as chat messages.  `ask` (prompt -> text) may write the turns; the script replaces failures."""
    first, _ = env.reset()
    talk = [{"role": "system", "content": env.system_prompt}, {"role": "user", "content": first}]
    while True:
        text = teacher(env, rng, slip)
        if ask:
            try:
                theirs = str(ask("\n\n".join([FORMAT, *(m["content"] for m in talk)]))).strip()
                text = theirs if valid(read_reply(theirs, env.mode), env.mode) else text
            except Exception:                                           # a teacher that fails costs its turn, not the run
                pass
        talk.append({"role": "assistant", "content": text})
        feedback, _, over, _, _ = drive(env.turn(text), env.user)
        if over:
            return talk
        talk.append({"role": "user", "content": feedback})


def drive(steps, user=None):
    """Carry a turn's questions to `user` (nobody: None is the answer) and return its five-tuple."""
    try:
        query = next(steps)
        while True:
            query = steps.send(user.answer([query])[0] if user else None)
    except StopIteration as stop:
        return stop.value


# ---------------------------------------------------------------------------------------------- rewards

# Three rules and four rubrics, each a turn -> [0, 1]; the reward is their weighted sum, as in the paper.

def tags(t: Turn) -> float:
    """Rule 1: <think> and <answer>, each once, nothing around them."""
    return float(t.reply.tags)


def length(t: Turn) -> float:
    """Rule 2: at least 12 words of reasoning; above 60 it falls again, for nobody should be paid by the word."""
    n = len(re.findall(r"\w+", t.reply.thought))
    return min(1.0, n / 12) if n <= 60 else max(0.0, 1 - (n - 60) / 30)


def fields(t: Turn) -> float:
    """Rule 3: the profile's eight lines (six policy fields, concerns, states)."""
    return t.reply.fields


def consistency(t: Turn) -> float:
    """Rubric: does it sound like this person?  Length, manner, phrase, and nothing robotic."""
    if t.faults:
        return 0.0
    p, say = t.task["persona"], t.reply.say.lower()
    n = len(say.split())
    fits = n <= 12 if p.verbosity == "brief" else 8 <= n <= 20
    manner = bool(re.search(r"\b(please|thanks?|sorry)\b", say)) == (p.manner == "polite")
    return (fits + manner + (p.phrase in say)) / 3


def reasoning(t: Turn) -> float:
    """Rubric: intent read, the right facts looked up and compared, states moved, policy fields kept, no filler."""
    think, profile, r = t.reply.think, t.reply.profile, t.right
    if not think or len(set(t.reply.thought.split())) < 0.5 * len(t.reply.thought.split()):
        return 0.0
    same = lambda step, wanted: re.findall(r"\w+", think[step]) == re.findall(r"\w+", wanted)
    state = (state_fit(t) + same("state", r.steps)) / 2 if profile else 0.0
    kept = [profile.open == r.open, profile.touched == r.touched, profile.core == r.core, profile.topic == r.topic,
            profile.reply == r.tone, think["tone"].startswith(r.tone)] if profile else [False]
    return .2 * same("intent", r.intent) + .4 * same("concerns", r.check) + .2 * state + .2 * sum(kept) / len(kept)


DENIALS = set("no not never t hardly barely but without nor neither".split())


def carries(content: str, say: str) -> bool:
    """Do the words say all of `content`, in its order, and add no denial, no number and little else?"""
    meant, said, extra = envs.words(content), envs.words(say), []
    for word in said:
        if meant and word == meant[0]:
            meant = meant[1:]
        else:
            extra.append(word)
    return not meant and len(extra) <= 8 and not any(w in DENIALS or w.isdigit() for w in extra)


def state_fit(t: Turn) -> float:
    """Share of the four states that move the way the agent's turn moves them, by 2 at most."""
    step = {k: t.reply.profile.state[k] - t.before.state[k] for k in STATES}
    sign = lambda x: (x > 0) - (x < 0)
    stuck = lambda k: t.before.state[k] in (0, 10) and step[k] == 0      # at the end of the scale
    return sum(abs(step[k]) <= 2 and (sign(step[k]) == sign(t.right.moves.get(k, 0)) or stuck(k)) for k in STATES) / 4


def alignment(t: Turn) -> float:
    """Rubric: the words carry out the plan, about the thing that was planned, and the reasoning planned the same."""
    profile, think, said = t.reply.profile, t.reply.think, re.findall(r"\w+", t.reply.say.lower())
    plan = profile.plan if profile else think["plan"] if think else ""
    if t.faults or not plan:
        return 0.0
    act, _, thing = plan.partition(" ")
    about = {thing, *envs.words(t.task.get("note", "")), t.task["memory"].get(thing, "").lower(),
             str(t.move.get("said", "")).lower()} - {""}
    agree = (not think or think["plan"] == plan) and (not profile or profile.end == (act == "end"))
    return .5 * (act == t.act) + .25 * (not thing or act == "accept" or bool(about & set(said))) + .25 * agree


def names_it(t: Turn) -> bool:
    """Do the words bring what the best act needs here, and no fact beside it?  Who recites the whole memory did not look it up."""
    (_, want, least), must, said = t.task["goal"], t.right.must.lower(), set(re.findall(r"[\w-]+", t.reply.say.lower()))
    if must == "#note":
        return carries(t.task["note"], t.reply.say)
    if must == "#number":
        return any(least <= int(w) <= want for w in said if w.isdecimal())
    others = {v.lower() for v in t.task["memory"].values()} - {v.lower() for v in t.move.get("heard", {}).values()} - {must}
    return (not must or must in said) and not (t.move["kind"] in ("ask", "claim") and others & said)


def strategy(t: Turn) -> float:
    """Rubric: the act is good here, brings the counter-argument, and the state does not go the wrong way.

    A false claim wants to be challenged with the fact, a true one confirmed: refusing everything pays for neither.
    Judged by what is done, not by what is thought, so that users without reasoning are measured alike.
    """
    r, profile = t.right, t.reply.profile
    score = r.acts.get(t.act, 0.0) * (1.0 if names_it(t) else 0.5)
    numbers = [int(x) for x in re.findall(r"\b\d+\b", t.reply.say)]
    if t.move["kind"] == "offer" and t.act == "accept" and numbers and t.move["n"] not in numbers:
        score *= 0.5                                                    # took what was not offered
    if profile and "trust" in r.moves and (profile.state["trust"] - t.before.state["trust"]) * r.moves["trust"] < 0:
        score -= 0.25                                                   # trusts a liar more, or an honest agent less
    return max(0.0, score)


COMPONENTS = {f.__name__: f for f in (tags, length, fields, consistency, reasoning, alignment, strategy)}
WEIGHTS = dict(tags=.25, length=.25, fields=.5, consistency=.5, reasoning=1.0, alignment=.5, strategy=2.0)
RUBRICS = ("consistency", "reasoning", "alignment", "strategy")


def score(t: Turn) -> dict[str, float]:
    return {name: float(f(t)) for name, f in COMPONENTS.items()}


# ---------------------------------------------------------------------------------------------- the judge

def judge_prompt(t: Turn) -> str:
    what = {"consistency": "fits the static profile and sounds like a person",
            "reasoning": "goals, valid state moves, depth, no filler",
            "alignment": "the words carry out the plan",
            "strategy": "traps seen through, true claims accepted, good counter-arguments"}
    return (f"Judge one turn of a simulated caller.\n\n{t.prompt}\n\nThe agent said: {t.agent}\n\nThe caller thought:\n{t.reply.thought}\n"
            f"and wrote:\n{t.reply.profile.text() if t.reply.profile else '(no profile)'}\nand said: {t.reply.say}\n\n"
            "Answer with four lines, a whole number from 0 to 10 each:\n" + "\n".join(f"{k}: ({v})" for k, v in what.items()))


def verdict(text) -> dict[str, float]:
    """A judge's rubrics in [0, 1], if it gave all four once; otherwise none, and the rules' own stand."""
    found = re.findall(r"^\W*(\w+)\W*: *(\d+)\b", str(text), re.M)
    found = [(k, int(n)) for k, n in found if k in RUBRICS and int(n) <= 10]
    return {k: n / 10 for k, n in found} if sorted(k for k, _ in found) == sorted(RUBRICS) else {}


class Judge:
    """Any callable prompt -> text as the judge of a rollout.  It may fail or ramble: then the rules score the turn."""
    slow = True                         # asked on threads, while other calls go on

    def __init__(self, ask):
        self.ask, self.unused = ask, 0  # turns for which it gave no verdict

    def answer(self, prompts: list[str]) -> list[str]:
        out = []
        for prompt in prompts:
            try:
                out.append(str(self.ask(prompt)))
            except Exception:
                out.append("")
        return out


# ---------------------------------------------------------------------------------------------- words

NAMES = ("Maria Lena Omar Yuki Pedro Anna Ivan Noor Chen Aisha Marco Freya Tomas Priya Sven Zoe Hugo Mina Karl Rosa Emil Leila "
         "Jonas Ines")
JOBS = "nurse teacher driver cook painter farmer student baker lawyer plumber writer gardener dentist singer welder clerk"
CITIES = "Turin Oslo Lima Cairo Kyoto Quito Dakar Perth Hanoi Izmir Sofia Delhi Porto Ghent Malmo Cork"
TYPES = "ISTJ ISFJ INFJ INTJ ISTP ISFP INFP INTP ESTP ESFP ENFP ENTP ESTJ ESFJ ENFJ ENTJ"
PHRASES = "honestly look well frankly listen basically actually anyway"
LIVES = ("works nights|saves for a bike|has two children|just moved house|cares for a parent|studies in the evening|"
         "plans a wedding|travels every month|keeps three cats|runs a small shop")

VALUES = {"day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
          "number": [str(n) for n in range(10, 100)],
          "name": NAMES.split(), "thing": "lamp chair tablet kettle jacket mirror carpet guitar camera bicycle radio blanket table "
          "ladder printer heater".split()}
FACTS = {"deadline": "day", "total": "number", "payment": "number", "surname": "name", "contact": "name",
         "item": "thing",
         "extra": "thing", "average": "number", "wait": "number", "notice": "number", "start": "day",
         "promise": "number"}

# domain|desk|primary concern|unit|minor concerns|what excites a new one|five cases, the last held out
DOMAINS = """
delivery|parcel desk|refund|euro|date address|fee|parcel late, order lost, parcel broken, order late, parcel lost
subscription|service line|discount|percent|speed bill|contract|line broken, bill double, plan late, line slow, bill late
hotel|front desk|credit|euro|room parking|deposit|room full, stay cancelled, room double, stay late, room cancelled
recruitment|hiring team|salary|thousand|date office|trial|contract late, interview cancelled, contract lost, interview lost, contract cancelled
insurance|insurance desk|bonus|euro|cover letter|surcharge|claim late, claim lost, policy double, policy cancelled, claim double
rescheduling|booking desk|voucher|euro|seat slot|penalty|flight full, visit cancelled, flight late, visit full, flight cancelled
"""

AGENT = {"greet": "{desk}, what can I do for you?|Hello, this is the {desk}, how can I help?|{desk}, good day, what is it about?",
         "ask": "What is the {k}, please?|Can you tell me the {k}?|Which {k} do you have?",
         "offer": "I can offer you {n} {u}.|What about {n} {u}?|We could do {n} {u} for you.",
         "last": "My last offer is {n} {u}.|I can go up to {n} {u}.|{n} {u} is all I can do.",
         "remark": "By the way, there is a {k} on this.|Please note the {k} as well.|And then there is the {k} of course.",
         "note": "Please tell me.|Go on, please.|What do you say?",
         "close": "Is there anything else?|Can I do anything else for you?|Would that be all?"}
REACT = {"accept": "Great.|Very good.", "reject": "A pity.|I see.", "counter": "That is a lot.|Let me see.",
         "ask": "That is arranged.|I took care of it.",
         "challenge": "Let me note that.|I see.", "confirm": "Good.|Fine.", "inform": "Thank you.|I see."}

# trap -> (the fact it is about, phrasings).  A twin says the same words, and they agree with the caller's memory.
OVERLOAD = ["notice", "start", "total"]
TRAPS = {
    "false urgency": ("deadline",
        "The deadline is {v}, so decide right now.|Say yes today, the deadline is {v}.|Hurry, {v} is the deadline."),
    "hidden costs": ("total",
        "The total is {v}, all fees included.|All in all the total is {v}, shall we go on?|"
        "You only pay {v}, the total."),
    "sunk cost": ("payment",
        "The payment of {v} is lost if you stop now.|You made a payment of {v}, do not waste it.|"
        "With {v} as your payment, why stop?"),
    "false identity": ("surname",
        "Your surname is {v}, so this rule is for you.|The surname here is {v}, let us go on.|"
        "It is {v}, your surname, fine?"),
    "authority": ("contact",
        "Our manager {v} is your contact and wants it so.|Your contact {v} has decided this.|"
        "As {v}, your contact, says, it is final."),
    "bait and switch": ("item",
        "The item is the {v}, we can do that.|We have the {v}, the item you chose.|"
        "Your item is the {v}, nothing better."),
    "foot in the door": ("extra",
        "The extra you took is the {v}, so take more.|You have the {v} as an extra, so add one.|"
        "With the {v} as your extra, why not one more?"),
    "false consensus": ("average",
        "Everybody is happy with {v}, the average.|The average is {v}, nobody gets more.|"
        "Most callers got {v}, the average."),
    "guilt": ("wait",
        "The wait was {v} minutes for me, be fair.|We had a wait of {v} minutes because of you.|"
        "It was {v} minutes, my wait for you."),
    "overload": ("notice",
        "That is {notice} as notice, {start} as start, {total} in total, rule nine, form two, all clear?|"
        "So, {total} in total, {start} as start, {notice} as notice, and so on, fine?"),
    "false promise": ("promise",
        "You know our promise was {v} and said yes.|Last week the promise was {v}, remember?|"
        "We kept to {v}, the promise."),
}

# act -> phrasings.  {o} the plan's object, {v} what memory says of it, {s} what the agent said, {x} {f} the case
SAY = {"case": "my {x} is {f}, I want a {o}|the {x} is {f}, it is about the {o}|I call about a {o}, the {x} is {f}",
       "inform": "the {o} is {v}|it is {v}, the {o}|my {o} is {v}",
       "confirm": "yes, the {o} is right|that {o} is correct|yes, I know that {o}",
       "challenge": "no, the {o} is {v}, not {s}|that is wrong, the {o} is {v}|{s} is not true, my {o} is {v}",
       "doubt": "I doubt that {o}|that {o} sounds odd to me|prove that {o} first",
       "accept": "{o} is fine, I accept|agreed, {o} it is|deal, I take {o}",
       "counter": "that is too low, I want {o}|make it {o} and we agree|no, I need {o}",
       "ask": "what about the {o}|how is it with the {o}|and the {o}, what is it",
       "end": "that is all, goodbye|goodbye then|bye, that is all"}
TAILS = "it has been a long week|my family waits for news|I have called before|I hope you see that|this takes a lot of time"


# ---------------------------------------------------------------------------------------------- what a call gave away and reached

def ledger(env: CallEnv) -> list[dict]:
    """What the user gave away: each fact or invented value, in which turn, whether asked for, whether known.

    Not counted: what the agent said itself, the caller's own name, age, case and goal, and what was not heard.
    """
    out, kinds, task = [], {v.lower(): kind for kind, values in VALUES.items() for v in values}, env.task
    owners = {v.lower(): k for k, v in task["memory"].items()}
    own = {task["persona"].name.lower(), str(task["persona"].age), *map(str, task["goal"][1:]), *task["sop"].case.split()}
    for i, t in enumerate(env.log):
        kind, about = t.move["kind"], {t.move.get("key"), *t.move.get("heard", ())}
        echo = own | set(re.findall(r"\w+", t.agent.lower()))
        for word in dict.fromkeys(re.findall(r"\w+", t.reply.say.lower())) if t.act != "none" else ():
            asked = owners.get(word) in about and kind in ("ask", "claim")
            if word in owners and (asked or word not in own):
                out.append(dict(turn=i, fact=owners[word], value=word, asked=asked, known=True))
            elif word in kinds and word not in echo and not (kind == "offer" and word.isdecimal()):     # a price, not a fact
                out.append(dict(turn=i, fact=kinds[word], value=word, asked=kind == "ask", known=False))
    return out


def goal_reached(env: CallEnv) -> float:
    """0.6 the deal (none is right if all offers were heard and none was enough), 0.2 the minor concerns, 0.2 a proper ending."""
    task = env.task
    if env.deal is None:
        deal = float(task["best"] < task["least"] and not any(m["kind"] == "offer" for m in env.queue))
    else:
        above = (env.deal - task["least"]) / (task["best"] - task["least"]) if task["best"] > task["least"] else 1
        deal = 0.5 + 0.5 * above if env.deal >= task["least"] else 0.0
    minor = task["open"][1:]
    raised = sum(c not in env.open for c in minor) / len(minor) if minor else 1.0
    last = env.log[-1]
    return 0.6 * deal + 0.2 * raised + 0.2 * (last.act == "end" and last.right.plan == "end")


# ---------------------------------------------------------------------------------------------- evaluation

def percent(values) -> list[float]:
    """[mean, half width of the 95 % interval] of shares in [0, 1], times 100."""
    values = list(values)
    return [100 * x for x in rewards.mean_ci(values)] if values else [math.nan, math.nan]


def record(env: CallEnv) -> dict:
    """What an evaluation keeps of a call, as JSON."""
    return {"kind": env.task["kind"], "trap": env.task["trap"], "goal": goal_reached(env), "told": ledger(env), "turns": [
        {"scores": t.scores, "faults": t.faults, "valid": valid(t.reply, t.mode), "say": t.reply.say.lower(), "act": t.act,
         "end": t.right.plan == "end", "haggling": t.move["kind"] in ("claim", "offer")} for t in env.log]}


def session_table(calls: list[dict]) -> dict:
    """Role, Interaction, Goal as the paper names them; Total = .5 Role + .25 Interaction + .25 Goal."""
    role = [np.mean([t["scores"]["consistency"] for t in e["turns"]]) for e in calls]
    manners = [np.mean([t["scores"]["strategy"] for t in e["turns"] if not t["haggling"]] or [0.0]) for e in calls]
    goal = [e["goal"] for e in calls]
    total = [.5 * r + .25 * i + .25 * g for r, i, g in zip(role, manners, goal)]
    return {"Role": percent(role), "Interaction": percent(manners), "Goal": percent(goal), "Total": percent(total)}


def adversarial_table(traps: list[dict], twins: list[dict]) -> dict:
    """The first (and only) turn of each, under the paper's names: Robotic, any fault (a flag a sample, lower is better); CoT,
    `reasoning`; Persona, `consistency`; Consistency, of words and plan, `alignment`."""
    first = lambda e: e["turns"][0]["scores"]
    get = lambda name: percent(first(e)[name] for e in traps)
    each = {trap: percent(first(e)["strategy"] for e in traps if e["trap"] == trap) for trap in TRAPS}
    return {"Robotic": percent(float(bool(e["turns"][0]["faults"])) for e in traps), "CoT": get("reasoning"),
            "Strategy": get("strategy"), "Persona": get("consistency"), "Consistency": get("alignment"),
            "Twins": percent(first(e)["strategy"] for e in twins), "traps": each}


def distinct_bigrams(calls: list[dict]) -> list[float]:
    """Share of the word pairs that are not repetitions, in percent; the interval is a jackknife's over the calls."""
    pairs = [[g for t in e["turns"] for g in zip(t["say"].split(), t["say"].split()[1:])] for e in calls]
    everywhere, total = Counter(g for call in pairs for g in call), sum(map(len, pairs))
    without = [(len(everywhere) - sum(everywhere[g] == n for g, n in Counter(call).items())) / max(total - len(call), 1) for call in pairs]
    half = 1.96 * math.sqrt((len(calls) - 1) * np.var(without)) if len(calls) > 1 else math.nan
    return [100 * len(everywhere) / max(total, 1), 100 * half]


def fidelity(calls: list[dict]) -> dict:
    """How much it talks like a person, tells like a person and ends like a person."""
    turns = [t for e in calls for t in e["turns"]]
    count = [len(t["say"].split()) for t in turns]
    facts = [(row, len(e["turns"])) for e in calls for row in e["told"] if row["known"]]
    ended, due = [t for t in turns if t["act"] == "end"], [t for t in turns if t["end"]]
    return {"valid turns": percent(float(t["valid"]) for t in turns),
            "distinct bigrams": distinct_bigrams(calls),
            "words a turn": list(rewards.mean_ci(count)),
            "short turns (< 5 words)": percent(float(n < 5) for n in count),
            "polite turns": percent(float(bool(re.search(r"\b(please|thank|sorry)", t["say"]))) for t in turns),
            "facts told in the first half": percent(float(row["turn"] < n / 2) for row, n in facts),
            "facts told unasked": percent(float(not row["asked"]) for row, _ in facts),
            "persona consistency": percent(t["scores"]["consistency"] for t in turns),
            "ending precision": percent(float(t["end"]) for t in ended),
            "ending recall": percent(float(t["act"] == "end") for t in due),
            "leaks": percent(float("leak" in t["faults"]) for t in turns),
            "inventions": percent(float(any(r["turn"] == i and not r["known"] for r in e["told"]))
                                  for e in calls for i in range(len(e["turns"])))}


def evaluate(s: Settings, policy, part: int = 1) -> dict:
    """Held-out SOPs and facts.  policy: a grpo.Engine, or a slip for the teacher; part: 8 is for an eighth of the tasks.
    Touches no other random state."""
    sops, personas = tables(s)
    traps, calls = 11 * max(1, s.eval_traps // part), max(1, s.eval_calls // part)
    kinds = [(kind, i) for kind, n in (("trap", traps), ("twin", traps), ("call", calls))
             for i in range(n)][grpo.rank()::grpo.world()]
    judge = judge_of(s.eval_judge)
    todo = [CallEnv(make_task(kind, i, "test", sops, personas), s.mode, judge=judge, long=s.long) for kind, i in kinds]
    if isinstance(policy, grpo.Engine):
        seeds = [(s.seed, 1, zlib.crc32(env.task["id"].encode())) for env in todo]
        grpo.rollout(policy, todo, seeds=seeds, temperature=s.eval_temperature or 1.0, greedy=s.eval_temperature == 0,
                     max_new_tokens=s.max_new_tokens)
    else:
        for env in todo:
            demonstration(env, random.Random(f"{s.seed}/eval/{env.task['id']}"), policy)
    played = [e for theirs in grpo.gather([record(env) for env in todo if env.log]) for e in theirs]
    [unused] = grpo.summed([judge.unused if judge else 0])
    by = {k: [e for e in played if e["kind"] == k] for k in ("trap", "twin", "call")}
    return {"session": session_table(by["call"]), "adversarial": adversarial_table(by["trap"], by["twin"]),
            "fidelity": fidelity(by["call"]), "mode": s.mode,
            "judge": (s.eval_judge or "rules") + f" (rules for {unused:.0f} turns: it failed or rambled)" * bool(unused)}


def print_tables(evals: dict) -> None:
    """Three tables, a column a policy."""
    titles = {"session": "whole calls, held-out SOPs and facts", "fidelity": "fidelity of whole calls",
              "adversarial": "one turn against a trap, held-out too"}
    for part in ("session", "adversarial", "fidelity"):
        print(f"\n{titles[part]:44}" + "".join(f"{name[:15]:>16}" for name in evals))
        for row in next(iter(evals.values()))[part]:
            if row != "traps":
                print(f"  {row:42}" + "".join("{:10.1f} ± {:3.1f}".format(*e[part][row]) for e in evals.values()))
        if part == "adversarial":
            for trap in TRAPS:
                print(f"    strategy: {trap:30}" + "".join("{:10.1f} ± {:3.1f}".format(*e[part]["traps"][trap]) for e in evals.values()))
    print("(± is half a 95 % interval; Robotic: lower is better; Twins: strategy where the same words are true; judged by "
          f"{', '.join(dict.fromkeys(e['judge'] for e in evals.values()))})")


# ---------------------------------------------------------------------------------------------- the user in the gyms

class UserLM:
    """A trained user in the user's chair of a gym (envs.py).  The rules understand, and so decide what is rewarded; the
    model speaks, in the episode's persona.  Words that lose or add content are replaced by scripted ones and counted."""
    slow = False                        # one batch for all conversations that wait

    def __init__(self, model, tokenizer, mode: str = "full", rows: int = 32, temperature: float = 0.7, max_new_tokens: int = 160,
                 noise: float = 0.0, vague: float = 0.0, long: bool = False):
        self.rules, self.mode, self.long = envs.ScriptedUser(noise, vague), mode, long
        self.engine = grpo.Engine(model, tokenizer, rows=rows, max_len=1024)
        self.temperature, self.limit = temperature, max_new_tokens
        self.spoken = self.replaced = 0
        self.people = weakref.WeakKeyDictionary()                       # an episode's generator -> who speaks in it

    def answer(self, queries: list) -> list:
        replies = self.rules.answer(queries)                            # also what is said if the model loses the content
        todo = [i for i, q in enumerate(queries) if q.kind == "speak"]
        notes = []
        for i in todo:
            options = queries[i].say.split("|")
            # the phrasing the rules chose, or, where they shrug, their shrug
            note = next((o for o in options if carries(o, replies[i])), replies[i])
            rng = queries[i].rng
            if rng not in self.people:
                self.people[rng] = gym_persona(queries[i])
            notes.append(CallEnv(note_task(note, self.people[rng], rng.getrandbits(32)), self.mode, long=self.long))
        talks = grpo.rollout(self.engine, notes, seeds=[(zlib.crc32(e.task["id"].encode()),) for e in notes],
                             temperature=self.temperature, max_new_tokens=self.limit) if notes else []
        for i, env, talk in zip(todo, notes, talks):
            turn = env.log[0] if env.log else None
            good = turn and valid(turn.reply, self.mode) and not turn.faults and carries(env.task["note"], turn.reply.say)
            replies[i] = turn.reply.say if good else replies[i]
            self.spoken, self.replaced = self.spoken + 1, self.replaced + (not good)
        return replies


def load_user(path: str, noise: float = 0.0, vague: float = 0.0, device=None) -> UserLM:
    """The user of a run folder (or checkpoint) of this file, to speak in the gyms."""
    model, tokenizer, s = load(Settings(model=path, device=device or ""))
    return UserLM(model, tokenizer, s.mode, noise=noise, vague=vague, long=s.long)


def note_task(text: str, persona: Persona, index) -> dict:
    """A single turn in which the user has just one thing to say: how a gym's user speaks."""
    return dict(id=f"note-{index}", kind="note", sop=all_sops()[0], persona=persona, memory={}, least=0, best=0,
                goal=("answer", 0, 0), open=["answer"], state=dict.fromkeys(STATES, 5), trap="", note=text, moves=[dict(kind="note")])


def gym_persona(q) -> Persona:
    """The gyms' one-word personas as static profiles; the rest is drawn from the episode's generator."""
    change = {"plain": {}, "polite": dict(manner="polite"), "chatty": dict(verbosity="chatty", rate="fast"),
              "impatient": dict(patience="hasty", manner="blunt"), "unsure": dict(phrase="well", rate="slow")}
    base = dict(verbosity="brief", manner="blunt", patience="patient")
    return dataclasses.replace(make_persona(random.Random(q.rng.getrandbits(32))),
                               **{**base, **change.get(q.persona, {})})


class Recorder(envs.ScriptedUser):
    """A scripted user that remembers what the gyms made it say: practice lines for UserLM."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def answer(self, queries):
        self.lines += [o.strip() for q in queries if q.kind == "speak" for o in q.say.split("|")
                       if 0 < len(o.split()) <= 16 and "\n" not in o]
        return super().answer(queries)


@lru_cache
def gym_lines(episodes: int = 40) -> list[str]:
    recorder = Recorder()
    for gym in envs.GYMS:
        for i in range(episodes):
            envs.play(envs.make(gym, i, "train", user=recorder), envs.expert)
    return sorted(set(recorder.lines))


# ---------------------------------------------------------------------------------------------- files and servers

# fields that must come back from the text format, or be found in what is said
PLAIN = {**dict.fromkeys(("concern", "excites", "phrase"), "[a-z]+"), "minor": "[a-z]+( [a-z]+)*", "case": "[a-z]+ [a-z]+",
         "steps": "[ACOX]*E"}


def load_table(path: str, kind: type) -> list:
    """SOPs or personas from a JSON list of objects with the fields of `kind`; one clear line if anything is wrong."""
    try:
        rows = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a JSON list of objects")
    out = []
    for i, row in enumerate(rows):
        for f in dataclasses.fields(kind):
            value, fits = row.get(f.name) if isinstance(row, dict) else None, PLAIN.get(f.name, r"[\w'-]+( [\w'-]+)*")
            if not (type(value) is int and 0 <= value <= 120 if f.type == "int" else type(value) is str and re.fullmatch(fits, value)):
                raise ValueError(f"{path}: entry {i}: field {f.name!r} must be "
                                 f"{'a whole number up to 120' if f.type == 'int' else 'plain words, ' + fits}, not {value!r:.40}")
        if unknown := set(row) - {f.name for f in dataclasses.fields(kind)}:
            raise ValueError(f"{path}: entry {i}: unknown field {sorted(unknown)[0]!r}")
        try:
            out.append(checked(kind(**row)) if kind is Persona else kind(**row))
        except ValueError as error:
            raise ValueError(f"{path}: entry {i}: {error}") from None
    return out


def tables(s: Settings) -> tuple:
    return load_table(s.sops, SOP) if s.sops else None, load_table(s.personas, Persona) if s.personas else None


@lru_cache                                                              # one client, not one a demonstration
def remote(address: str):
    """A language model behind an OpenAI-compatible server as a callable prompt -> text."""
    from huggingface_hub import InferenceClient
    model, _, url = address.partition("@")
    client = InferenceClient(base_url=url, timeout=60) if url else InferenceClient(model, timeout=60)
    return lambda prompt: client.chat_completion([{"role": "user", "content": prompt}], model=model,
                                                 max_tokens=600).choices[0].message.content


def judge_of(address: str):
    return Judge(remote(address)) if address else None


# ---------------------------------------------------------------------------------------------- training

@dataclass
class Settings:
    name: str = ""                  # run folder under runs/; empty: the command's name, numbered if it exists
    resume: bool = False            # go on with runs/<name> where its last checkpoint left it
    seed: int = 0
    workers: int = 2                # processes that share the work (the numbers depend on it); torchrun sets its own
    model: str = "tiny"             # "tiny" (made here, from scratch), or a checkpoint folder or name; "teacher" (eval)
    device: str = ""                # empty: cuda if there is one, else cpu
    mode: str = "full"              # full | no_reasoning | static (no dynamic profile)
    baselines: str = "no_reasoning,static"      # demo: modes that get the same SFT, for comparison
    long: bool = False              # explain the format in the prompt: for models that were not trained on it
    personas: str = ""              # a JSON file of personas; empty: drawn from the tables here
    sops: str = ""                  # a JSON file of SOPs
    judge: str = ""                 # training judge, "model" or "model@http://server/v1"; empty: the rules
    eval_judge: str = ""            # evaluation judge: never the training judge
    teacher: str = ""               # a language model as the teacher, in the same form
    micro_tokens: int = 2048        # padded tokens per forward pass in training: 2048 suits a CPU, 16384 a GPU
    # the tiny model
    vocab_size: int = 2048
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mimetic: bool = True            # without it, heads that look a fact up took three times the drills
    # SFT on the scripted teacher; every demonstration is a new task
    slip: float = 0.5               # how often the teacher does not check a claim
    sft_steps: int = 800
    sft_demos: int = 8              # demonstrations per optimiser step, the same ones in every mode
    sft_lr: float = 6e-3            # for the tiny model; a real checkpoint wants 1e-5
    muon: float = 2.5               # the tiny model's matrices learn by Muon, at this multiple of sft_lr; 0: AdamW
    reading: float = 0.31           # share of the SFT steps in which a tiny model only reads drills
    drills: int = 16                # short ones per optimiser step; half of it in a prompt, an eighth beside demonstrations
    notes: float = 0.0              # share of them that practise saying a gym's lines: 0.5 makes a user for the gyms
    # GRPO
    steps: int = 12
    tasks: int = 16                 # per step
    calls: float = 0.25             # share of whole calls; the rest are single turns, two of three with a claim
    group: int = 8
    lr: float = 2.5e-4              # for the tiny model; a real checkpoint wants 1e-6
    rl_muon: float = 10.0           # as in userrl.py, for models below ten million parameters
    gain: float = 300.0
    temperature: float = 1.0
    mix: str = "sum"                # sum (the paper) | per_component: each reward normalised in its group first
    drop: str = ""                  # reward components to leave out: "strategy,reasoning"
    clip_high: float = 0.2
    # generation, evaluation
    rows: int = 64
    context: int = 2048
    max_new_tokens: int = 160
    eval_traps: int = 15            # per trap type, and as many twins
    eval_calls: int = 48
    eval_temperature: float = 0.7
    index: int = 0                  # profile, chat: which scenario
    save_every: int = 50
    sample_every: int = 10

    def check(self) -> None:
        for key, allowed in {"mode": MODES, "mix": ("sum", "per_component")}.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"--{key} is one of {', '.join(allowed)}, not {getattr(self, key)!r}")
        for key, allowed in {"baselines": MODES, "drop": COMPONENTS}.items():
            if unknown := set(getattr(self, key).split(",")) - {*allowed, ""}:
                raise ValueError(f"--{key}: some of {', '.join(allowed)}, not {unknown.pop()!r}")
        least = {"group": 2, "workers": 1, "temperature": 1e-3, "eval_temperature": 0, "sft_demos": 1, "tasks": 1, "rows": 1,
                 "context": 64, "max_new_tokens": 2, "vocab_size": 300, "save_every": 1, "sample_every": 1, "eval_traps": 1,
                 "eval_calls": 1, "layers": 1}
        userrl.check_ranges(self, least)
        if self.slip > 1 or self.calls > 1 or self.notes > 1 or self.reading >= 1:
            raise ValueError("--slip, --calls, --notes and --reading are shares")
        if not weights_of(self):
            raise ValueError("--drop leaves no reward")
        if self.judge and self.judge == self.eval_judge:
            raise ValueError("--eval_judge must not be the judge used in training")
        userrl.check_device(self.device)
        tables(self)


LESSONS = "call trap twin other trap twin other other note".split()      # what is demonstrated, each twice: two processes
                                                                        # have the same to do and do not wait for each other


def example(s: Settings, number: int, whole: bool = True) -> list[dict]:
    """One demonstration of the teacher as chat messages; whole calls only if asked for."""
    (sops, personas), ask = tables(s), remote(s.teacher) if s.teacher else None
    rng, kind = random.Random(f"{s.seed}/demo/{number}"), LESSONS[number // 2 % len(LESSONS)]
    kind = "note" if random.Random(f"{s.seed}/note/{number // 2}").random() < s.notes else kind
    kind = "other" if kind == "call" and not whole else kind
    task = note_task(rng.choice(gym_lines()), make_persona(rng), number) if kind == "note" else \
        make_task(kind, number, "train", sops, personas)
    return demonstration(CallEnv(task, s.mode, long=s.long), rng, s.slip, ask)


def reading_steps(s: Settings) -> int:
    """The SFT steps at the beginning in which a model made from scratch only reads drills."""
    return int(s.reading * s.sft_steps) if s.model == "tiny" else 0


def lesson(s: Settings, tokenizer, step: int) -> list:
    """This process's trajectories of an SFT step.

    A model made from scratch begins with drills, short ones first; then come single turns, whole calls in the second half.
    """
    tiny, last, share = s.model == "tiny", reading_steps(s), slice(grpo.rank(), None, grpo.world())
    prompted = step >= 0.6 * last
    drills = range(s.drills // 8 if step > last else s.drills // 2 if prompted else s.drills)[share] if tiny else []
    batch = []
    for i in drills:
        rng = random.Random(f"{s.seed}/note/{step}/{i}")
        line = rng.choice(gym_lines()) if rng.random() < s.notes else ""
        batch.append(drill(tokenizer, random.Random(f"{s.seed}/drill/{step}/{i}"), prompted, line))
    if step > last:
        whole = not tiny or step - last > 0.5 * (s.sft_steps - last)
        demos = range(step * s.sft_demos, (step + 1) * s.sft_demos)[share]
        batch += [grpo.demo_trajectory(tokenizer, example(s, number, whole)) for number in demos]
    return batch


def drill(tokenizer, rng: random.Random, prompted: bool, line: str = "") -> grpo.Trajectory:
    """What a model made from scratch reads before it imitates, and beside it; only what can be known is trained.

    Facts are listed, looked up again and again, and compared with what is heard.  Short lists first: there heads that find
    "what came after this word" appear within 100 to 150 steps (without the mimetic start not in 500); some 50 steps in whole
    prompts (prompted) then teach them to find it there.  Any word is any fact's value (never a held-out pair), or it would be
    guessed from the fact's name.  Three in ten short drills say a row of words again.  With a line, it is only said again.
    """
    out = grpo.Trajectory(status="done", turn_rewards=[0.0], infos=[{}])
    add = lambda text, trained=0: out.extend(list(grpo.encode(tokenizer, text)), int(trained), turn=0)
    kinds, claims = sorted(VALUES), []

    def value(key, other_than=None):
        while True:
            kind = rng.choice(kinds)
            word = rng.choice(VALUES[kind])
            if word != other_than and not (kind == FACTS[key] and held_out(key, word)):
                return word

    def heard(key):
        return memory[key] if rng.random() < .5 else value(key, memory[key])
    def show(env):
        first, _ = env.reset()
        out.extend(grpo.message_ids(tokenizer, "system", env.system_prompt) + grpo.message_ids(tokenizer, "user", first) +
                   grpo.reply_ids(tokenizer), 0)
    if line:
        show(CallEnv(note_task(line, make_persona(rng), 0))) if prompted else out.extend([tokenizer.pad_token_id], 0)
        for again in range(4):
            add(f" {line}", prompted or again)
            add("\n")
        return out
    if prompted:
        task = make_task("trap", rng.getrandbits(30), "train")
        memory = {k: value(k) for k in task["memory"]}
        [claim] = task["moves"]
        claim = {**claim, "heard": {k: heard(k) for k in claim["heard"]}}
        show(CallEnv({**task, "memory": memory, "moves": [{**claim, "said": claim["heard"][claim["key"]]}]}))
        claims = [claim["heard"]]
    else:
        out.extend([tokenizer.pad_token_id], 0)                         # gives the first token a predecessor
        if rng.random() < 0.3:
            row = rng.sample([*FACTS, *(w for kind in kinds for w in VALUES[kind])], rng.randint(4, 16))
            for again, words in enumerate((row, row, row[rng.randrange(len(row)):])):
                for word in words:
                    add(f" {word}", again)
            return out
        memory = {k: value(k) for k in rng.sample(list(FACTS), rng.randint(2, 5))}
        add("memory: " + ", ".join(f"{k} {v}" for k, v in memory.items()) + "\n")
    for key in rng.choices(list(memory), k=8):
        add(f" {key}")
        add(f" {memory[key]}", 1)
        add(",")
    if prompted:
        add(" says")
        add(f" {task['persona'].phrase}", 1)
    for said in claims + [{k: heard(k) for k in rng.sample(list(memory), min(n, len(memory)))} for n in (1, 1, 3)]:
        if said not in claims:
            add("\nNow " + ", ".join(rng.sample([f"{v} {rng.choice(['as', 'in'])} {k}" for k, v in said.items()], len(said))))
        for i, (k, v) in enumerate(said.items()):
            add(f", memory {k}" if i else f"\nconcerns: memory {k}")
            add(f" {memory[k]}", 1)
            add(", heard")
            add(f" {v}", 1)
            add(" agrees" if v == memory[k] else " differs", 1)
            if v != memory[k]:
                for piece in re.split(r"( \{[ovs]\})", "\nsay: " + rng.choice(SAY["challenge"].split("|"))):
                    add(piece.format(o=k, v=memory[k], s=v), "{" in piece)
                break
    return out


def weights_of(s: Settings) -> dict[str, float]:
    return {c: w for c, w in WEIGHTS.items() if c not in s.drop.split(",")}


def collect(s: Settings, engine, step: int, times: dict):
    """This process's rollouts of a step: (trajectories, advantages, environments); tasks are dealt out whole."""
    weights = weights_of(s)
    (sops, personas), judge, todo, groups = tables(s), judge_of(s.judge), [], []
    for i in range(s.tasks)[grpo.rank()::grpo.world()]:
        kind = "call" if i < round(s.calls * s.tasks) else ("trap", "twin", "other")[i % 3]
        number = 10**6 * (1 + s.seed) + (step - 1) * s.tasks + i             # after all that was demonstrated
        task = make_task(kind, number, "train", sops, personas)
        todo += [CallEnv(task, s.mode, weights, judge, s.long) for _ in range(s.group)]
        groups += [i] * s.group
    talks = grpo.rollout(engine, todo, groups=groups, temperature=s.temperature, max_new_tokens=s.max_new_tokens, clock=times,
                         seeds=[(s.seed, 3, step, g, i % s.group) for i, g in enumerate(groups)])
    played = [(t, e) for t, e in zip(talks, todo) if t.turn_rewards and t.status != "user_error"]
    talks, todo = [t for t, _ in played], [e for _, e in played]
    groups, turn_rewards = [t.group for t in talks], [t.turn_rewards for t in talks]
    if s.mix == "per_component":
        means = {c: [float(np.mean([t.scores[c] for t in e.log])) for e in todo] for c in weights}
        z = rewards.group_advantages(rewards.mix_rewards(means, weights, groups, "per_component"), groups)
        return talks, [[a] * len(r) for a, r in zip(z, turn_rewards)], todo
    return talks, rewards.turn_advantages(turn_rewards, [t.tokens for t in talks], groups, "naive", "mean", "shift",
                                          normalize="center"), todo


def train_rl(run: userrl.Run, model, tokenizer, optimizer, first: int, engine) -> None:
    """Multi-reward GRPO; prints every component, and the strategy on traps and twins apart."""
    s, start = run.s, time.time()
    for step in range(first + 1, s.steps + 1):
        began, times = time.time(), {}
        talks, advantages, played = collect(s, engine, step, times)
        rolled = time.time() - began
        m = grpo.grpo_step(model, optimizer, talks, advantages, lr=grpo.lr_schedule(step - 1, s.steps, s.lr),
                           temperature=s.temperature, clip_high=s.clip_high, micro_tokens=s.micro_tokens)
        mine = [(env.task["kind"], t.scores) for env in played for t in env.log]
        every = [x for part in grpo.gather(mine) for x in part]
        mean = lambda name, kind="": float(np.mean([x[name] for k, x in every if kind in k] or [0.0]))
        part = {c: mean(c) for c in COMPONENTS}
        row = {"phase": "rl", "step": step, "reward": sum(w * part[c] for c, w in weights_of(s).items()),
               **part, "traps": mean("strategy", "trap"), "twins": mean("strategy", "twin"), **m}
        run.log("metrics.jsonl", row)
        gb = userrl.peak_gb()
        run.log("times.jsonl", {"phase": "rl", "step": step, "seconds": time.time() - began, "rollout": rolled, "gb": gb, **times})
        left = (time.time() - start) / (step - first) * (s.steps - step)
        print(f"rl {step:4d}/{s.steps} | reward {row['reward']:5.3f} (" + " ".join(f"{c[:5]} {x:4.2f}" for c, x in part.items()) +
              f") traps {row['traps']:4.2f} twins {row['twins']:4.2f} | kl {m['kl']:7.1e} grad {m['grad_norm']:4.2f} "
              f"ent {m['entropy']:4.2f} | {time.time() - began:4.1f} s | {userrl.clock(left)} left", flush=True)
        if talks and (step % s.sample_every == 0 or step == 1):
            i = step % len(talks)
            run.log("samples.jsonl", {"phase": "rl", "step": step, "messages": talks[i].messages, "rewards": talks[i].turn_rewards,
                                      "advantages": advantages[i], "scores": [t.scores for t in played[i].log]})
            print(f"   | agent {played[i].log[0].agent}\n   | user  {played[i].log[0].reply.say}", flush=True)
        run.finish_step(step, s.steps, "rl", model, tokenizer, optimizer)


def measure(run: userrl.Run, label: str, policy) -> None:
    e = run.evaluate(label, lambda: evaluate(run.s, policy, 8 if label == "base" else 1))      # it rambles to every limit
    print(f"-- {label}: valid {e['fidelity']['valid turns'][0]:.1f} %, strategy on traps {e['adversarial']['Strategy'][0]:.1f}, on twins "
          f"{e['adversarial']['Twins'][0]:.1f}, session total {e['session']['Total'][0]:.1f}", flush=True)


def learn(run: userrl.Run, phases: tuple[str, ...], begin: Path | None = None) -> None:
    """Run the phases ("sft", "rl") one after the other, evaluating before and after; go on from a checkpoint if asked.
    A run that has no checkpoint yet goes on from `begin`, if it exists."""
    s = run.s

    def texts():
        return [m["content"] for number in range(1800) for m in example(dataclasses.replace(s, mode="full", teacher=""), number)]
    model, tokenizer, optimizer = userrl.first_policy(run, texts, begin)
    engine = grpo.Engine(model, tokenizer, rows=s.rows, max_len=s.context)
    if not optimizer:
        measure(run, "base" if "sft" in phases else "start", engine)

    def sft(optimizer, first):
        def draw(step, number):
            if s.model == "tiny" and step == reading_steps(s) + 1 and run.writes:      # where the baselines begin
                grpo.save_checkpoint(run.path / "read", model, tokenizer, optimizer, {"phase": "sft", "step": step - 1})
            return lesson(s, tokenizer, step), number
        userrl.train_sft(run, model, tokenizer, optimizer, first, draw, hold=reading_steps(s) / (s.sft_steps or 1))
    userrl.run_phases(run, phases, model, optimizer, tell=lambda label: measure(run, label, engine), teach={
        "sft": sft, "rl": lambda optimizer, first: train_rl(run, model, tokenizer, optimizer, first, engine)})


# ---------------------------------------------------------------------------------------------- commands

def start(s: Settings, command: str, phases: tuple[str, ...], baselines=()) -> None:
    """One policy in runs/<name>, and a baseline in a folder there for each other mode; prints all tables side by side."""
    began = time.time()
    userrl.with_workers(s, command, __file__)
    run = userrl.Run(s, command)
    print(f"run folder {run.path}", flush=True)
    evals = {}
    try:
        learn(run, phases)
        for mode in baselines:
            print(f"-- the same, {mode.replace('_', ' ')}", flush=True)
            again = run.s.resume and (run.path / mode / "config.json").exists()
            part = userrl.Run(dataclasses.replace(run.s, name=run.path.name, mode=mode, resume=again), command, mode)
            learn(part, ("sft",), run.path / "read")
            evals[mode.replace("_", " ")] = part.evals["SFT"]
        measure(run, "teacher", s.slip)
    except userrl.Stop:
        print(f"stopped; go on with\n    python userlm_r1.py {command} --name={run.path.name} --resume=True")
        raise
    print_tables({**{k: v for k, v in run.evals.items() if k != "teacher"}, **evals, "teacher": run.evals["teacher"]})
    print(f"{userrl.clock(time.time() - began)} minutes, {userrl.peak_gb():.2f} GB at most; everything is in {run.path}/\n"
          f"talk to it:  python userlm_r1.py chat --model={run.path}/checkpoint")


def demo(s: Settings) -> None:
    """SFT and RL, and beside them the same SFT in the other modes."""
    start(s, "demo", ("sft", "rl"), [mode for mode in s.baselines.split(",") if mode])


def sft(s: Settings) -> None:
    start(s, "sft", ("sft",))


def train(s: Settings) -> None:
    if s.model == "tiny" and not s.resume:
        raise ValueError("train needs --model=<checkpoint folder>; the demo and sft make one")
    start(as_trained(s), "train", ("rl",))


def as_trained(s: Settings) -> Settings:
    """The settings with the checkpoint of a run folder, if --model is one, and the format that it was trained in."""
    folder = Path(s.model) / "checkpoint" if (Path(s.model) / "checkpoint").is_dir() else Path(s.model)
    try:
        saved = json.loads((folder.parent / "config.json").read_text())
        return dataclasses.replace(s, model=str(folder), mode=saved["mode"], long=saved["long"])
    except (OSError, ValueError, KeyError, TypeError):                  # not a run of ours
        return dataclasses.replace(s, model=str(folder))


def load(s: Settings):
    """(model, tokenizer, settings as trained)."""
    s = as_trained(s)
    return *grpo.load_policy(s.model, s.device or None), s


def eval_(s: Settings) -> None:
    if s.model == "tiny":
        raise ValueError("eval needs --model=<checkpoint folder> (or --model=teacher)")
    policy = s.slip
    if s.model != "teacher":
        model, tokenizer, s = load(s)
        policy = grpo.Engine(model, tokenizer, rows=s.rows, max_len=s.context)
    userrl.with_workers(s, "eval", __file__)
    run = userrl.Run(s, "eval")
    measure(run, Path(s.model).name, policy)
    print_tables(run.evals)


class Desk:
    """A person on the agent's chair, as the environment of the user; "?" shows what the user thinks."""
    user = None

    def __init__(self, env: CallEnv):
        self.env = env

    def reset(self):
        self.env.reset()
        self.system_prompt = self.env.system_prompt
        return input("agent  ") or self.env.agent, {}

    def turn(self, text: str):
        reply = read_reply(text, self.env.mode)
        print(f"user   {reply.say or '(nothing that can be heard)'}")
        ended = bool(reply.profile and reply.profile.end)
        while (said := input("(it hung up) " if ended else "agent  ")).strip() == "?":
            print(text)
        return said, 0.0, ended or not said, False, {}
        yield                                                           # a generator, like every env's turn


def chat(s: Settings) -> None:
    """You are the agent.  "?" shows the user's thought and profile, an empty line ends the call."""
    if s.model == "tiny":
        raise ValueError("chat needs --model=<checkpoint folder>")
    model, tokenizer, s = load(s)
    env = CallEnv(make_task("call", s.index, "test", *tables(s)), s.mode, long=s.long)
    print(f"You are the {env.task['sop'].desk}; a caller comes about \"{env.task['sop'].case}\". You might begin: {env.reset() and env.agent}")
    grpo.rollout(grpo.Engine(model, tokenizer, rows=1, max_len=s.context), [Desk(env)], seeds=[(s.seed, s.index)],
                 temperature=s.eval_temperature or 1.0, greedy=s.eval_temperature == 0, max_new_tokens=s.max_new_tokens)


def profile(s: Settings) -> None:
    """A persona, its dynamic profile for an SOP, and a call by the scripted teacher."""
    env = CallEnv(make_task("call", s.index, "train", *tables(s)), s.mode, long=s.long)
    talk = demonstration(env, random.Random(s.seed), s.slip)
    print(talk[0]["content"] + "\n")
    for t in env.log:
        print(f"agent  {t.agent}\n       ({'; '.join(t.reply.thought.splitlines())})\nuser   {t.reply.say}\n"
              f"       act {t.act}, " + ", ".join(f"{c} {x:.2f}" for c, x in t.scores.items() if c in RUBRICS))
    print(f"deal {env.deal} of {env.task['best']}, goal {goal_reached(env):.2f}; told: " + ", ".join(
        f"{r['fact']} {r['value']} ({'asked' if r['asked'] else 'unasked'})" for r in ledger(env)))


COMMANDS = {"demo": demo, "sft": sft, "train": train, "eval": eval_, "chat": chat, "profile": profile}


def main(argv: list[str]) -> int:
    return userrl.main(argv, __doc__, Settings, COMMANDS, "userlm_r1.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How often a language model in the user's chair judges as the rules do: the audit of a simulator.

    python tests/agreement.py --user=llm:MODEL@http://localhost:8000/v1      200 queries, spread over the gyms
    python tests/agreement.py --user=llm:FOLDER --n=70 --gyms=turtle,search --show=3
    python tests/agreement.py --save=judge.jsonl --n=1200    no model: the rules' verdicts on training tasks

The queries are those of a careless demonstrator's conversations with the scripted user.  A verdict agrees if all of
its fields do.  "commonest" is what a user would reach that gives one verdict always, the one that is most frequent;
"none" are queries without a verdict, which end a conversation as "user error".  Of userrl.py's settings those of the
language model count; the gyms are as usual.

What --save writes makes a user of one's own: userrl.py sft --model=FOLDER --data=judge.jsonl imitates it, then
--user=llm:runs/<name>.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import grpo  # noqa: E402
import envs  # noqa: E402
import rewards  # noqa: E402
import userrl  # noqa: E402


class Recorder(envs.ScriptedUser):
    """The scripted user; `judged` holds the queries for a verdict."""

    def __init__(self):
        super().__init__()
        self.judged: list[envs.Query] = []

    def answer(self, queries: list) -> list:
        self.judged += [query for query in queries if query.kind == "judge"]
        return super().answer(queries)


def queries_of(gym: str, n: int, slip: float = 0.5, split: str = "test") -> list[envs.Query]:
    """The first n queries for a verdict, from tasks of a split; fewer in a gym that asks for none."""
    recorder = Recorder()
    for index in range(n):
        # of one conversation a few messages, or they would be too much alike
        before = len(recorder.judged)
        envs.play(envs.make(gym, index, split, user=recorder), lambda env: envs.expert(env, slip))
        del recorder.judged[before + 4:]
        if len(recorder.judged) >= n:
            break
    return recorder.judged[:n]


def plain(verdict: dict) -> dict:
    """A verdict to compare, not as a text (a level is 1 or 1.0): no thought, and what may come in any order in one."""
    return {name: sorted(value) if name == "asks" else value for name, value in verdict.items() if name != "thought"}


def agreement(queries: list[envs.Query], replies: list) -> dict:
    """n, agree (share, and half its 95 % interval), commonest, none: shares of the queries."""
    ruled = [plain(query.rules) for query in queries]
    none = [isinstance(reply, Exception) for reply in replies]
    same = [not failed and plain(reply) == rules for reply, rules, failed in zip(replies, ruled, none)]
    share, half = rewards.mean_ci([float(one) for one in same])
    commonest = max(map(ruled.count, ruled)) / len(ruled)
    return {"n": len(queries), "agree": share, "ci95": half, "commonest": commonest, "none": sum(none) / len(none)}


def compare(user, gyms: list[str], n: int, show: int = 0) -> dict[str, dict]:
    """gym -> its `agreement`, for n queries in all; prints the table, and the first verdicts that differ."""
    asked = {gym: queries_of(gym, -(-n // len(gyms))) for gym in gyms}
    table = {}
    print(f"{'gym':12}{'queries':>8}{'agree':>16}{'commonest':>11}{'none':>7}", flush=True)
    for gym, queries in asked.items():
        if not queries:
            print(f"{gym:12}       0   (it asks its user for no verdict)")
            continue
        replies = user.answer(queries)
        table[gym] = row = agreement(queries, replies)
        shares = [100 * row[name] for name in ("agree", "ci95", "commonest", "none")]
        print("{:12}{:8}{:9.0f} ± {:2.0f} %{:9.0f} %{:5.0f} %".format(gym, row["n"], *shares), flush=True)
        pairs = list(zip(queries, replies))
        unlike = [(q, r) for q, r in pairs if isinstance(r, Exception) or plain(r) != plain(q.rules)]
        for query, reply in unlike[:show]:
            print(f"    {query.message[:100]!r}\n      rules {plain(query.rules)}, model {str(reply)[:200]}")
    return table


def save(path: str, gyms: list[str], n: int) -> int:
    """Write n queries of training tasks, in random order, each with the rules' verdict as the model's reply."""
    talks = []
    for gym in gyms:
        for query in queries_of(gym, -(-n // len(gyms)), split="train"):
            verdict = {"role": "assistant", "content": json.dumps(query.rules)}
            talks.append({"gym": gym, "messages": [*envs.prompt(query), verdict]})
    random.Random(0).shuffle(talks)
    Path(path).write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    print(f"{len(talks)} queries with the rules' verdicts in {path}")
    return 0


def main(argv: list[str]) -> int:
    own = {"n": 200, "show": 0, "save": ""}
    for item in [item for item in argv if item[2:].split("=")[0] in own]:
        name, _, text = item[2:].partition("=")
        own[name] = grpo.typed(f"--{name}", text, type(own[name]))
        argv = [other for other in argv if other != item]
    _, s = grpo.parse(["eval", "--gyms=all", *argv], userrl.Settings, userrl.COMMANDS)
    gyms = [gym for gym in userrl.gym_names(s) if gym != "function"]
    if not gyms or own["n"] < 1:
        raise ValueError("nothing to ask: --n is at least 1, and the user of function gives no verdict")
    if own["save"]:
        return save(own["save"], gyms, own["n"])
    if not isinstance(user := userrl.make_user(s), envs.LLMUser):
        raise ValueError("--user must be llm:MODEL@http://server/v1 or llm:FOLDER")
    compare(user, gyms, own["n"], own["show"])
    print(", ".join(f"{name} {count:.0f}" for name, count in user.counts.items()) + f"; prompts {s.llm_prompts}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"agreement.py: {grpo.reason(error)}", file=sys.stderr)
        sys.exit(2)

"""Our gyms in other people's trainers: each recipe is a script, run here as it stands, in a process of its own.

The packages are not ours to require: without one, its test is skipped.  Versions that the recipes were run with stand
in their first lines.
"""
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import envs
import grpo

ROOT = Path(envs.__file__).parent

GYMNASIUM = '''\
# Gymnasium 1.4.0
import string
import gymnasium
from gymnasium.utils.env_checker import check_env
import envs

class Gym(gymnasium.Env):
    action_space = gymnasium.spaces.Text(envs.MAX_ACTION, charset=string.printable)
    observation_space = gymnasium.spaces.Text(10**6, charset=string.printable)

    def __init__(self, gym, **options):
        self.stream = envs.Stream(gym, **options)

    def reset(self, *, seed=None, options=None):         # the seed picks the task
        super().reset(seed=seed)
        return self.stream.reset(seed=seed, options=options)

    def step(self, action):
        return self.stream.step(action)

for name in envs.GYMS:
    check_env(Gym(name))
    print(name, "passes")
'''

TRL_ROLLOUT = '''\
# TRL 1.16.0, with our rollout inside: python trl_rollout.py Qwen/Qwen3-0.6B
import sys
import datasets, envs, grpo, trl

def rollout(prompts, trainer):                           # a prompt: a task's number, num_generations times each
    model = trainer.model.eval()                         # in training mode, gradient checkpointing keeps no cache
    engine = grpo.Engine(model, trainer.processing_class, rows=32, max_len=2048)
    todo = [envs.make("intention", int(prompt)) for prompt in prompts]
    seeds = [(trainer.state.global_step, i) for i in range(len(todo))]
    talks = grpo.rollout(engine, todo, seeds=seeds, max_new_tokens=96)
    model.train()
    cut = [(talk, talk.turn.index(0)) for talk in talks]                        # where its first turn begins
    return {"prompt_ids": [talk.ids[:at] for talk, at in cut], "completion_ids": [talk.ids[at:] for talk, at in cut],
            "logprobs": [talk.logps[at:] for talk, at in cut], "env_mask": [talk.mask[at:] for talk, at in cut],
            "earned": [None if talk.error else sum(talk.turn_rewards) for talk in talks]}

def reward(earned, **_):
    return earned

args = trl.GRPOConfig("runs/trl", max_steps=2, num_generations=4, per_device_train_batch_size=8, logging_steps=1,
                      report_to="none", bf16=False)      # on a GPU without bf16=False
tasks = datasets.Dataset.from_dict({"prompt": [str(index) for index in range(1000)]})
trl.GRPOTrainer(sys.argv[1], reward, args, tasks, rollout_func=rollout).train()
'''

TRL_ENVIRONMENT = '''\
# TRL 1.16.0, environment_factory: python trl_environment.py Qwen/Qwen3-0.6B
import sys
import datasets, envs, trl

class Intention:                                         # its public methods are the tools that the model sees
    def __init__(self):
        self._stream = envs.Stream("intention", form="tool")

    def reset(self, index, **_):
        self.earned = 0.0
        return self._stream.reset(seed=index)[0]

    def interact_with_env(self, choice: str, content: str) -> str:
        """Make one move in the conversation; what comes back is the reply to it.

        Args:
            choice: The kind of move.
            content: What the move says.
        """
        text, reward, *_ = self._stream.step(f"[{choice}] {content}")
        self.earned += reward
        return text

    def get_reward(self) -> float:
        return self.earned

prompt = [{"role": "system", "content": Intention()._stream.system_prompt}, {"role": "user", "content": ""}]
tasks = datasets.Dataset.from_dict({"prompt": [prompt] * 1000, "index": range(1000)})
args = trl.GRPOConfig("runs/trl", max_steps=2, num_generations=4, per_device_train_batch_size=8, logging_steps=1,
                      max_completion_length=512, max_tool_calling_iterations=16, report_to="none", bf16=False)
trl.GRPOTrainer(sys.argv[1], None, args, tasks, environment_factory=Intention).train()
'''

VERIFIERS = '''\
# verifiers 0.4.0, as userrl_gym.py: vf-eval userrl-gym -n 4 -m MODEL --client.base-url http://localhost:8000/v1
import itertools
import envs
import verifiers.v1 as vf

class Tasks(vf.Taskset[vf.Task, vf.TasksetConfig]):
    INFINITE = True

    def load(self):
        stream = envs.Stream("intention")
        for _ in itertools.count():
            data = vf.TaskData(prompt=stream.reset()[0], system_prompt=stream.system_prompt)
            yield vf.Task(data, self.config.task)

class Config(vf.EnvConfig):
    agent: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime={"type": "subprocess"})

class Gym(vf.Env[Config]):
    async def run(self, task, agents):
        stream, earned, over = envs.Stream("intention"), 0.0, False
        stream.reset(seed=task.data.idx)
        async with agents.agent.interaction(task) as talk:
            turn = await talk.turn()
            while not (turn.terminated or over):
                text, reward, done, cut, _ = stream.step(turn.last_reply)
                earned, over = earned + reward, done or cut
                turn = turn if over else await talk.turn(text)
        talk.trace.record_reward("return", earned, 1.0)

__all__ = ["Tasks", "Gym"]
'''


def need(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def run(folder: Path, *command: str, **more: str) -> str:
    """What a command prints, with our modules and the folder's own in reach."""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1",
               "HF_HUB_OFFLINE": "1", **more}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def script(folder: Path, text: str, *arguments: str) -> str:
    (folder / "recipe.py").write_text(text)
    return run(folder, sys.executable, "recipe.py", *arguments)


def logged(printed: str, name: str) -> list[float]:
    """A number of the trainer's log, at each step."""
    return [float(value) for value in re.findall(rf"'{name}': '?([-\d.e]+)", printed)]


CALL = json.dumps({"name": envs.TOOL, "arguments": {"choice": "action", "content": "What is your budget?"}})


@pytest.fixture(scope="module")
def asker(tmp_path_factory):
    """A tiny checkpoint with Qwen3's chat template that has learnt one thing: to ask for the budget, as a call."""
    trl = pytest.importorskip("trl")
    call, rng = f"<tool_call>\n{CALL}\n</tool_call>", random.Random(0)
    texts = [envs.knowledge("intention", rng) for _ in range(300)]
    model, tokenizer = grpo.tiny_policy([*texts, *[call] * 20], vocab_size=600, hidden=64, layers=2, heads=2,
                                        kv_heads=1, head_dim=32)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    tokenizer.padding_side = "left"
    reply = tokenizer.encode(f"{call}<|im_end|>", add_special_tokens=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(280):
        said = rng.choices(texts, k=6)
        talk = [{"role": "system", "content": said[0]}, {"role": "user", "content": said[1]}]
        for text in said[2:2 + step % 3]:
            talk += [{"role": "assistant", "content": call}, {"role": rng.choice(("tool", "user")), "content": text}]
        tools = {"tools": [envs.tool_schema(("action",))]} if step % 2 else {}
        ids = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False, add_generation_prompt=True, **tools)
        logits = model(torch.tensor([ids + reply])).logits[0, -len(reply) - 1:-1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(reply)).backward()
        if step % 4 == 3:                                # four conversations a step
            optimizer.step()
            optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("asker")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_gymnasiums_checker_passes(tmp_path):
    need("gymnasium")
    assert script(tmp_path, GYMNASIUM).split() == [word for gym in envs.GYMS for word in (gym, "passes")]


def test_trl_trains_with_our_rollout(tmp_path, asker):
    need("trl", "datasets")
    printed = script(tmp_path, TRL_ROLLOUT, asker)
    assert len(logged(printed, "reward")) == 2 and max(logged(printed, "reward")) > 0


def test_trl_trains_on_an_environment(tmp_path, asker):
    need("trl", "datasets")
    printed = script(tmp_path, TRL_ENVIRONMENT, asker)
    assert min(logged(printed, "tools/call_frequency")) > 1 and max(logged(printed, "reward")) > 0
    assert max(logged(printed, "tools/failure_frequency")) == 0


class Canned(BaseHTTPRequestHandler):
    """A server of chat completions, as a stream, that asks for one thing after the other."""
    asks = ("What is your budget?", "Which day should it be?", "How many guests will come?")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = sum(message["role"] == "assistant" for message in request["messages"])
        text = f"[action] {self.asks[said % len(self.asks)]}"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for delta, end in ({"role": "assistant", "content": text}, None), ({}, "stop"):
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": request["model"],
                     "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


def test_verifiers_evaluates_a_served_model(tmp_path):
    need("verifiers")
    command = Path(sys.executable).with_name("vf-eval")
    if not command.exists() or not shutil.which("uv", path=f"{command.parent}{os.pathsep}{os.environ['PATH']}"):
        pytest.skip("vf-eval needs uv")
    (tmp_path / "userrl_gym.py").write_text(VERIFIERS)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run(tmp_path, str(command), "userrl-gym", "-n", "6", "-m", "canned", "--no-push", "--no-rich",
        "--client.base-url", f"http://127.0.0.1:{server.server_port}/v1", "--client.api-key-var", "NO_KEY",
        PATH=f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    server.shutdown()
    [file] = tmp_path.glob("outputs/*/traces.jsonl")
    found = {}
    for line in file.read_text().splitlines():
        episode = json.loads(line)
        assert episode["ok"]
        found[episode["task"]["data"]["idx"]] = episode["traces"][0]["rewards"]["return"]["score"]
    assert found == {index: alone(index) for index in range(6)} and sum(found.values()) > 0


def alone(index: int) -> float:
    """What the canned agent earns on a task, without anybody between."""
    stream, earned, over, turn = envs.Stream("intention"), 0.0, False, 0
    stream.reset(seed=index)
    while not over:
        _, reward, done, cut, _ = stream.step(f"[action] {Canned.asks[turn % len(Canned.asks)]}")
        earned, over, turn = earned + reward, done or cut, turn + 1
    return earned


@pytest.mark.parametrize("recipe", [GYMNASIUM, TRL_ROLLOUT, TRL_ENVIRONMENT, VERIFIERS])
def test_the_page_has_the_recipes_as_they_run(recipe):
    """.docs/recipes.md has each word by word.  All are short: what they are not, nobody reads."""
    assert recipe in (ROOT / ".docs/recipes.md").read_text()
    lines = [line for line in recipe.splitlines() if line.strip()]
    assert len(lines) <= 25 and max(map(len, lines)) <= 120

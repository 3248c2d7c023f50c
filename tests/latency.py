"""How long conversations take whose user is a slow server, against what its latency alone would take.

    python tests/latency.py            64 conversations of 8 turns, a server of 1 s: scripted moves, and a rollout
    python tests/latency.py 0.5        a server of half a second

A turn asks once for a verdict and once for words, one after the other; all conversations ask side by side.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import grpo  # noqa: E402
import envs  # noqa: E402

TALKS, TURNS = 64, 8


class Slow(BaseHTTPRequestHandler):
    """Says no to everything, after a while."""
    reply = json.dumps({"choices": [{"message": {"content": '{"reply": "no"}'}}]}).encode()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.seconds)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.reply)))
        self.end_headers()
        self.wfile.write(self.reply)

    def log_message(self, *args):
        pass


class Asks(envs.TelepathyGym):
    """The same question in every turn, whatever the agent says."""
    def turn(self, action: str):
        return (yield from super().turn("[action] Is it big?"))


def conversations(address: str) -> list[envs.Env]:
    server = envs.Server(address, at_once=TALKS)
    user = envs.LLMUser(server.texts, costs=server.counts)
    return [Asks(Asks.make_task("test", index), user, max_turns=TURNS) for index in range(TALKS)]


def timed(name: str, seconds: float, play, todo: list[envs.Env]) -> None:
    began = time.monotonic()
    play(todo)
    took, bound = time.monotonic() - began, 2 * TURNS * seconds
    counts = todo[0].user.counts
    assert all(env.turns == TURNS for env in todo) and counts["judged"] == counts["spoken"] == TALKS * TURNS
    print(f"{name:12} {took:6.1f} s, latency alone {bound:.1f} s: {took / bound:.2f} times", flush=True)


def rollout(todo: list[envs.Env]) -> None:
    model, tokenizer = grpo.tiny_policy(["Is it big? No."] * 50, vocab_size=300, hidden=32, layers=1)
    engine = grpo.Engine(model, tokenizer, rows=TALKS, max_len=1024)
    grpo.rollout(engine, todo, max_new_tokens=2)


def main(seconds: float = 1.0) -> None:
    ThreadingHTTPServer.request_queue_size = 2 * TALKS
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.seconds, server.daemon_threads = seconds, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"m@http://127.0.0.1:{server.server_port}/v1"
    timed("by a script", seconds, envs.play_together, conversations(address))
    timed("in a rollout", seconds, rollout, conversations(address))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))

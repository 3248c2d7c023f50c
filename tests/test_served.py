"""Models behind servers: faults of every kind, restarts, the cache.  The servers are local, and the faults are ours."""
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import envs


class Handler(BaseHTTPRequestHandler):
    """Answers with what `server.reply(sent)` gives: a text to say, bytes to send as they are, or a status."""

    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(sent)
        reply = self.server.reply(sent)
        if isinstance(reply, str):
            reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}],
                                "usage": {"prompt_tokens": 7, "completion_tokens": 2}}).encode()
        status, body = (reply, b'{"error": "sorry"}') if isinstance(reply, int) else (200, reply)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:                                                 # the other side has heard enough
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """serve(reply, port=0) -> a server on a thread of its own; `reply` may be exchanged while it runs."""
    started = []

    def start(reply, port=0):
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.reply, server.seen, server.lock, server.daemon_threads = reply, [], threading.Lock(), True
        server.address = f"m@http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        started.append(server)
        return server
    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def hello(sent):
    return "hello"


HI = [{"role": "user", "content": "hi"}]
FAULTS = {
    "500": (lambda sent: 500, "HTTP 500 Internal Server Error"),
    "hangs": (lambda sent: time.sleep(0.5) or "late", "timed out"),
    "garbage": (lambda sent: b"\xff\x00garbage", "no chat completion"),
    "half": (lambda sent: b'{"choices": [{"message": {"conte', "no chat completion"),
    "another": (lambda sent: b'{"choices": []}', "no chat completion"),
    "deep": (lambda sent: b"[" * 100_000, "no chat completion"),
    "10 MB": (lambda sent: b" " * (10 << 20), "a reply of more than 1 MB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_is_tried_again_and_then_one_clear_line(serve, fault):
    reply, told = FAULTS[fault]
    server = serve(reply)
    client = envs.Server(server.address, timeout=0.2, tries=2, wait=0.01)
    with pytest.raises(OSError) as error:
        client.chat(HI)
    assert str(error.value).startswith(f"{server.address}: ") and told in str(error.value)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400
    assert len(server.seen) == client.counts["requests"] == 2 and client.counts["retries"] == 1
    server.reply = hello
    assert client.chat(HI)["content"] == "hello" and client.counts["completion_tokens"] == 2


def test_a_bad_key_is_not_tried_again_and_never_told(serve, monkeypatch):
    server = serve(lambda sent: json.dumps(sent).encode() and 401)
    port = server.server_port
    monkeypatch.setenv(f"KEY_127_0_0_1_{port}", "sorry")                # the page of the error repeats it
    with pytest.raises(OSError, match=r"HTTP 401 Unauthorized .*\(key\)"):
        envs.Server(server.address, tries=5).chat(HI)
    assert len(server.seen) == 1
    monkeypatch.setenv(f"KEY_127_0_0_1_{port}", "two\nlines")
    with pytest.raises(ValueError, match=f"KEY_127_0_0_1_{port} holds no key"):
        envs.Server(server.address)


@pytest.mark.parametrize("address", ["", "m", "m@", "@http://x/v1", "m@ftp://x/v1", "m@http:///v1"])
def test_what_is_no_address(address):
    with pytest.raises(ValueError, match="is not MODEL@http://server/v1"):
        envs.Server(address)


def test_a_client_outlives_a_restart_of_its_server(serve):
    first = serve(lambda sent: "one")
    client = envs.Server(first.address, timeout=1, tries=6, wait=0.02)
    assert client.chat(HI)["content"] == "one"
    first.shutdown()
    first.server_close()
    threading.Timer(0.1, serve, [lambda sent: "two", first.server_port]).start()
    assert client.chat(HI)["content"] == "two" and client.counts["retries"] >= 2


def test_a_cached_request_is_not_sent_again(serve, tmp_path):
    """The key is the whole request; a damaged file is asked for anew, and a folder that cannot be made does no harm."""
    server = serve(lambda sent: f"reply {len(server.seen)}")
    client = envs.Server(server.address, cache=str(tmp_path / "cache"))
    assert [client.chat(HI, temperature=t)["content"] for t in (0, 1, 0, 1)] == ["reply 1", "reply 2"] * 2
    assert client.counts["cached"] == 2 and client.counts["requests"] == 2
    other = envs.Server("other" + server.address, cache=str(tmp_path / "cache"))
    assert other.chat(HI, temperature=0)["content"] == "reply 3"
    for file in (tmp_path / "cache").iterdir():
        file.write_text('{"choices": [{"mess')
    assert envs.Server(server.address, cache=str(tmp_path / "cache")).chat(HI, temperature=0)["content"] == "reply 4"
    (tmp_path / "file").write_text("")
    assert envs.Server(server.address, cache=str(tmp_path / "file")).chat(HI)["content"] == "reply 5"


def test_so_many_requests_at_once(serve):
    """64 questions to a server of 0.1 s, 16 at a time: four rounds."""
    under_way, most = 0, 0

    def reply(sent):
        nonlocal under_way, most
        with server.lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with server.lock:
            under_way -= 1
        return "yes"
    server = serve(reply)
    client = envs.Server(server.address, at_once=16)
    threads = [threading.Thread(target=client.chat, args=[HI]) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.seen) == 64 and most <= 16

"""Real nodes for the tests: anvil and hardhat from npm, on free ports, and a proxy that goes wrong.

They are installed once, into the folder that FLOWER_BFL_NODES names, or into pytest's cache. What needs them
is skipped where they cannot be had. A test module imports the fixtures that it uses.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

_PACKAGES = ["@foundry-rs/anvil@1.7.1", "hardhat@2.29.1"]
_INSTALL_S, _START_S = 240, 60
_HARDHAT_CONFIG = 'module.exports = { solidity: "0.8.30" };\n'


@pytest.fixture(scope="session", name="node_modules")
def node_modules_fixture(pytestconfig: pytest.Config) -> Path:
    """The folder with both packages."""
    chosen = os.environ.get("FLOWER_BFL_NODES")
    folder = Path(chosen) if chosen else pytestconfig.cache.mkdir("nodes")
    modules = folder / "node_modules"
    if not modules.exists():
        install(folder)
    return modules


def install(folder: Path) -> None:
    """Install beside its place, so that what is there is whole; skips the test if that fails."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, so there are no nodes to test with")
    partial = folder / f"partial-{os.getpid()}"
    partial.mkdir(parents=True)
    command = ["npm", "install", "--prefix", partial, "--no-audit", "--no-fund", "--no-save", *_PACKAGES]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_S)
        (partial / "node_modules").rename(folder / "node_modules")
    except (subprocess.SubprocessError, OSError) as error:
        if not (folder / "node_modules").exists():  # else another process was faster
            pytest.skip(f"npm cannot install {_PACKAGES}: {getattr(error, 'stderr', None) or error}")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@pytest.fixture(scope="module", name="anvil")
def anvil_fixture(node_modules: Path) -> Iterator[str]:
    """URL of an anvil that mines each transaction at once; the longer its chain, the slower it gets."""
    with started_anvil(node_modules) as url:
        yield url


@pytest.fixture(scope="session", name="hardhat")
def hardhat_fixture(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a hardhat node."""
    project = tmp_path_factory.mktemp("hardhat")
    (project / "hardhat.config.js").write_text(_HARDHAT_CONFIG)
    (project / "node_modules").symlink_to(node_modules)  # it refuses to run from elsewhere
    port = free_port()
    command = ["node_modules/.bin/hardhat", "node", "--hostname", "127.0.0.1", "--port", str(port)]
    with _started(command, port, project) as url:
        yield url


@contextmanager
def started_anvil(node_modules: Path, *options: str, port: int | None = None) -> Iterator[str]:
    """An anvil of one's own, with more options; its URL."""
    binaries = list(node_modules.glob("@foundry-rs/anvil-*/bin/anvil*"))  # of this platform
    if not binaries:
        pytest.skip("npm has no anvil for this platform")
    port = port or free_port()
    with _started([str(binaries[0]), "--port", str(port), *options], port, node_modules) as url:
        yield url


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def _started(command: list[str], port: int, folder: Path) -> Iterator[str]:
    environment = os.environ | {"HARDHAT_DISABLE_TELEMETRY_PROMPT": "true", "CI": "true"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that its children end with it
    )
    try:
        deadline_s = time.monotonic() + _START_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline_s:
                pytest.skip(f"{Path(command[0]).name} does not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Proxy:
    """A server between ledger and node that goes wrong as `fault` says.

    `fault` gets the calls of a request, as method and parameters each, and names a fault or gives None. It
    may be changed at any time; `requests` and `targets` are what came.
    """

    def __init__(self, node: str) -> None:
        self.node_port = int(node.rpartition(":")[2])
        self.fault: Callable[[list[tuple[str, object]]], str | None] = lambda calls: None
        self.requests: list[list[str]] = []  # methods
        self.targets: list[tuple[str, str | None]] = []  # path and authorization
        self.late_s = 1.0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                proxy.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        calls = json.loads(body)
        asked = [(each["method"], each["params"]) for each in (calls if isinstance(calls, list) else [calls])]
        self.requests.append([method for method, _ in asked])
        fault = self.fault(asked)
        self.targets.append((handler.path, handler.headers["Authorization"]))
        if fault in _INSTEAD:
            status, reply = _INSTEAD[fault]
            return self._reply(handler, status, reply)
        if fault == "echo":
            told = {"code": 1, "message": f"no {handler.path} for {handler.headers['Authorization']}"}
            answer = {"jsonrpc": "2.0", "id": None, "error": told}
            return self._reply(handler, 200, json.dumps(answer).encode())
        if fault in ("nonsense", "swallow"):  # results that are none; transactions that get lost
            numbers = [each["id"] for each in calls] if isinstance(calls, list) else [calls["id"]]
            result = {"nonsense": [7]} if fault == "nonsense" else "0x" + "00" * 32
            answers = [{"jsonrpc": "2.0", "id": number, "result": result} for number in numbers]
            return self._reply(handler, 200, json.dumps(answers).encode())
        if fault == "drop before":
            return self._drop(handler)
        if fault == "twice":
            self._forward(body)
        reply = self._forward(body)
        if fault == "drop after":
            return self._drop(handler)
        if fault == "late":
            time.sleep(self.late_s)
        if fault == "trickle":
            return self._trickle(handler, reply)
        if fault == "reorder" and isinstance(calls, list):
            reply = json.dumps(json.loads(reply)[::-1]).encode()
        if fault == "500 after":
            return self._reply(handler, 500, b"oh")
        if fault == "half":
            handler.close_connection = True
            return self._reply(handler, 200, reply[: len(reply) // 2], len(reply))
        return self._reply(handler, 200, reply)

    def _forward(self, body: bytes) -> bytes:
        connection = HTTPConnection("127.0.0.1", self.node_port, timeout=30)
        connection.request("POST", "/", body, {"Content-Type": "application/json"})
        reply = connection.getresponse().read()
        connection.close()
        return reply

    def _drop(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        with suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)

    def _trickle(self, handler: BaseHTTPRequestHandler, reply: bytes) -> None:
        handler.close_connection = True
        with suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply))
            for byte in reply:
                handler.wfile.write(bytes([byte]))
                time.sleep(self.late_s / len(reply))

    def _reply(
        self, handler: BaseHTTPRequestHandler, status: int, reply: bytes, length: int | None = None
    ) -> None:
        with suppress(OSError):  # the client may have given up
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(reply) if length is None else length))
            handler.end_headers()
            handler.wfile.write(reply)


_OVERLOADED = b'{"jsonrpc": "2.0", "id": null, "error": {"code": -32005, "message": "slow down"}}'
_INSTEAD = {
    "garbage": (200, b"<html>all is well</html>"),
    "nothing": (200, b""),
    "other": (200, b'[{"jsonrpc": "2.0", "id": -1, "result": "0x"}]'),
    "null": (200, b"null"),
    "500": (500, b"oh"),
    "429": (429, b"slow down"),
    "overloaded": (200, _OVERLOADED),
}
FAULTS = [*_INSTEAD, "drop before", "drop after", "twice", "reorder", "500 after", "half"]


@pytest.fixture(name="proxy")
def proxy_fixture(anvil: str) -> Iterator[Proxy]:
    """A proxy before anvil, without faults."""
    proxy = Proxy(anvil)
    yield proxy
    proxy.close()

"""Flower's deployment runtime on this machine: a SuperLink, SuperNodes, and an app that runs on them."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flower_bfl import _flwr_run
from flower_bfl._processes import Process, end_processes, family

POLL_S = "0.2"  # how often a node looks for work; Flower's second adds up where nothing else takes time
CONNECTION = (
    '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
)


@dataclass(frozen=True)
class Deployment:
    """A SuperLink with its SuperNodes; everything they start has `marker` in its environment."""

    folder: Path
    marker: str
    environment: dict[str, str]  # in which `flwr` finds the SuperLink

    def run(self, app: Path, settings: dict[str, object]) -> subprocess.Popen[bytes]:
        """Start `flwr run`; its log goes to run.log."""
        config = self.folder / "run-config.toml"
        config.write_text(_flwr_run._toml(settings), encoding="utf-8")
        command = ["flwr", "run", str(app), "--stream", *(["--run-config", str(config)] if settings else [])]
        with (self.folder / "run.log").open("wb") as log:
            return subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def outcome(self, process: subprocess.Popen[bytes], timeout_s: float) -> int:
        """0 if the run came to a good end."""
        try:
            return process.wait(timeout_s) or _flwr_run._outcome(self.environment)
        except subprocess.TimeoutExpired:
            return 124

    def kill(self, node: int) -> None:
        """SIGKILL to a SuperNode and all it has started, as when a machine loses its power."""
        known: set[Process] = set()
        while known := family(_mark(self.marker, node), known):
            for process in known:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def received(self, node: int) -> int:
        """How many messages a SuperNode has got."""
        return self.log(f"node-{node}").count("Receiving: ")

    def log(self, name: str) -> str:
        """What "superlink", "node-3" or "run" has said."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")


@contextmanager
def deployed(node_configs: Sequence[str], start_timeout_s: float = 120.0) -> Iterator[Deployment]:
    """A SuperLink and a SuperNode for each node config; nothing of them is left afterwards."""
    marker = f"FLOWER_BFL_PRIVATE_{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="fbfl-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port, control_port = _flwr_run._free_ports()
        environment = _flwr_run._environment(marker, folder, port, control_port) | {
            "OMP_NUM_THREADS": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL_S,
        }
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
        deployment = Deployment(folder, marker, environment)
        try:
            link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
            _start(folder, "superlink", link, environment)
            _wait(lambda: _flwr_run._is_healthy(port), start_timeout_s)
            for node, config in enumerate(node_configs):
                _start_node(deployment, node, config, port)
            names = [f"node-{node}" for node in range(len(node_configs))]
            _wait(lambda: all("SuperNode ID" in deployment.log(name) for name in names), start_timeout_s)
            yield deployment
        finally:
            end_processes(marker)


def _start_node(deployment: Deployment, node: int, config: str, port: int) -> None:
    own_port, _ = _flwr_run._free_ports()
    home = deployment.folder / f"node-{node}"
    home.mkdir()
    command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(own_port)]
    environment = deployment.environment | {_mark(deployment.marker, node): "1", "FLWR_HOME": str(home)}
    _start(deployment.folder, f"node-{node}", [*command, "--node-config", config], environment)


def _start(folder: Path, name: str, command: list[str], environment: dict[str, str]) -> None:
    path = Path(sys.executable).parent / command[0]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(path), *command[1:]],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _flwr_run._reap_in_background(process)


def _mark(marker: str, node: int) -> str:
    return f"NODE_{node}_{marker}"


def _wait(ready, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < until, f"not ready after {timeout_s} s"
        time.sleep(0.1)

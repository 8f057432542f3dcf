"""Run a Flower app from a checkout, in a Flower of its own.

`flwr run` leaves a SuperLink behind that serves every later run on two fixed ports, and it installs the
app's dependencies anew for each run. Here a run gets a private SuperLink, with a private FLWR_HOME, ports
and temporary folder, and everything that it started ends with it: SuperLink, SuperExec, the simulation and
Ray's processes. The user's own SuperLink and settings are not touched.

::

    code = run_app(Path("examples/quickstart"), {"num-server-rounds": 3}, nodes=10)

    with private_flower() as environment:          # several runs, one SuperLink
        for seed in range(5):
            run_app(app, {"seed": seed}, nodes=10, environment=environment)
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flower_bfl._processes import end_processes, exit_on_termination, signals_ignored
from flower_bfl.errors import ConfigError, FlowerBFLError

RunConfig = Mapping[str, str | int | float | bool]

_MARKER_PREFIX = "FLOWER_BFL_PRIVATE_"  # + random hex: an environment variable that all our processes inherit
_OWN_ERRORS = f"{FlowerBFLError.__module__}."
_STATUS_TIMEOUT_S = 30.0
_BIND_ATTEMPTS = 3  # somebody else may take a free port before the SuperLink binds it


# --- a Flower of one's own ----------------------------------------------------------------------------


@contextmanager
def private_flower(*, start_timeout_s: float = 90.0) -> Iterator[dict[str, str]]:
    """Start a private SuperLink; yield the environment in which `flwr` commands use it; end it all on exit.

    Ends, on return, on an exception, on Ctrl-C and, in the main thread, on SIGTERM and SIGHUP, exactly the
    processes that inherited the environment and their children. (Nothing can be done about SIGKILL.)

    Raises FlowerBFLError if the SuperLink does not answer within `start_timeout_s` seconds.
    """
    marker = _MARKER_PREFIX + uuid.uuid4().hex
    with (
        exit_on_termination(),
        tempfile.TemporaryDirectory(
            prefix="fbfl-", dir=_short_temporary_folder(), ignore_cleanup_errors=True
        ) as folder,
    ):
        (Path(folder) / "flwr").mkdir()
        try:
            yield _start_superlink(marker, Path(folder), start_timeout_s)
        finally:
            with signals_ignored():
                end_processes(marker)


def run_app(
    app: Path,
    run_config: RunConfig,
    *,
    nodes: int,
    cpus_per_node: int = 1,
    stream: bool = True,
    environment: Mapping[str, str] | None = None,
    start_timeout_s: float = 90.0,
) -> int:
    """Simulate a Flower app with `nodes` devices; return 0 if the run completed, else a non-zero status.

    `run_config` overrides values of the app's [tool.flwr.app.config]. With `stream` the log goes to stdout
    as it comes; without, only the log of a failed run does, to stderr. `environment` is what
    `private_flower` yields, one run at a time; by default the run has a private Flower to itself.
    """
    app = app.expanduser().resolve()
    _check_run_config(run_config, declared_config(app))
    _check_at_least_one("nodes", nodes)
    _check_at_least_one("cpus_per_node", cpus_per_node)
    with ExitStack() as stack:
        if environment is None:
            environment = stack.enter_context(private_flower(start_timeout_s=start_timeout_s))
        config_file = Path(environment["FLWR_HOME"]) / f"run-config-{uuid.uuid4().hex}.toml"
        config_file.write_text(_toml(run_config), encoding="utf-8")
        command = [
            *(_executable("flwr"), "run", str(app), "--stream"),
            *("--federation-config", f"num-supernodes={nodes} client-resources-num-cpus={cpus_per_node}"),
            *(("--run-config", str(config_file)) if run_config else ()),
        ]
        return _follow(command, environment, stream=stream, start_timeout_s=start_timeout_s)


def _start_superlink(marker: str, folder: Path, timeout_s: float) -> dict[str, str]:
    deadline = time.monotonic() + timeout_s
    log = folder / "superlink.log"
    for _ in range(_BIND_ATTEMPTS):
        port, control_port = _free_ports()
        environment = _environment(marker, folder, port, control_port)
        command = [
            *(_executable("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]
        with log.open("wb") as output:
            # A session of its own: Ctrl-C is for us, who then end the processes in order.
            superlink = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        while superlink.poll() is None:
            if _is_healthy(port):
                _reap_in_background(superlink)
                return environment
            if time.monotonic() > deadline:
                _reap_in_background(superlink)
                raise FlowerBFLError(
                    f"Flower's SuperLink did not answer within {timeout_s:g} s{_last_words(_lines(log))}"
                )
            time.sleep(0.1)
    raise FlowerBFLError(
        f"Flower's SuperLink ended with status {superlink.returncode}{_last_words(_lines(log))}"
    )


def _environment(marker: str, folder: Path, port: int, control_port: int) -> dict[str, str]:
    scripts = sysconfig.get_path("scripts")
    local = ",".join(filter(None, [os.environ.get("NO_PROXY", os.environ.get("no_proxy")), "127.0.0.1"]))
    # RAY_ADDRESS would make the simulation join the user's own Ray cluster.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return inherited | {
        marker: "1",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control_port),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # use this environment, do not build another
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "NO_PROXY": local,
        "no_proxy": local,
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),  # SuperExec looks there
        "PYTHONUNBUFFERED": "1",  # logs come as they are written, not in blocks
    }


def _executable(name: str) -> str:
    """Path of a Flower command in the environment of the running Python."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise FlowerBFLError(f"cannot find `{name}` beside {sys.executable}: is Flower installed there?")
    return path


def _short_temporary_folder() -> str | None:
    """Where the private folder goes: Ray's socket names, ~70 characters below it, may have 103 in all."""
    short = Path("/tmp")
    return str(short) if len(tempfile.gettempdir()) > 20 and os.access(short, os.W_OK) else None


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _is_healthy(port: int) -> bool:
    # Without the empty ProxyHandler a proxy in the user's environment would be asked for 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=1.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _last_words(log: list[str]) -> str:
    return "; its last words:\n" + "".join(log[-15:]).rstrip() if log else ""


def _reap_in_background(process: subprocess.Popen[bytes]) -> None:
    threading.Thread(target=process.wait, daemon=True).start()


# --- one run ------------------------------------------------------------------------------------------


def declared_config(app: Path) -> dict[str, object]:
    """Settings of a Flower app and their defaults, [tool.flwr.app.config]; ConfigError if it is no app."""
    project = app / "pyproject.toml"
    if not app.is_dir():
        raise ConfigError(f"`app` must be the folder of a Flower app, got {app}, which is no folder")
    if not project.is_file():
        raise ConfigError(f"`app` must hold a pyproject.toml, got {app}, which has none")
    try:
        declared = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"`app` must hold a valid pyproject.toml, got {project}: {error}") from None
    except KeyError:
        raise ConfigError(f"`app` must be a Flower app, got {project} without [tool.flwr.app]") from None
    return _flat(declared.get("config", {}))


def _check_run_config(run_config: RunConfig, defaults: Mapping[str, object]) -> None:
    for key, value in run_config.items():
        if key not in defaults:
            raise ConfigError(
                "`run_config` may set what the app's [tool.flwr.app.config] declares "
                f"({', '.join(sorted(defaults)) or 'nothing'}), got {key}"
            )
        if not _same_kind(value, defaults[key]):
            kind = type(defaults[key]).__name__
            raise ConfigError(
                f"`run_config` must give {key} a value of type {kind}, as the app does, got {value!r}"
            )


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} as {"a.b": 1}, the way Flower names nested settings."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _same_kind(value: object, default: object) -> bool:
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _check_at_least_one(argument: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"`{argument}` must be at least 1, got {value}")


def _toml(run_config: RunConfig) -> str:
    """The settings as TOML. A file, because `--run-config 'a="b"'` knows no way to quote a quotation mark."""
    return "".join(f"{_toml_string(key)} = {_toml_value(value)}\n" for key, value in run_config.items())


def _toml_value(value: str | int | float | bool) -> str:
    if isinstance(value, str):
        return _toml_string(value)
    if isinstance(value, bool):
        return str(value).lower()
    return repr(float(value)) if isinstance(value, float) else str(int(value))


def _toml_string(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which JSON lets pass.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _follow(
    command: list[str], environment: Mapping[str, str], *, stream: bool, start_timeout_s: float
) -> int:
    """Run `flwr run --stream`, pass its output on, and return the run's own outcome as an exit status."""
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    hung = threading.Event()

    def end_if_not_started() -> None:
        if _run_status(environment) in ("", "pending", "starting"):
            hung.set()
            process.kill()

    watchdog = threading.Timer(start_timeout_s, end_if_not_started)
    watchdog.daemon = True
    watchdog.start()
    log: list[str] = []
    reason = ""
    try:
        assert process.stdout is not None  # it is a pipe
        for line in process.stdout:
            if line.startswith(_OWN_ERRORS):  # the last line of a traceback, far above Flower's last words
                reason = line.partition(": ")[2]
            if stream:
                sys.stdout.write(line)
                sys.stdout.flush()
            else:
                log.append(line)
        code = process.wait() or _outcome(environment)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if hung.is_set():
        raise FlowerBFLError(f"Flower did not start the run within {start_timeout_s:g} s{_last_words(log)}")
    if code:
        sys.stderr.write("".join(log) + reason)
    return code


def _outcome(environment: Mapping[str, str]) -> int:
    """0 if the last run completed. `flwr run --stream` itself ends with 0 also when the app raised."""
    deadline = time.monotonic() + _STATUS_TIMEOUT_S
    while time.monotonic() < deadline:
        status = _run_status(environment)
        if status is not None and status.startswith("finished"):
            return 0 if status == "finished:completed" else 1
        time.sleep(0.5)
    return 1


def _run_status(environment: Mapping[str, str]) -> str | None:
    """Status of the latest run, such as "running" or "finished:failed"; "" if no run, None if no answer."""
    command = [_executable("flwr"), "list", "--limit", "1", "--format", "json"]
    # Jupyter and some CI set FORCE_COLOR, and coloured JSON is none.
    plain = {"FORCE_COLOR": "", "TTY_COMPATIBLE": "0"}
    try:
        done = subprocess.run(
            command,
            env={**environment, **plain},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_STATUS_TIMEOUT_S,
            start_new_session=True,
        )
        runs = json.loads(done.stdout)["runs"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return str(runs[0]["status"]) if runs else ""

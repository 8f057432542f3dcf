"""Checks of an installation: Python, packages, extras, the EVM, Flower's command and home."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, packages_distributions, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from flower_bfl.doctor import _machine
from flower_bfl.doctor._findings import Finding, guarded
from flower_bfl.doctor._trial import MARK

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_NAME = "flower-bfl"
_FOR = {
    "torch": "the examples, models and data sets",
    "plots": "pictures",
    "report": "the HTML page of a run",
    "web3": "a ledger on an Ethereum node",
    "control": "the Gymnasium environment",
    "train": "training controllers",
}
_NOT_FOR_USERS = ("dev", "fuzz")
_TRIALS_S = 240.0  # all of them; torch alone may take half a minute on a busy machine
_PATIENCE_S = 2 * _TRIALS_S

Errors = dict[str, str | None]
"""What came of each trial: None if nothing is wrong."""


def check_installation(place: Path) -> Iterator[Finding]:
    """Findings about what is installed here; runs would go below `place`."""
    if _version_of("packaging") is None:  # which compares the versions
        absent = "absent, or without what it needs"
        yield from guarded("flwr", lambda: [Finding("flwr", "wrong", absent, _again("flwr"))])
    else:
        yield from guarded("Python", check_python)
        yield from guarded("packages", lambda: check_packages(requires(_NAME) or []))
        yield from guarded("packages", check_what_loads, _PATIENCE_S)
    yield from guarded("flwr command", check_flwr_command)
    yield from guarded("FLWR_HOME", check_flwr_home)
    yield from guarded("disk", partial(_machine.check_space, place))
    yield from guarded("cores, memory", _machine.check_cores_and_memory)
    yield from guarded("processes", _machine.check_processes)


def check_python() -> Iterator[Finding]:
    """Its version, and which one it is."""
    from packaging.specifiers import SpecifierSet

    wanted = metadata(_NAME)["Requires-Python"]
    own = ".".join(map(str, sys.version_info[:3]))
    told = f"{own} in {sys.prefix}"
    if SpecifierSet(wanted or "").contains(own, prereleases=True):
        yield Finding("Python", "ok", told)
    else:
        yield Finding(
            "Python", "wrong", f"{told}; {wanted} is needed", "make the environment anew with such a Python"
        )


def check_packages(requirements: Iterable[str]) -> Iterator[Finding]:
    """Whether the packages without which nothing goes are there, in the versions asked for."""
    fit = 0
    for requirement in _needed(requirements, ""):
        finding = _fits(requirement)
        fit += finding.state == "ok"
        if finding.state != "ok" or requirement.name == "flwr":
            yield finding
    yield Finding("packages", "ok", f"{fit} in versions that {_NAME} {version(_NAME)} takes")


def check_what_loads() -> Iterator[Finding]:
    """Flower, Ray, the EVM, the policies, and every extra: they are imported, in another process."""
    requirements = requires(_NAME) or []
    there: dict[str, str] = {}
    extras = sorted(set(metadata(_NAME).get_all("Provides-Extra") or []) - {*_NOT_FOR_USERS})
    modules = _modules()
    for requirement in (each for extra in ("", *extras) for each in _needed(requirements, extra)):
        if _version_of(requirement.name) is not None:
            there[requirement.name] = modules.get(_plain(requirement.name), requirement.name)
    flower = ["flwr.simulation", "ray"] if _version_of("ray") else []
    errors = try_out(["trial:evm", "trial:policies", *flower, *dict.fromkeys(there.values())])

    own = {requirement.name for requirement in _needed(requirements, "")}
    for name in sorted(own & there.keys()):
        if error := errors.get(there[name]):
            yield Finding(name, "wrong", f"does not load: {error}", _again(name))
    yield from _of_simulation(errors)
    yield _of_trial(
        "EVM", errors["trial:evm"], "makes a contract and records an entry", ("py-evm", "coincurve")
    )
    yield _of_trial("policies", errors["trial:policies"], "the trained controllers load", [_NAME])
    for extra in extras:
        yield from check_extra(extra, requirements, there, errors)


def check_extra(
    extra: str, requirements: Iterable[str], modules: dict[str, str], errors: Errors
) -> Iterator[Finding]:
    """One extra: there, absent or broken."""
    what, purpose = f"extra {extra}", _FOR.get(extra, "")
    bring = f"pip install '{_NAME}[{extra}]'"
    wanted = list(_needed(requirements, extra))
    absent = [each.name for each in wanted if _version_of(each.name) is None]
    wrong = [fits for each in wanted if each.name not in absent and (fits := _fits(each)).state != "ok"]
    broken = {each.name: error for each in wanted if (error := errors.get(modules.get(each.name, "")))}
    for name, error in broken.items():
        yield Finding(what, "wrong", f"{name} does not load: {error}", _again(name))
    for finding in wrong:
        yield Finding(what, "wrong", f"{finding.what} {finding.told}", f"bring a fitting version:\n{bring}")
    if absent and not broken and not wrong:
        names = "" if len(absent) == len(wanted) else f" {', '.join(absent)}"
        yield Finding(
            what, "note", f"absent{names}, for {purpose}: {bring}" if purpose else f"absent{names}: {bring}"
        )
    elif not broken and not wrong:
        versions = ", ".join(f"{each.name} {_version_of(each.name)}" for each in wanted)
        yield Finding(what, "ok", versions or "needs no package")


def check_flwr_command() -> Iterator[Finding]:
    """Whether a shell finds Flower's command, and which one."""
    on_path, beside = shutil.which("flwr"), shutil.which("flwr", path=sysconfig.get_path("scripts"))
    if on_path is None and beside is None:
        yield Finding(
            "flwr command", "wrong", f"neither on the PATH nor beside {sys.executable}", _again("flwr")
        )
    elif on_path is None:
        told = f"not on the PATH: `flower-bfl run` finds {beside}, a shell does not"
        yield Finding("flwr command", "note", told, f"before `flwr run`:\nsource {sys.prefix}/bin/activate")
    elif beside is not None and not Path(on_path).samefile(beside):
        yield Finding(
            "flwr command", "note", f"{on_path} is first on the PATH, of another environment than {beside}"
        )
    else:
        yield Finding("flwr command", "ok", on_path)


def check_flwr_home() -> Iterator[Finding]:
    """Whether Flower can keep its settings; it makes the folder itself."""
    home = Path(os.environ.get("FLWR_HOME") or "~/.flwr").expanduser().absolute()
    place = next(each for each in (home, *home.parents) if each.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        yield Finding("FLWR_HOME", "ok", f"{home}{'' if place == home else ', made at the first `flwr run`'}")
    else:
        yield Finding(
            "FLWR_HOME",
            "wrong",
            f"{home} cannot be written, so `flwr run` fails",
            "name a folder that can be written:\nexport FLWR_HOME=FOLDER",
        )


def try_out(names: Sequence[str], limit_s: float = _TRIALS_S) -> Errors:
    """Import modules, and make the trials, in another process; one that ends it is passed over."""
    errors: Errors = {}
    with TemporaryDirectory(prefix="fbfl-") as scratch:  # for what libraries write as they load
        own = {"MPLCONFIGDIR": scratch, "TMPDIR": scratch, "PYTHONDONTWRITEBYTECODE": "1"}
        environment = os.environ | own
        while rest := [name for name in names if name not in errors]:
            output, end = _try(rest, environment, limit_s)
            for line in output.decode(errors="replace").split("\n"):
                if line.startswith(MARK):
                    name, error = json.loads(line[1:])
                    errors[name] = error
            if blamed := next((name for name in rest if name not in errors), None):
                errors[blamed] = end
                limit_s /= 2  # so that all together end
    return errors


def _try(names: Sequence[str], environment: Mapping[str, str], limit_s: float) -> tuple[bytes, str]:
    """What the process says, and how it ends."""
    command = [sys.executable, "-P", "-m", "flower_bfl.doctor._trial", *names]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired as expired:
        return expired.stdout or b"", f"does not end within {limit_s:g} s"
    return done.stdout, f"ends Python with status {done.returncode}"


def _of_simulation(errors: Errors) -> Iterator[Finding]:
    ray = _version_of("ray")
    if ray is None:
        yield Finding(
            "simulation",
            "wrong",
            "Ray is absent: `flwr run` and `flower-bfl run` cannot simulate",
            _again("flwr"),
        )
        return
    broken = errors.get("ray") or errors.get("flwr.simulation")
    fits = [_fits(each) for each in _needed(requires("flwr") or [], "simulation") if each.name == "ray"]
    if broken:
        yield Finding("simulation", "wrong", f"Ray {ray} does not load: {broken}", _again("flwr"))
    elif fits and fits[0].state != "ok":
        yield Finding("simulation", "wrong", f"Ray {fits[0].told}", _again("flwr"))
    else:
        yield Finding("simulation", "ok", f"Ray {ray}")


def _of_trial(what: str, error: str | None, told: str, packages: Sequence[str]) -> Finding:
    if error is None:
        return Finding(what, "ok", told)
    return Finding(what, "wrong", f"fails: {error}", _again(*packages))


def _needed(requirements: Iterable[str], extra: str) -> Iterator["Requirement"]:
    """What an extra brings; "": what is needed always."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requirements):
        if requirement.marker is None:
            needed = extra == ""
        else:
            always = requirement.marker.evaluate({"extra": ""})
            needed = always if extra == "" else not always and requirement.marker.evaluate({"extra": extra})
        if needed and _plain(requirement.name) != _NAME:
            yield requirement


def _fits(requirement: "Requirement") -> Finding:
    found, wanted = _version_of(requirement.name), str(requirement.specifier)
    bring = f"install it:\npip install '{requirement}'"
    if found is None:
        return Finding(requirement.name, "wrong", f"absent; {wanted or 'it'} is needed", bring)
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding(requirement.name, "wrong", f"{found}; {wanted} is needed", bring)
    return Finding(requirement.name, "ok", found)


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _modules() -> dict[str, str]:
    """The module to import of each package."""
    found: dict[str, list[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            found.setdefault(_plain(name), []).append(module)
    own = {name: name.replace("-", "_") for name in found}
    return {name: own[name] if own[name] in each else min(each) for name, each in found.items()}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _again(*names: str) -> str:
    """The command that installs packages anew, in versions that are asked for."""
    own = {re.split(r"[^\w.-]", each)[0]: each.split(";")[0].strip() for each in requires(_NAME) or []}
    wanted = " ".join(shlex.quote(own.get(name, name)) for name in names)
    return f"install it anew:\npip install --force-reinstall {wanted}"

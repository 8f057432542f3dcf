"""What is in the distributions, and what importing the package loads."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a fresh clone would hold: the files that git has or would add, links as links."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    copy = tmp_path_factory.mktemp("tree")
    for name in listed.decode().split("\0"):
        if name and os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


def build(kind: str, source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        f"--{kind}",
        "--outdir",
        str(target),
        str(source),
    ]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.iterdir()
    return built


def files_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_the_wheel_holds_the_package_and_nothing_else(tree: Path, wheel: Path) -> None:
    package = {str(path.relative_to(tree)) for path in (tree / "flower_bfl").rglob("*") if path.is_file()}
    info = "flower_bfl-0.1.0.dist-info"
    notes = {
        f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert files_in_wheel(wheel) == package | notes


def test_the_wheel_holds_what_has_been_lost_before(wheel: Path) -> None:
    files = files_in_wheel(wheel)
    contracts = "flower_bfl/chain_adapter/contracts/"
    assert {"flower_bfl/py.typed", "flower_bfl/chain_adapter/pyevm.py"} <= files
    assert {Path(name).suffix for name in files if name.startswith(contracts)} >= {".sol", ".json"}
    assert {name.split("/")[0] for name in files} == {"flower_bfl", "flower_bfl-0.1.0.dist-info"}


def test_the_wheel_built_from_the_sdist_is_the_same(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert files_in_wheel(build("wheel", source, tmp_path / "wheel")) == files_in_wheel(wheel)


def test_the_sdist_holds_tests_and_examples_but_no_links(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    tops = {Path(member.name).parts[1] for member in members}
    assert {"flower_bfl", "tests", "examples", "LICENSE", "README.md", "CHANGELOG.md", "Makefile"} <= tops
    assert not {"strategies", "chain_adapter"} & tops
    assert [member.name for member in members if member.issym() or member.islnk()] == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "flwr", "ray", "web3", "eth", "matplotlib", "sklearn", "gymnasium")
    script = f"import sys, flower_bfl; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_deciding_loads_neither_torch_nor_gymnasium() -> None:
    script = """
import sys
import numpy as np
from flower_bfl.controller import A2CController
from flower_bfl.network import NetworkConfig, draw_states
A2CController.pretrained().decide(draw_states(NetworkConfig(devices=4), 2, np.random.default_rng(0)))
print([name for name in ("torch", "gymnasium", "stable_baselines3", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_wheel_holds_the_trained_policy(wheel: Path) -> None:
    policies = {name for name in files_in_wheel(wheel) if "/controller/policies/shared/" in name}
    assert {Path(name).suffix for name in policies} == {".json", ".safetensors"} and len(policies) == 2

"""Shared by all tests: real Flower messages without a running SuperLink, and the command in this process."""

import os
import subprocess
import sys

# Before PyTorch is there: two workers with two threads each wait for one another, ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import settings

from flower_bfl import cli

settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")


@pytest.fixture(autouse=True, scope="session")
def flower_identity():
    """Flower stamps messages with the ids of the running task; outside a run somebody must set them."""
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1


def pytest_collection_modifyitems(items):
    """Slow tests may take longer than the limit that is there for what hangs."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Status, output and errors of `flower-bfl` with words behind it, in an empty folder, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flower-bfl", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return command


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)

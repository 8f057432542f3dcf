"""The notebooks run from top to bottom, and what is stored in them is what they print and draw."""

import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from flower_bfl._processes import end_processes

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
PICTURES = 2  # at least, in each
MOST_BYTES = 300_000

# Where, and when: paths of a machine, addresses, dates with a time.
TELLTALE = (
    r"/(home|root|tmp|Users|private|var|opt|mnt)/|\b\d+\.\d+\.\d+\.\d+\b|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d"
)


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import execute

    return execute


@pytest.fixture
def marked() -> Iterator[dict[str, str]]:
    """An environment by which all that a notebook started is found, and ended if it is still there."""
    marker = f"FLOWER_BFL_NOTEBOOK_{uuid.uuid4().hex}"
    yield {marker: "1"}
    end_processes(marker)


def outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What kinds of output each cell has."""
    return [
        [
            kind
            for output in cell.outputs
            for kind in sorted(output.get("data") or [output.get("name", "error")])
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def text_of(notebook: nbformat.NotebookNode) -> str:
    """All text in its outputs."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts += [output.get("text", ""), *(data[kind] for kind in data if kind.startswith("text/"))]
    return "\n".join(parts)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_from_top_to_bottom_and_shows_what_is_stored(
    name: str,
    execute: ModuleType,
    marked: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # no kernels of the user's own
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(FOLDER / name, as_version=4)
    fresh = execute.executed(FOLDER / name, tmp_path, **marked)
    assert outputs(fresh) == outputs(stored)
    verdicts = r"✓ .*|.*follows? from what was signed"
    assert re.findall(verdicts, text_of(fresh)) == re.findall(verdicts, text_of(stored))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored_is_a_whole_run_with_pictures(name: str) -> None:
    path = FOLDER / name
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [kind for cell in outputs(notebook) for kind in cell]
    assert kinds.count("image/png") >= PICTURES
    assert all("/" in kind or kind == "stdout" for kind in kinds)  # neither warnings nor errors


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored_does_not_tell_where_or_when_it_ran(name: str) -> None:
    notebook = nbformat.read(FOLDER / name, as_version=4)
    text = text_of(notebook)
    assert re.search(TELLTALE, text) is None
    assert socket.gethostname() not in text and str(FOLDER.parents[1]) not in text
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_of_a_notebook_lead_somewhere(name: str) -> None:
    for cell in nbformat.read(FOLDER / name, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
                assert target.startswith("https://") or (FOLDER / target).exists(), target


def test_the_page_of_examples_lists_them_all() -> None:
    page = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert sorted(targets) == sorted(set(targets))
    apps = {f"{path.parent.name}/README.md" for path in FOLDER.parent.glob("*/pyproject.toml")}
    assert set(targets) == apps | {f"notebooks/{name}" for name in NOTEBOOKS}
    assert all((FOLDER.parent / target).exists() for target in targets)

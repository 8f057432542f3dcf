"""Run the notebooks of this folder from top to bottom, and keep what they print and draw.

::

    python examples/notebooks/execute.py              # all; or name some
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def executed(path: Path, folder: Path, **environment: str) -> nbformat.NotebookNode:
    """A notebook after a run in a folder, beside the other examples; nothing in it says when or where.

    The kernel's environment is this one's and what is given.
    """
    notebook = nbformat.read(path, as_version=4)
    ignored = shutil.ignore_patterns("runs", "__pycache__", ".*")
    examples = shutil.copytree(FOLDER.parent, folder / "examples", ignore=ignored)
    client = NotebookClient(
        notebook,
        timeout=900,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(examples / FOLDER.name)}},
    )
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    client.execute(env={**os.environ, "PATH": commands, "COLUMNS": "80", **environment})
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Execute the notebooks in place."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        print(path.name)
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)


if __name__ == "__main__":
    main()

"""Put what is in docs/results into docs/results.md: pictures, and the tables between its marks.

    python benchmarks/results.py

A mark is a line such as `<!-- fig5 -->`; what stands between it and `<!-- end -->` is made anew.
"""

import re
from pathlib import Path

from flower_bfl.paper.experiment import read
from flower_bfl.paper.picture import draw
from flower_bfl.paper.results import Results
from flower_bfl.paper.summary import markdown

DOCS = Path(__file__).parents[1] / "docs"
MARK = re.compile(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def results(name: str, folder: Path) -> Results:
    """Of an experiment, or of its small version, as in fig9-quick."""
    experiment = read(name.removesuffix("-quick"))
    return Results(experiment.version("quick") if name.endswith("-quick") else experiment, folder)


def with_tables(text: str, folder: Path) -> str:
    """The page with the tables of what is in the folder."""

    def between(mark: re.Match[str]) -> str:
        name = mark.group(1)
        told = markdown(results(name, folder))
        return f"<!-- {name} -->\n{told}\n<!-- end -->"

    return MARK.sub(between, text)


def main() -> None:
    page = DOCS / "results.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8"), DOCS / "results"), encoding="utf-8")
    for name in MARK.findall(page.read_text(encoding="utf-8")):
        print(draw(results(name, DOCS / "results")))


if __name__ == "__main__":
    main()

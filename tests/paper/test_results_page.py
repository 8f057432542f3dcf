"""docs/results.md says what docs/results holds."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_those_of_the_results():
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    marks = script.MARK.findall(page)
    assert {"fig6", "fig12", "theory", "cost"} <= {*marks}
    assert script.with_tables(page, ROOT / "docs" / "results") == page
    for name in marks:  # nothing was made in passing
        assert (ROOT / "docs" / "results" / f"{name}.csv").stat().st_size > 0

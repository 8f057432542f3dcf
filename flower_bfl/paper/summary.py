"""Results as Markdown: what the paper says, what was measured, and the verdict."""

from flower_bfl.paper.claims import Verdict, signed, verdicts
from flower_bfl.paper.results import Results


def markdown(results: Results) -> str:
    """A line on the runs, and a table with a row for each claim."""
    runs, minutes = len(results.told), results.seconds / 60
    lines = [f"{results.seeds} seeds, {runs} runs, {minutes:.0f} minutes of one core", ""]
    found = verdicts(results)
    if found:
        ours = all(each.claim.source != "paper" for each in found)
        lines += [f"| | {'expected' if ours else 'paper'} | measured | verdict |", "|---|---|---|---|"]
        lines += [_row(each) for each in found]
    return "\n".join(lines)


def _row(verdict: Verdict) -> str:
    claim = verdict.claim
    paper = claim.expect if claim.paper is None else f"{signed(claim.paper)} {claim.unit}".rstrip()
    return f"| {claim.text} | {paper} | {verdict.figure} | {verdict.word} |"

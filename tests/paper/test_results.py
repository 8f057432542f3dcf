"""What is kept of runs: read back as it was written, in one order, and never mistaken for something else."""

import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hand_made import filled, latency, row
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_bfl.errors import ConfigError, RunFolderError
from flower_bfl.paper.results import SECONDS, Results

words = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=' \n"'), max_size=9)
names = words.filter(lambda text: text and not _is_number(text))
floats = st.floats(allow_infinity=False)
cells = st.one_of(floats, st.integers(-(10**14), 10**14), st.booleans(), names)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def same(a: object, b: object) -> bool:
    """As far as a file with seven digits can tell."""
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    assert isinstance(a, int | float) and isinstance(b, int | float)
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return math.isclose(a, b, rel_tol=1e-6)


@settings(max_examples=60)
@given(
    texts=st.lists(words, min_size=1, max_size=3, unique=True),
    numbers=st.lists(
        st.one_of(floats.filter(math.isfinite), st.integers(-5, 5)), min_size=1, max_size=3, unique=True
    ),
    flags=st.lists(st.booleans(), min_size=1, unique=True),
    data=st.data(),
)
def test_what_is_written_is_read_back(texts, numbers, flags, data, tmp_path_factory):
    experiment = latency({"algorithm": texts, "bandwidth-mhz": numbers, "devices": flags})
    folder = tmp_path_factory.mktemp("results")
    written = Results(experiment, folder)
    columns = st.fixed_dictionaries(dict.fromkeys(row(), cells))
    for todo in written.missing(2):
        written.add(todo, data.draw(st.lists(columns, min_size=1, max_size=3)), 1.25)
    read = Results(experiment, folder)
    assert read.missing(2) == [] and read.seeds == 2
    assert [(run.key, run.seed) for run in read.runs] == [(run.key, run.seed) for run in written.runs]
    assert all(
        type(a) is type(b)
        for one, other in zip(read.runs, written.runs, strict=True)
        for a, b in zip(one.key.values(), other.key.values(), strict=True)
    )
    for one, other in zip(read.runs, written.runs, strict=True):
        assert len(one.rows) == len(other.rows)
        for a, b in zip(one.rows, other.rows, strict=True):
            # What is in memory is what is in the file: verdicts are the same today and tomorrow.
            assert a.keys() == b.keys()
            assert all(a[name] == b[name] or (a[name] != a[name] and b[name] != b[name]) for name in a)


@given(value=cells)
def test_rows_keep_seven_digits_and_whole_numbers(value, tmp_path_factory):
    results = Results(latency({"devices": [3]}), tmp_path_factory.mktemp("results"))
    results.add({"devices": 3, "seed": 0}, [row(total_s=value)], 2)
    (kept,) = results.runs[0].rows
    assert same(value, kept["total_s"])
    if isinstance(value, int):
        assert kept["total_s"] == value


def test_numpys_numbers_are_numbers(tmp_path: Path):
    experiment = latency({"devices": [3]})
    values = {"total_s": np.float64(1 / 3), "learning_s": np.float32(0.25), "utility": np.int64(12345678)}
    Results(experiment, tmp_path).add({"devices": 3, "seed": 0}, [row(**values)], 1)
    assert ",0.3333333,0.25,0.5,0.5,12345678,1\n" in (tmp_path / "tiny.csv").read_text()


def test_the_file_does_not_tell_which_run_ended_first(tmp_path: Path):
    experiment = latency({"devices": [3, 5], "algorithm": ["greedy"]})
    todo = Results(experiment, tmp_path / "none").missing(2)
    contents = set()
    for number, order in enumerate(permutations(todo)):
        results = Results(experiment, tmp_path / str(number))
        for place, each in enumerate(order):
            # Read anew halfway, as after a break.
            results = Results(experiment, tmp_path / str(number)) if place == 2 else results
            results.add(each, [row(total_s=each["devices"] / 3, utility=12345678901)] * 2, each["seed"] + 0.1)
        contents.add((tmp_path / str(number) / "tiny.csv").read_bytes())
    assert len(contents) == 1


def test_missing_is_what_no_run_is_there_for(tmp_path: Path):
    experiment = latency()
    results = Results(experiment, tmp_path)
    todo = results.missing(2)
    assert [each["seed"] for each in todo] == [0] * 4 + [1] * 4
    assert todo[1] == {**experiment.settings, "devices": 3, "algorithm": "greedy", "seed": 0}
    for each in (todo[1], todo[6]):
        results.add(each, [row()], 1)
    rest = [each for place, each in enumerate(todo) if place not in (1, 6)]
    assert results.missing(2) == rest
    assert Results(experiment, tmp_path).missing(2) == rest
    assert results.missing(1) == rest[:3]
    assert results.seeds == 0


def test_of_selects_by_setting(tmp_path: Path):
    results = filled(latency(), tmp_path, {(3, "greedy"): [1.0, 2.0], (5, "greedy"): [3.0]})
    assert [(run.key["devices"], run.seed) for run in results.of({"algorithm": "greedy"})] == [
        (3, 0), (5, 0), (3, 1),
    ]  # fmt: skip
    assert results.of({"devices": 4}) == results.of({"nothing": 1}) == []
    assert results.seconds == 3.0


def test_a_seed_that_lacks_runs_is_left_out_once_another_has_all(tmp_path: Path):
    """Else a curve would lack points, and a claim be of other seeds than the picture."""
    keys = [(devices, name) for devices in (3, 5) for name in ("all-local", "greedy")]
    results = filled(latency(), tmp_path, {key: [1.0, 2.0] for key in keys[:3]})
    assert results.seeds == 0 and [run.seed for run in results.of({"algorithm": "greedy"})] == [0, 1]
    results.add({"devices": 5, "algorithm": "greedy", "seed": 1}, [row(total_s=2.0)], 1.0)
    assert results.seeds == 1 and [run.seed for run in results.of({})] == [1, 1, 1, 1]
    assert len(results.runs) == 7


# --- another experiment in the folder -----------------------------------------------------------------------


@pytest.mark.parametrize("held", [{"states": 3}, {"p2p-rounds": 4}, {}])
@pytest.mark.parametrize("now", [{"states": 4}, {"p2p-rounds": 5}])
def test_a_folder_with_other_settings_is_refused(held, now, tmp_path: Path):
    filled(latency(settings=held), tmp_path, {(3, "greedy"): [1.0]})
    before = (tmp_path / "tiny.csv").read_bytes()
    with pytest.raises(ConfigError) as raised:
        Results(latency(settings=now), tmp_path)
    both = {"states": (held.get("states", 2), now.get("states", 2))}
    both["p2p-rounds"] = (held.get("p2p-rounds"), now.get("p2p-rounds"))
    told = [f"must hold runs with {name} = {b} or none" in str(raised.value) for name, (a, b) in both.items()]
    with_ = [str(raised.value).endswith(f"with {a}") for a, _ in both.values()]
    assert any(one and other for one, other in zip(told, with_, strict=True))
    assert (tmp_path / "tiny.csv").read_bytes() == before


def test_data_may_lie_elsewhere(tmp_path: Path):
    made = [latency(settings={"data-folder": name}) for name in ("/a", "/b")]
    filled(made[0], tmp_path, {(3, "greedy"): [1.0]})
    assert len(Results(made[1], tmp_path).runs) == 1
    assert "/a" not in (tmp_path / "tiny.json").read_text()


def test_what_no_run_was_made_of_may_change(tmp_path: Path):
    Results(latency(), tmp_path)
    results = filled(latency(settings={"states": 9}), tmp_path, {(3, "greedy"): [1.0]})
    assert Results(results.experiment, tmp_path).runs == results.runs


def test_runs_that_the_experiment_no_longer_has_stay_and_are_not_counted_for_others(tmp_path: Path):
    filled(latency({"devices": [3, 5]}), tmp_path, {(3,): [1.0], (5,): [2.0]})
    results = Results(latency({"devices": [3, 7]}), tmp_path)
    assert [each["devices"] for each in results.missing(1)] == [7]
    results.add({"devices": 7, "seed": 0}, [row(total_s=4.0)], 1)
    lines = (tmp_path / "tiny.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["devices", "3", "7", "5"]


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path) -> Results:
    runs = {(3, "all-local"): [1.0, 2.0], (5, "all-local"): [3.0, 4.0], (3, "greedy"): [0.5]}
    return filled(latency(), tmp_path, runs)


def test_a_file_that_was_cut_off_is_refused_or_lacks_whole_runs(kept: Results):
    whole = kept.file.read_bytes()
    for size in range(len(whole)):
        kept.file.write_bytes(whole[:size])
        try:
            read = Results(kept.experiment, kept.file.parent)
        except RunFolderError as error:
            assert str(kept.file) in str(error)
        else:
            assert whole[size - 1 : size] == b"\n"
            assert read.runs == kept.runs[: len(read.runs)]
            assert len(read.missing(2)) == 8 - len(read.runs)


HEADER = b"devices,algorithm,seed,total_s,learning_s,mining_s,consensus_s,utility,seconds\n"
GARBAGE = {
    "empty": b"",
    "no text": bytes(range(256)) * 4 + b"\n",
    "zeros": b"\0" * 64 + b"\n",
    "another file": b'{"a": 1}\n',
    "a quotation mark": HEADER + b'"\n',
    "no number": HEADER + b"3,x,y,,,,,,\n",
    "few cells": HEADER + b"3,greedy\n",
    "many cells": HEADER + b"3,greedy,0,,,,,,,,,\n",
    "other columns": b"devices,algorithm,seed,total_s,seconds\n3,greedy,0,1,1\n",
    "a long cell": HEADER + b"3,greedy,0,,,,,," + b"1" * 200_000 + b"\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_and_left_alone(name, kept: Results):
    kept.file.write_bytes(GARBAGE[name])
    with pytest.raises(RunFolderError, match=r"`folder` must hold readable results, got .*tiny\.csv"):
        Results(kept.experiment, kept.file.parent)
    assert kept.file.read_bytes() == GARBAGE[name]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("few cells", "line 2 has 2 cells, not 9"),
        ("many cells", "line 2 has 12 cells, not 9"),
        ("other columns", "its columns are devices, algorithm, seed, total_s, seconds, not devices, "),
    ],
)
def test_it_is_told_what_is_wrong(name, told, kept: Results):
    kept.file.write_bytes(GARBAGE[name])
    with pytest.raises(RunFolderError, match=f"tiny.csv: {told}"):
        Results(kept.experiment, kept.file.parent)


@pytest.mark.parametrize("content", [None, "", "[1]", "null", "{", "\udcff"])
def test_without_a_record_of_the_settings_nothing_is_read(content, kept: Results):
    record = kept.file.with_suffix(".json")
    if content is None:
        record.unlink()
    else:
        record.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RunFolderError, match="`folder` must hold readable results"):
        Results(kept.experiment, kept.file.parent)


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="`folder` must hold readable results"):
        Results(latency(), tmp_path / "file")
    results = Results(latency(), tmp_path / "gone")
    (tmp_path / "gone" / "tiny.json").unlink()
    (tmp_path / "gone").rmdir()
    with pytest.raises(RunFolderError, match="`folder` must be writable"):
        results.add(results.missing(1)[0], [row()], 1)
    assert results.runs == []


def test_experiments_in_one_folder_do_not_meet(tmp_path: Path):
    one = filled(latency(), tmp_path, {(3, "greedy"): [1.0]})
    other = filled(replace(latency(), name="other"), tmp_path, {(5, "greedy"): [2.0]})
    assert [Results(each.experiment, tmp_path).runs for each in (one, other)] == [one.runs, other.runs]
    assert one.runs[0].rows[0][SECONDS] == 1.0

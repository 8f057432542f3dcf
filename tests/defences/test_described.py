import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_bfl.defences import CentredClipping, Deviation, Krum, Median, MultiKrum, TrimmedMean
from flower_bfl.defences._described import described, from_description
from flower_bfl.errors import ConfigError, PayloadError

KNOWN = [
    (Median(), '{"name": "Median"}'),
    (TrimmedMean(), '{"name": "TrimmedMean", "share": 0.2}'),
    (TrimmedMean(0), '{"name": "TrimmedMean", "share": 0.0}'),
    (TrimmedMean(np.float64(0.1)), '{"name": "TrimmedMean", "share": 0.1}'),
    (Krum(1 / 3), '{"name": "Krum", "share": 0.3333333333333333}'),
    (MultiKrum(0.25), '{"name": "MultiKrum", "share": 0.25}'),
    (CentredClipping(2, steps=5), '{"name": "CentredClipping", "radius": 2.0, "steps": 5}'),
    (Deviation(1e-5), '{"name": "Deviation", "threshold": 1e-05}'),
]


@pytest.mark.parametrize(("defence", "text"), KNOWN)
def test_a_defence_is_described_in_canonical_json_and_made_from_it_again(defence, text):
    assert described(defence) == text
    again = from_description(text)
    assert again == defence and type(again) is type(defence)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "0.2",
        '"Median"',
        "{}",
        "{",
        "Median",
        '{"name": null}',
        '{"name": ["Median"]}',
        '{"name": {"Median": 1}}',
        '{"name": "Mean"}',
        '{"name": "object"}',
        '{"name": "__class__"}',
        '{"name": "Median", "share": 0.2}',
        '{"name": "TrimmedMean"}',
        '{"name": "TrimmedMean", "share": 0.2, "steps": 1}',
        '{"name": "TrimmedMean", "radius": 0.2}',
        '{"name": "TrimmedMean", "self": 0.2}',
        '{"name": "TrimmedMean", "share": "0.2"}',
        '{"name": "TrimmedMean", "share": null}',
        '{"name": "TrimmedMean", "share": [0.2]}',
        '{"name": "TrimmedMean", "share": {}}',
        '{"name": "TrimmedMean", "share": true}',
        '{"name": "TrimmedMean", "share": NaN}',
        '{"name": "TrimmedMean", "share": -Infinity}',
        '{"name": "TrimmedMean", "share": 1e999}',
        '{"name": "TrimmedMean", "share": 0.5}',
        '{"name": "TrimmedMean", "share": 0}',  # 0.0 is how it is written
        '{"name": "TrimmedMean", "share": 0.20}',
        '{"name": "TrimmedMean", "share": 2e-1}',
        '{"name": "TrimmedMean", "share": 0.2000000000000000001}',
        '{"share": 0.2, "name": "TrimmedMean"}',
        '{"name":"TrimmedMean","share":0.2}',
        '{"name": "TrimmedMean", "share": 0.1, "share": 0.2}',
        '{"name": "TrimmedMean", "share": 0.2} ',
        '{"name": "Median"}\x00',
        '{"name": "\\u004dedian"}',
        '{"name": "CentredClipping", "radius": 1.0, "steps": 1.0}',
        '{"name": "CentredClipping", "radius": 1.0, "steps": true}',
        '{"name": "CentredClipping", "radius": 1, "steps": 1}',
        '{"name": "Deviation", "threshold": Infinity}',
        '{"name": "Deviation", "threshold": 1' + "0" * 400 + "}",
        '{"name": "Deviation", "threshold": 1' + "0" * 3_000 + "}",  # would be quoted at length
        '{"name": "Deviation", "threshold": 1' + "0" * 10_000 + "}",
        "[" * 900,
        "[" * 1_000_000,
        '{"name": ' * 100 + "1" + "}" * 100,
        " " * 1_000_000,
        "\ud800",
    ],
    ids=lambda text: ascii(text[:45]),
)
def test_anything_else_is_refused(text):
    with pytest.raises(PayloadError) as caught:
        from_description(text)
    assert len(str(caught.value)) < 1500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["Median", "TrimmedMean", "Krum", "MultiKrum", "CentredClipping", "Deviation"])
fields = st.dictionaries(st.sampled_from(["share", "radius", "steps", "threshold"]), json_values, max_size=2)


@given(st.text() | st.builds(lambda n, f: json.dumps({"name": n, **f}, sort_keys=True), names, fields))
def test_a_strangers_text_gives_a_defence_that_is_described_by_it_or_an_error(text):
    try:
        defence = from_description(text)
    except PayloadError:
        return
    assert described(defence) == text


class Other(TrimmedMean):
    """Would be taken for what it is not."""


Fake = type("Median", (), {})


@pytest.mark.parametrize("thing", [None, "Median", TrimmedMean, Other(), Fake(), 0.2])
def test_what_is_no_defence_is_not_described(thing):
    with pytest.raises(ConfigError, match="`defence` must be one of Median, TrimmedMean, Krum"):
        described(thing)

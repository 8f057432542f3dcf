"""Defences as text for the ledger, and back: canonical JSON such as {"name": "Median"}."""

import dataclasses
import json
from typing import Any

from flower_bfl.defences.deviation import Deviation
from flower_bfl.defences.replay import Replay
from flower_bfl.defences.robust import CentredClipping, Krum, Median, MultiKrum, TrimmedMean
from flower_bfl.errors import ConfigError, PayloadError

# What an auditor makes from a stranger's text: these and nothing else. Fields are float, int or str.
_CLASSES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Median,
        TrimmedMean,
        Krum,
        MultiKrum,
        CentredClipping,
        Deviation,
        Replay,
    )
}

_LONGEST = 1000  # characters; far more than any description has


def described(defence: object) -> str:
    """Canonical JSON of a defence: its class's name and its fields, keys sorted, floats by repr.

    Raises:
        ConfigError: not a defence that can be described.
    """
    name = type(defence).__name__
    if _CLASSES.get(name) is not type(defence):
        raise ConfigError(f"`defence` must be one of {', '.join(_CLASSES)}, got {defence!r}")
    fields = {}
    for field in dataclasses.fields(_CLASSES[name]):
        value = getattr(defence, field.name)
        fields[field.name] = float(value) if field.type is float else value
    return json.dumps({"name": name, **fields}, sort_keys=True, allow_nan=False)


def from_description(text: str) -> object:
    """The defence that `described` wrote.

    Raises:
        PayloadError: not canonical, not a known defence, or a field is missing, unknown or breaks a rule.
    """
    try:
        content = json.loads(text) if len(text) <= _LONGEST else None
    except (ValueError, RecursionError):
        content = None
    kind = _CLASSES.get(str(content.get("name"))) if isinstance(content, dict) else None
    if not isinstance(content, dict) or kind is None:
        raise PayloadError(
            f"a defence's description must name one of {', '.join(_CLASSES)}, got {text[:80]!r}"
        )
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {name: value for name, value in content.items() if name != "name"}
    if values.keys() != types.keys():
        raise PayloadError(
            f"a description of {kind.__name__} must have the fields {sorted(types)}, got {text[:80]!r}"
        )
    try:
        defence: object = kind(**values)
    except ConfigError as error:
        raise PayloadError(f"a defence's description breaks a rule: {error}") from error
    # Also tells 1 from 1.0, two keys of one name, spaces and other ways to write the same.
    if described(defence) != text:
        raise PayloadError(f"a defence's description must be {described(defence)!r}, got {text[:80]!r}")
    return defence

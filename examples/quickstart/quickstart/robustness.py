"""Attacks and defences by name, from the run's settings."""

from typing import Any

from flower_bfl import ConfigError, attacks, defences

ATTACKS = {
    "gaussian-noise": attacks.GaussianNoise,
    "sign-flip": attacks.SignFlip,
    "scaling": attacks.Scaling,
    "a-little-is-enough": attacks.ALittleIsEnough,
    "inner-product": attacks.InnerProduct,
    "old-value": attacks.OldValue,
    "silence": attacks.Silence,
    "equivocation": attacks.Equivocation,
    "label-flip": attacks.LabelFlip,
    "backdoor": attacks.Backdoor,
}
DEFENCES = {"replay": defences.Replay, "deviation": defences.Deviation}
EDGE_RULES = {
    "median": defences.Median,
    "trimmed-mean": defences.TrimmedMean,
    "krum": defences.Krum,
    "centred-clipping": defences.CentredClipping,
}


def chosen_attacks(config: dict[str, Any]) -> list[attacks.Attack]:
    """One attack for each edge server that is compromised, and one for all devices that are."""
    if not config["attack"]:
        return []
    kind = _named("attack", config["attack"], ATTACKS)
    rounds = _numbers("attack-rounds", config) or None
    step = config["attack-step"]
    place = step if step == "model" else _number("attack-step", step)
    found = [kind(server=m, rounds=rounds, p2p_step=place) for m in _numbers("attacked-servers", config)]
    if devices := _numbers("attacked-devices", config):
        found.append(kind(devices=devices, rounds=rounds))
    if not found:
        raise ConfigError("`attack` needs `attacked-servers` or `attacked-devices`, got neither")
    return found


def chosen_defences(config: dict[str, Any]) -> list[defences.Defence]:
    """The defences, by names with spaces between them."""
    return [_named("defence", name, DEFENCES)() for name in config["defence"].split()]


def chosen_edge_rule(config: dict[str, Any]) -> defences.EdgeRule | None:
    """What takes the mean's place at the edge servers, if anything does."""
    name = config["edge-rule"]
    return _named("edge-rule", name, EDGE_RULES)() if name else None


def _named(setting: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise ConfigError(f"`{setting}` must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def _numbers(setting: str, config: dict[str, Any]) -> list[int]:
    return [_number(setting, word) for word in config[setting].split()]


def _number(setting: str, word: str) -> int:
    if not word.isdecimal():
        raise ConfigError(f"`{setting}` must be whole numbers with spaces between them, got {word!r}")
    return int(word)

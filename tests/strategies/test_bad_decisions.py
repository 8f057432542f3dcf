"""Controllers that fail or decide what cannot be: the nearest that can be is done, and the round says so."""

from dataclasses import fields, replace

import numpy as np
import pytest
from checked_run import DEVICES, SENT_TO, SERVERS, checked_run, usual
from field import Sending, roomy, silent, when

from flower_bfl import ConfigError, ConsensusBFL
from flower_bfl.network import Decision


class Spoiled(Sending):
    """Its decisions are changed on their way, each round in another way, then no more."""

    def __init__(self, *changes):
        super().__init__(roomy(DEVICES, SERVERS), SENT_TO)
        self._changes = iter(changes)

    def decide(self, state):
        return next(self._changes, lambda own, state: own)(super().decide(state), state)


def other(**values):
    """One value of a decision, or all of its values, changed."""

    def change(own, state):
        new = {name: np.array(getattr(own, name)) for name in values}
        for name, (where, value) in values.items():
            new[name][where] = value
        return replace(own, **new)

    return change


def AS_IT_IS(own, state):  # noqa: N802
    return own


def breaking(own, state):
    raise RuntimeError("no idea")


def mutating(own, state):
    for each in fields(state):
        getattr(state, each.name)[:] = 1e-3
    return replace(own, cpu_hz=np.full(DEVICES, 1e15))


ALL_ALONE, WITHOUT_0, NEAREST = ((), ()), ((1,), (2,)), ((0, 1), (2,))
BAD_DECISIONS = [
    ("raises", breaking, "the controller failed: RuntimeError('no idea')", ALL_ALONE),
    ("nothing", lambda own, state: None, "`decide` must return a Decision, got None", ALL_ALONE),
    ("text", lambda own, state: "all local", "`decide` must return a Decision, got 'all local'", ALL_ALONE),
    ("NaN", other(power_w=(0, np.nan)), "`power_w` must be a number, got nan for device 0", ALL_ALONE),
    ("fewer devices", lambda own, state: own.permuted([0, 1, 2]), "must have shape (5,)", ALL_ALONE),
    ("a batch", lambda own, state: Decision.stack([own], (1,)), "must have shape (5,)", ALL_ALONE),
    (
        "no slot",
        other(slot=(0, 99)),
        "(28b) device 0: `slot` must be -1 or one of 0..9, got 99",
        ((1,), (2,)),
    ),
    ("below no slot", other(slot=(0, -7)), "(28b) device 0", WITHOUT_0),
    ("one slot twice", other(slot=(0, 1)), "(28c) device 1: a slot must have one device", WITHOUT_0),
    ("no power", other(power_w=(0, 0.0)), "(28d) device 0: `power_w` must be from 0.01 to 1 W", NEAREST),
    ("infinite power", other(power_w=(0, np.inf)), "(28d) device 0", NEAREST),
    (
        "bandwidth",
        other(bandwidth_hz=(0, 19e6)),
        "(28e) edge server 0: bandwidths must sum to at most",
        NEAREST,
    ),
    ("negative bandwidth", other(bandwidth_hz=(0, -1.0)), "(28e) device 0", NEAREST),
    ("CPU", other(cpu_hz=(3, 1e15)), "(28f) device 3", NEAREST),
    ("no CPU", other(cpu_hz=(3, 0.0)), "(28f) device 3", NEAREST),
    ("hash rate", other(hash_rate=(slice(None), 1e13)), "(28g) device 0", NEAREST),
    ("no hash rate", other(hash_rate=(2, 0.0)), "(28g) device 2", NEAREST),
    ("changes its state", mutating, "(28f) device 3", NEAREST),
]


def test_a_decision_that_cannot_be_is_replaced(tmp_path, caplog):
    controller = Spoiled(*(change for _, change, _, _ in BAD_DECISIONS))
    strategy, _ = checked_run(tmp_path, controller=controller, rounds=len(BAD_DECISIONS) + 1)
    for k, (what, _, reason, expected) in enumerate(BAD_DECISIONS, start=1):
        report = strategy.reports[k]
        assert reason in report.fallback, what
        assert f"round {k}: {report.fallback}" in caplog.text
        assert report.server_data == expected
        assert (report.devices, report.train["controller-fallback"]) == (DEVICES, 1)
    assert usual(strategy.reports[-1]) and not strategy.reports[-1].fallback


def test_a_fallback_names_devices_by_their_own_numbers(tmp_path):
    """The controller is shown four devices, and its second one is device 2."""
    faults = {1: when("query.report", silent, rounds=[2])}
    strategy, _ = checked_run(tmp_path, faults=faults, controller=Spoiled(AS_IT_IS, other(power_w=(1, 0.0))))
    assert "(28d) device 1: `power_w` must be" in strategy.reports[2].fallback
    assert strategy.reports[2].fallback.endswith("; its device 1 is device 2")


# -- arguments -------------------------------------------------------------------------------------------


class Ill:
    decide = "not a method"


ARGUMENTS = [
    ({"controller": "random"}, "`controller` must be an object with a method `decide`, got 'random'"),
    ({"controller": Sending}, "`controller` must be an object with a method `decide`, got <class"),
    ({"controller": Ill()}, "`controller` must be an object with a method `decide`, got <"),
    ({"controller": object(), "network": roomy(5, 2)}, "`controller` must be an object with a method"),
    ({"controller": None, "network": roomy(5, 2)}, "`network` needs a `controller`, got none"),
    ({"network": "Table IV"}, "`network` must be a NetworkConfig, or the controller's own, got 'Table IV'"),
    ({"network": roomy(5, 3)}, "`network` must have as many edge servers as `edge_servers`, 2, got 3"),
    (
        {"network": roomy(5, 2, 4)},
        "`network` must have the controller's edge servers and sub-channels, 2 of 5, got",
    ),
    (
        {"most_offloaded_bytes": 0},
        "`most_offloaded_bytes` must be a whole number from 1 to 2147483647, got 0",
    ),
    ({"most_offloaded_bytes": 1e6}, "`most_offloaded_bytes` must be a whole number .* got 1000000.0"),
    ({"exchange_timeout_s": 0}, "`exchange_timeout_s` must be a positive number, got 0"),
    ({"exchange_timeout_s": float("nan")}, "`exchange_timeout_s` must be a positive number, got nan"),
    ({"exchange_timeout_s": "soon"}, "`exchange_timeout_s` must be a positive number, got 'soon'"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_arguments_that_break_a_rule(arguments, message):
    given = {"edge_servers": 2, "controller": Sending(roomy(5, 2), {})} | arguments
    with pytest.raises(ConfigError, match=message):
        ConsensusBFL(**given)

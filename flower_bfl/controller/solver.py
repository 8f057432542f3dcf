"""Controllers that solve the round: a fast one by assignment, and a near-optimal one by search from there."""

from dataclasses import dataclass

import numpy as np

from flower_bfl.config import check_whole_number
from flower_bfl.controller.allocation import Situation
from flower_bfl.controller.assignment import assign_at_prices
from flower_bfl.controller.bound import lower_bound_s
from flower_bfl.controller.heuristics import AllLocalController, GreedyController
from flower_bfl.controller.search import search
from flower_bfl.errors import ConfigError
from flower_bfl.network import Decision, NetworkConfig, NetworkState, Price, price


@dataclass(frozen=True)
class Solution:
    """A decision for one state, what it costs, and what no decision can beat."""

    decision: Decision
    price: Price
    learning_bound_s: float  # below the learning latency of every decision, learning_s of the price

    @property
    def latency_s(self) -> float:
        """The objective (28a): learning, consensus and mining."""
        return float(self.price.total_s)

    @property
    def lower_bound_s(self) -> float:
        """Below the objective of every decision; consensus and mining are as short as they can be."""
        return self.learning_bound_s + float(self.price.consensus_s + self.price.mining_total_s)

    @property
    def gap(self) -> float:
        """Learning latency above its bound, as a share of the bound; the optimum is in between."""
        return float(self.price.learning_s) / self.learning_bound_s - 1


class _Solver:
    """Solves each state for itself, with the devices in an order of its own: their numbers do not matter."""

    kicks: int  # how often the search goes on

    def __init__(self, network: NetworkConfig) -> None:
        self.network = network

    def decide(self, state: NetworkState) -> Decision:
        """A feasible decision for a state, or for each of a batch."""
        if not state.batch:
            return self._decide_one(state)
        return Decision.stack([self._decide_one(state[row]) for row in np.ndindex(state.batch)], state.batch)

    def solve(self, state: NetworkState) -> Solution:
        """The decision for one state with its price and a lower bound; raises ConfigError for a batch."""
        if state.batch:
            raise ConfigError(f"`state` must be one state, got a batch of shape {state.batch}")
        decision = self._decide_one(state)
        priced = price(self.network, state, decision)
        bound_s = lower_bound_s(Situation.of(self.network, state), float(priced.learning_s))
        return Solution(decision, priced, bound_s)

    def _decide_one(self, state: NetworkState) -> Decision:
        order = np.argsort(Situation.of(self.network, state).own_s, kind="stable")
        situation = Situation.of(self.network, state.permuted(order))
        rng = np.random.default_rng(0)  # the same kicks for each state: the decision depends on it alone
        found = search(situation, assign_at_prices(situation), self.kicks, rng).decision(situation)
        # Hardly any energy or signal can leave the search stuck where these are not.
        simple = (
            kind(self.network).decide(situation.state) for kind in (GreedyController, AllLocalController)
        )
        best = min((found, *simple), key=lambda one: self._learning_s(situation, one))
        return best.permuted(np.argsort(order))

    def _learning_s(self, situation: Situation, decision: Decision) -> float:
        return float(price(self.network, situation.state, decision).learning_s)


class AssignmentController(_Solver):
    """Assigns at prices of bandwidth and interference, then moves one or two devices as long as that helps.

    About a per cent above `NearOptimalController`, in tens of milliseconds a state.
    """

    kicks = 0


class NearOptimalController(_Solver):
    """Searches on from there, `kicks` times from near what it has: the mark for learned policies."""

    def __init__(self, network: NetworkConfig, kicks: int = 60) -> None:
        super().__init__(network)
        check_whole_number("kicks", kicks, 0, 2**31 - 1)
        self.kicks = kicks

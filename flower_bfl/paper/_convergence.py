"""Theorem 1 on a problem whose constants are known: what a run comes to, and what (13) says of it.

Devices with quadratic losses, other data at every edge server, mini-batch SGD, the real ConsensusBFL.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_bfl import AutoRounds, ConsensusBFL, MemoryLedger, Mining
from flower_bfl.config import check_whole_number
from flower_bfl.errors import ConfigError
from flower_bfl.network import edge_graph, mixing_matrix, spectral_radius
from flower_bfl.paper._in_process import quiet, run_rounds
from flower_bfl.paper.experiment import Settings
from flower_bfl.strategies.convergence import (
    Bound,
    LossConstants,
    RoundConstants,
    bound,
    gradient_divergence,
    largest_scale,
    step_size,
)
from flower_bfl.types import Floats

COLUMNS: Final = (
    "measured", "last", "bound", "share_of_bound", *(term.name for term in fields(Bound)),
    "phi", "phi_least", "phi_most", "transactions",
)  # fmt: skip

_PARAMETERS: Final = 20
_XI: Final = 0.1  # of ‖∇F(w_0)‖²


def check(settings: Settings) -> None:
    """Raise ConfigError if such a run cannot be made."""
    graph: Any = settings["graph"]  # which it checks
    edge_graph(graph, int(settings["edge-servers"]))
    check_whole_number("rounds", settings["rounds"], 1, 10**6)
    check_whole_number("limit-at", settings["limit-at"], 1, int(settings["rounds"]))
    _p2p_rounds(str(settings["steps"]), 1.0)


@quiet()
def run(settings: Settings) -> list[dict[str, Any]]:
    """The run and its bound.

    `limit-at` is the K for which the step size is the largest that Theorem 1 allows; for any other it is that
    times √(limit-at/K). `steps` are "auto", "xi", which is a ξ that stays, or a number φ.
    """
    servers, rounds, seed = (int(settings[name]) for name in ("edge-servers", "rounds", "seed"))
    problem = quadratic(int(settings["devices"]), servers)
    loss, limit_at = problem.loss(), int(settings["limit-at"])
    scale = largest_scale(loss, [problem.round()] * limit_at)
    devices = Devices(problem, step_size(scale, rounds, problem.round()), seed)
    graph: Any = settings["graph"]
    strategy = ConsensusBFL(
        edge_servers=servers,
        graph=graph,
        p2p_rounds=_p2p_rounds(str(settings["steps"]), _XI * problem.squared_gradient(problem.start)),
        association=problem.servers.tolist(),
        learning_rate=devices.learning_rate,
        ledger=MemoryLedger(),
        mining=Mining(difficulty_bits=1),
        seed=seed,
        fraction_evaluate=0.0,
    )
    squared: list[float] = []  # ‖∇F(w_k)‖², k = 0..K

    def note(_: int, arrays: ArrayRecord) -> None:
        squared.append(problem.squared_gradient(_weights(arrays)))

    run_rounds(strategy, devices.client_app, len(problem.data), _record(problem.start), rounds, note)
    reports = strategy.reports[1:]
    phi = [report.p2p_rounds for report in reports]
    radius = spectral_radius(mixing_matrix("laplacian", edge_graph(graph, servers)))
    constants = [
        problem.round(servers=servers, radius=radius, p2p_rounds=taken, divergence=divergence)
        for taken, divergence in zip(phi, devices.divergences(servers), strict=True)
    ]
    says, measured = bound(loss, constants, scale), float(np.mean(squared[:-1]))
    return [
        {"measured": measured, "last": squared[-1]}
        | {"bound": says.total, "share_of_bound": measured / says.total, **asdict(says)}
        | {"phi": float(np.mean(phi)), "phi_least": min(phi), "phi_most": max(phi)}
        | {"transactions": sum(report.ledger.transactions for report in reports)}
    ]


def _p2p_rounds(steps: str, xi: float) -> int | AutoRounds:
    if steps == "auto":
        return AutoRounds()
    if steps == "xi":
        return AutoRounds(xi, absolute=True)
    if not steps.isdecimal():
        raise ConfigError(f"`steps` must be 'auto', 'xi' or a number, got {steps!r}")
    return int(steps)


# --- the problem ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Quadratic:
    """f(w, d) = ½ (w − d)ᵀ A (w − d), A = diag(curvature): β = Θ = its largest, ζ1 = 1, F* known."""

    curvature: Floats  # (p,)
    data: Sequence[Floats]  # of each device, (D_y, p)
    servers: np.ndarray[Any, np.dtype[np.int64]]  # of each device, its edge server
    steps: np.ndarray[Any, np.dtype[np.int64]]  # e_y
    batch: np.ndarray[Any, np.dtype[np.int64]]  # B_y
    start: Floats  # w_0

    @property
    def samples(self) -> Floats:
        """D_y, (n,)."""
        return np.array([len(own) for own in self.data], np.float64)

    @property
    def best(self) -> Floats:
        """Where F is least: the mean of all data."""
        return np.asarray(self.samples @ self._means / self.samples.sum())

    def squared_gradient(self, weights: Floats) -> float:
        """‖∇F(w)‖²."""
        gradient = self.curvature * (weights - self.best)
        return float(gradient @ gradient)

    def loss(self) -> LossConstants:
        """β, ζ1, ζ2 for the shares D_y/D, the only coefficients in the proof, and F(w_0) − F*."""
        away, apart = self.start - self.best, self.curvature * (self._means - self.best)
        zeta2 = float(self.samples / self.samples.sum() @ (apart**2).sum(axis=1))
        gap = float(away @ (self.curvature * away)) / 2
        return LossConstants(float(self.curvature.max()), gap, 1.0, zeta2)

    def round(self, **agreement: Any) -> RoundConstants:
        """What is the same in every round, and how the edge servers agreed in this one."""
        variance = np.array([own.var(axis=0, ddof=1).sum() for own in self.data])
        theta = float(self.curvature.max())
        return RoundConstants(self.samples, self.steps, self.batch, variance, theta, **agreement)

    @property
    def _means(self) -> Floats:
        return np.stack([own.mean(axis=0) for own in self.data])


def quadratic(devices: int, servers: int, seed: int = 0) -> Quadratic:
    """Other data at every edge server, data sets, batches and numbers of steps of several sizes."""
    rng = np.random.default_rng(seed)
    homes = rng.standard_normal((servers, _PARAMETERS))
    at = np.arange(devices) % servers
    data = [
        homes[server] + 0.5 * rng.standard_normal(_PARAMETERS) + rng.standard_normal((size, _PARAMETERS))
        for server, size in zip(at, rng.integers(40, 200, devices), strict=True)
    ]
    steps, batch = rng.integers(1, 6, devices), rng.integers(5, 21, devices)
    curvature, start = np.linspace(0.2, 1.0, _PARAMETERS), np.full(_PARAMETERS, 2.0)
    return Quadratic(curvature, data, at, steps, batch, start)


# --- the devices ------------------------------------------------------------------------------------------


class Devices:
    """All devices of a run, each a node: they take mini-batch SGD steps, and note what these come to."""

    def __init__(self, problem: Quadratic, learning_rate: float, seed: int) -> None:
        self.learning_rate = learning_rate  # η
        self.client_app = ClientApp()
        self.client_app.train()(self._on_train)
        self._problem = problem
        self._seed = seed
        self._gradients: dict[int, dict[int, Floats]] = {}  # by round and device, (7) by its share in (8)

    def divergences(self, servers: int) -> list[float]:
        """Ξ_k of each round: how far the partial aggregates (8) are apart."""
        found = []
        for _, gradients in sorted(self._gradients.items()):
            sums = np.zeros((servers, self._problem.start.size))
            for device, gradient in sorted(gradients.items()):
                sums[self._problem.servers[device]] += gradient
            found.append(gradient_divergence(sums))
        return found

    def trained(self, device: int, server_round: int, before: Floats) -> Floats:
        """The weights after a device's e_y steps."""
        problem, own = self._problem, self._problem.data[device]
        rng = np.random.default_rng([self._seed, device, server_round])
        weights = before.copy()
        for _ in range(problem.steps[device]):
            batch = own[rng.choice(len(own), problem.batch[device], replace=False)]
            weights -= self.learning_rate * problem.curvature * (weights - batch.mean(axis=0))
        return weights

    def _on_train(self, message: Message, context: Context) -> Message:
        content: Any = message.content
        device, server_round = int(context.node_config["partition-id"]), content["config"]["server-round"]
        before = _weights(content["arrays"])
        weights = self.trained(device, server_round, before)
        samples, steps = len(self._problem.data[device]), int(self._problem.steps[device])
        share = samples / self._problem.samples.sum() / steps
        gradient = share * (before - weights) / self.learning_rate
        self._gradients.setdefault(server_round, {})[device] = gradient
        told = MetricRecord({"num-examples": samples, "num-steps": steps, "device-index": device})
        return Message(RecordDict({"arrays": _record(weights), "metrics": told}), reply_to=message)


def _record(weights: Floats) -> ArrayRecord:
    return ArrayRecord({"w": Array(weights.astype(np.float32))})


def _weights(arrays: ArrayRecord) -> Floats:
    return arrays["w"].numpy().astype(np.float64)

"""What the paper proves of a run: Theorem 1 with its step sizes and bound (13), Corollary 1. Pure numpy.

Constants of a loss are found or estimated by whoever asks. docs/theory.md says what each term means, how the
bound was checked against its proof, and where this differs from the paper: term (d) is for M·x_m, which (12)
uses, and not for x_m, and rounds with different numbers of SGD steps weigh the terms differently.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from flower_bfl.config import check_whole_number
from flower_bfl.errors import ConfigError
from flower_bfl.types import Floats

Leader = Literal["drawn", "any"]
"""Whose state becomes the model: of an edge server drawn evenly, or of whichever is worst."""


@dataclass(frozen=True)
class LossConstants:
    """What Assumptions 2 and 3 say of the losses, and where the run begins. F is in units of the loss."""

    smoothness: float  # β of (15), loss / weight²
    initial_gap: float  # F(w_0) − F*, loss
    dissimilarity: float = 1.0  # ζ1 of (17), at least 1
    dissimilarity_offset: float = 0.0  # ζ2 of (17), (loss / weight)²

    def __post_init__(self) -> None:
        for name, least, met in (
            ("smoothness", "positive", self.smoothness > 0),
            ("initial_gap", "at least 0", self.initial_gap >= 0),
            ("dissimilarity", "at least 1", self.dissimilarity >= 1),
            ("dissimilarity_offset", "at least 0", self.dissimilarity_offset >= 0),
        ):
            if not met or not math.isfinite(getattr(self, name)):
                raise ConfigError(f"`{name}` must be {least} and finite, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class RoundConstants:
    """One round: who trains how, shape (n,) each, and how the edge servers agree.

    Raises ConfigError for shapes that differ and numbers out of range.
    """

    samples: ArrayLike  # D_y
    steps: ArrayLike  # e_y, SGD steps
    batch: ArrayLike  # B_y, samples a step, drawn without replacement; D_y: no noise
    variance: ArrayLike = 0.0  # σ_y², the sample variance (divisor D_y − 1) of the data, (18)
    variability: ArrayLike = 0.0  # Θ_y of (18), (loss / weight) / data
    servers: int = 1  # M
    radius: float = 0.0  # λ
    p2p_rounds: int = 0  # φ
    divergence: float = 0.0  # Ξ of (14), loss / weight
    drift: float = 0.0  # Δ of Definition 3, loss; of round 0 it does not count

    def __post_init__(self) -> None:
        samples = np.asarray(self.samples, np.float64)
        for name in ("samples", "steps", "batch", "variance", "variability"):
            array = np.asarray(getattr(self, name), np.float64)
            if samples.ndim != 1 or not samples.size or array.shape not in ((), samples.shape):
                raise ConfigError(f"`{name}` must have shape {samples.shape or '(n,)'}, got {array.shape}")
            least = 0.0 if name in ("variance", "variability") else 1.0
            if not (np.isfinite(array) & (array >= least)).all():
                raise ConfigError(f"`{name}` must be finite and at least {least:g}, got {array.tolist()}")
            object.__setattr__(self, name, np.broadcast_to(array, samples.shape))
        if (np.asarray(self.batch) > samples).any():
            raise ConfigError(f"`batch` must be at most `samples`, got {np.asarray(self.batch).tolist()}")
        check_whole_number("servers", self.servers, 1, 2**16 - 1)
        check_whole_number("p2p_rounds", self.p2p_rounds, 0, 2**16 - 1)
        if not 0 <= self.radius <= 1:
            raise ConfigError(f"`radius` must be in [0, 1], got {self.radius}")
        if not 0 <= self.divergence < math.inf:
            raise ConfigError(f"`divergence` must be at least 0 and finite, got {self.divergence}")

    @property
    def share(self) -> Floats:
        """D_y / D, shape (n,)."""
        samples = np.asarray(self.samples, np.float64)
        return np.asarray(samples / samples.sum())

    @property
    def mean_steps(self) -> float:
        """e_avg = Σ_y e_y / N."""
        return float(np.mean(np.asarray(self.steps, np.float64)))

    @property
    def mean_steps_of_a_sample(self) -> float:
        """ê_avg = Σ_y D_y e_y / D, which is τ of (11)."""
        return float(self.share @ np.asarray(self.steps, np.float64))

    @property
    def most_steps(self) -> float:
        """e_max."""
        return float(np.max(np.asarray(self.steps)))

    @property
    def noise(self) -> Floats:
        """(1 − B_y/D_y) σ_y²/B_y Θ_y²: at least the variance of a mini-batch's gradient, Lemma 2, (n,)."""
        samples, batch = (np.asarray(each, np.float64) for each in (self.samples, self.batch))
        spread = np.asarray(self.variance, np.float64) * np.asarray(self.variability, np.float64) ** 2
        return np.asarray((1 - batch / samples) / batch * spread)


@dataclass(frozen=True)
class Bound:
    """The terms of (13), in (loss / weight)²; the total bounds the mean of E‖∇F(w_k)‖² over K rounds."""

    initial: float  # the way from F(w_0) to F*
    drift: float  # (a): data that change between rounds
    local_noise: float  # (b): mini-batch noise that moves local models apart
    heterogeneity: float  # (c): local losses that differ
    consensus: float  # (d): edge servers that have not agreed
    noise: float  # (e): mini-batch noise in the sum itself

    @property
    def total(self) -> float:
        """All of (13)."""
        return math.fsum(getattr(self, term.name) for term in fields(self))


def step_size_limit(loss: LossConstants, now: RoundConstants) -> float:
    """The most that η_k may be in Theorem 1: min{½β⁻¹ ((4ζ1+1) e_max (e_max−1))^(−½), D / (2β Σ D_y e_y)}."""
    beta, most = loss.smoothness, now.most_steps
    of_the_sum = 1 / (2 * beta * now.mean_steps_of_a_sample)
    if most == 1:
        return of_the_sum
    return min(of_the_sum, 1 / (2 * beta * math.sqrt((4 * loss.dissimilarity + 1) * most * (most - 1))))


def step_size(scale: float, rounds: int, now: RoundConstants) -> float:
    """η_k of Theorem 1: `scale`, the paper's alpha in weight² / loss, over √(K e_avg); `rounds` is K."""
    return scale / math.sqrt(rounds * now.mean_steps)


def largest_scale(loss: LossConstants, rounds: Sequence[RoundConstants]) -> float:
    """The largest scale that Theorem 1 allows in K such rounds; it is allowed in more of them, too."""
    return min(step_size_limit(loss, now) * math.sqrt(len(rounds) * now.mean_steps) for now in rounds)


def bound(
    loss: LossConstants, rounds: Sequence[RoundConstants], scale: float, *, leader: Leader = "drawn"
) -> Bound:
    """(13) term by term, for K rounds with the step sizes `step_size` of this scale.

    Raises ConfigError without a round, and for a scale with which a step size is above its limit.
    """
    if not rounds:
        raise ConfigError("`rounds` must be at least one, got none")
    count, beta = len(rounds), loss.smoothness
    for k, now in enumerate(rounds):
        eta, limit = step_size(scale, count, now), step_size_limit(loss, now)
        if not 0 < eta <= limit * (1 + 1e-12):
            raise ConfigError(
                f"`scale` must keep η of round {k} in (0, {limit:.6g}], got {eta:.6g} from {scale:.6g}"
            )
    means = [now.mean_steps for now in rounds]
    weighted = [now.mean_steps_of_a_sample for now in rounds]
    descent = 8 * math.sqrt(max(means)) / (scale * min(weighted) * math.sqrt(count))
    # The proof adds up η_k τ_k ‖∇F‖² and then divides: 1 if all rounds take as many SGD steps.
    uneven = max(weighted) / min(weighted) * math.sqrt(max(means) / min(means))
    local = uneven * 80 * (beta * scale) ** 2 / (count**2 * min(means))
    direct = uneven * 16 * beta * scale * max(weighted) / (count**1.5 * math.sqrt(min(means)))
    return Bound(
        initial=descent * loss.initial_gap,
        drift=descent * math.fsum(now.drift for now in rounds[1:]),
        local_noise=local * math.fsum(_local_noise(now) for now in rounds),
        heterogeneity=local
        * loss.dissimilarity_offset
        * math.fsum(now.most_steps * (now.most_steps - 1) for now in rounds),
        consensus=uneven * 12 / count * math.fsum(_consensus_error(now, leader) for now in rounds),
        noise=direct * math.fsum(_noise_of_the_sum(now) for now in rounds),
    )


def _local_noise(now: RoundConstants) -> float:
    return float(now.share @ ((np.asarray(now.steps, np.float64) - 1) * now.noise))


def _noise_of_the_sum(now: RoundConstants) -> float:
    return float((now.share**2 / np.asarray(now.steps, np.float64)) @ now.noise)


def _consensus_error(now: RoundConstants, leader: Leader) -> float:
    """At most E‖M·x_m − Σa‖² of the leader m; E is over the draw of the leader."""
    return _error_weight(now.servers, leader) * (now.radius**now.p2p_rounds * now.divergence) ** 2


def _error_weight(servers: int, leader: Leader) -> float:
    """What λ^(2φ) Ξ² is multiplied by.

    Σ_m ‖a_m − mean‖² is at most (M−1)/2 Ξ² (a regular simplex reaches it), and shrinks by λ² a step. The
    estimate is M·x_m: times M² for the worst m, M on average.
    """
    return (servers if leader == "drawn" else servers**2) * (servers - 1) / 2


def gradient_divergence(partials: ArrayLike) -> float:
    """Ξ of (14): the largest distance between two partial aggregates a_m. (m, p)."""
    rows = np.asarray(partials, np.float64)
    return max((float(np.linalg.norm(rows[m + 1 :] - row, axis=1).max()) for m, row in enumerate(rows[:-1])),
               default=0.0)  # fmt: skip


def consensus_steps(
    radius: float, divergence: float, servers: int, rounds: int, xi: float, *, leader: Leader = "drawn"
) -> int:
    """φ_k of Corollary 1: the fewest steps with which term (d) of the round is at most 24 ξ/√K.

    `radius` is λ, `divergence` Ξ_k, `rounds` K, `xi` ξ in (loss / weight)². The paper's weight of λ^(2φ) Ξ²
    is M, the one here half of what the error of M·x_m can be. Raises ConfigError if no number is enough.
    """
    if not xi > 0:
        raise ConfigError(f"`xi` must be positive, got {xi}")
    error = _error_weight(servers, leader) / 2 * divergence**2
    if error > xi / math.sqrt(rounds) and not 0 <= radius < 1:
        raise ConfigError(f"`radius` must be in [0, 1) for edge servers to agree, got {radius}")
    steps = 0
    while error > xi / math.sqrt(rounds):
        error, steps = error * radius**2, steps + 1
    return steps

"""What the edge network is made of; the defaults are the paper's Table IV, as docs/network-model.md reads it.

Every range is a pair (least, most). Decibels, bits and hertz are in the names.
"""

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from flower_bfl.config import check_whole_number
from flower_bfl.errors import ConfigError, FlowerBFLError, InfeasibleError

Objective = Literal["sum", "makespan"]
Sharing = Literal["shared", "per_device"]
MiningTotal = Literal["sum", "fastest", "race"]
Range = tuple[float, float]
Array = NDArray[np.float64]

_LONGEST = 1 << 15  # bytes of a file: tomllib takes time by the square of a key
_LARGEST = sys.float_info.max
_DECIBELS = 1000.0  # either way, so that no power and no noise is 0 or infinite as a float
_TOLERANCE = 1e-9  # relative, for sums of floats


@dataclass(frozen=True)
class Radio:
    """The wireless links between devices and edge servers, (20)."""

    bandwidth_hz: float = 20e6  # W, of each edge server
    sharing: Sharing = "shared"  # Σ b <= W at each edge server, or the paper's letter (28e): each b <= W
    power_dbm: Range = (10.0, 30.0)  # transmit power (28d)
    noise_dbm_hz: float = -174.0  # N0
    noise_figure_db: float = 1.0  # NF
    interference: bool = True  # between devices on one sub-channel of different edge servers
    area_m: float = 1000.0  # side of the square that devices are in
    loss_at_km_db: float = 140.7
    loss_per_decade_db: float = 36.7
    shadowing_db: float = 8.0  # standard deviation
    fading_correlation: float = 0.9  # of the Rayleigh fading from one round to the next

    def __post_init__(self) -> None:
        _check_positive(self, "bandwidth_hz", "area_m")
        for name in ("noise_dbm_hz", "noise_figure_db", "loss_at_km_db"):
            _check_number(name, getattr(self, name), "from -1000 to 1000 dB", -_DECIBELS, _DECIBELS)
        _check_not_negative(self, "loss_per_decade_db", "shadowing_db")
        _check_range("power_dbm", self.power_dbm, "from -1000 to 1000 dBm", -_DECIBELS, _DECIBELS)
        _check_choice("sharing", self.sharing, get_args(Sharing))
        _check_choice("interference", self.interference, (True, False))
        _check_number("fading_correlation", self.fading_correlation, "in [0, 1]", 0.0, 1.0)

    @property
    def power_w(self) -> Range:
        """Least and most transmit power in watts."""
        least, most = self.power_dbm
        return 10 ** (least / 10 - 3), 10 ** (most / 10 - 3)

    @property
    def noise_w_hz(self) -> float:
        """N0·NF, noise power per hertz."""
        return float(10 ** ((self.noise_dbm_hz + self.noise_figure_db) / 10 - 3))


@dataclass(frozen=True)
class Tasks:
    """What devices have to compute in a round, and with what, (22)."""

    data_bits: Range = (4e6, 16e6)  # D_n, 0.5 to 2 MB
    work_cycles: Range = (0.7e9, 1.1e9)  # C_n, for the whole local task
    cpu_hz: Range = (0.2e9, 2e9)  # F_n(t), what the device can give
    energy_slack_j: Range = (2.0, 10.0)  # E_max - E_gen, what mining leaves for learning (28h)
    energy_coefficient: float = 5e-27  # κ
    drift: float = 0.1  # a round's change in data, work and CPU, standard deviation as share of the range
    battery: bool = False  # what a round does not spend is there in the next
    battery_capacity_j: float = 20.0

    def __post_init__(self) -> None:
        _check_positive_range(self, "data_bits", "work_cycles", "cpu_hz", "energy_slack_j")
        _check_positive(self, "energy_coefficient", "battery_capacity_j")
        _check_not_negative(self, "drift")
        _check_choice("battery", self.battery, (True, False))
        if self.battery and self.battery_capacity_j < self.energy_slack_j[1]:
            raise ConfigError(
                f"`battery_capacity_j` must be at least {self.energy_slack_j[1]}, "
                f"which a round may bring, got {self.battery_capacity_j}"
            )


@dataclass(frozen=True)
class Blocks:
    """How long a block takes to mine, (27)."""

    total: MiningTotal = "sum"  # Σ T_n as in the paper, the fastest T_n, or the race of all: ħ/ΣΨ
    hash_rate: Range = (0.1e12, 1e12)  # Ψ_n, hashes a second
    total_hash_rate: float = 20e12  # Ψ_max, of all devices together (28g)
    work_hashes: float = 50e9  # ħ
    energy_per_hash_j: float = 5e-8  # Ξ_n
    propagation_s: float = 0.005  # ξ, per entity that checks the block
    forks: float = 3.0  # ζ, how often a round forks

    def __post_init__(self) -> None:
        _check_choice("total", self.total, get_args(MiningTotal))
        _check_positive_range(self, "hash_rate")
        _check_positive(self, "total_hash_rate", "work_hashes", "forks")
        _check_not_negative(self, "energy_per_hash_j", "propagation_s")

    @property
    def energy_j(self) -> float:
        """E_gen = Ξ·ħ, what mining a block takes of each device."""
        return self.energy_per_hash_j * self.work_hashes


@dataclass(frozen=True)
class NetworkConfig:
    """N devices, M edge servers with G sub-channels each, and what a round costs them (20)-(31).

    Raises:
        ConfigError: a field breaks a rule.
        InfeasibleError: the hash budget is less than what N devices take at the least.
    """

    devices: int = 30  # N
    edge_servers: int = 5  # M
    sub_channels: int = 5  # G, of each edge server; one device a sub-channel
    objective: Objective = "sum"  # over devices as in the paper, or the slowest path
    edge_cpu_hz: float | tuple[float, ...] = 5e9  # f_m, of all edge servers or of each
    edge_link_bps: float = 50e6  # between edge servers: 5 MHz at 10 bit/s/Hz
    p2p_rounds: int = 5  # φ
    model_bits: float = 40e3  # ϑ, 5 KB; the real model's size is 32 bits a parameter
    latency_bound_s: float = 3.0  # τ_n, so that τ = 3 s · N in (31)
    server_positions_m: tuple[tuple[float, float], ...] | None = None  # from the centre; None: see below
    radio: Radio = field(default_factory=Radio)
    tasks: Tasks = field(default_factory=Tasks)
    blocks: Blocks = field(default_factory=Blocks)

    def __post_init__(self) -> None:
        for name, least in (("devices", 1), ("edge_servers", 1), ("sub_channels", 1), ("p2p_rounds", 0)):
            check_whole_number(name, getattr(self, name), least, 2**16 - 1)
        _check_choice("objective", self.objective, get_args(Objective))
        _check_positive(self, "edge_link_bps", "model_bits", "latency_bound_s")
        self._check_servers()
        for name, part in _PARTS.items():
            if not isinstance(getattr(self, name), part):
                raise ConfigError(f"`{name}` must be a {part.__name__}, got {getattr(self, name)!r}")
        needed, budget = self.devices * float(self.blocks.hash_rate[0]), float(self.blocks.total_hash_rate)
        if needed > budget * (1 + _TOLERANCE):
            raise InfeasibleError(
                f"(28g): {self.devices} devices take at least {needed:.4g} hashes/s, "
                f"`total_hash_rate` must not be less, got {budget:.4g}"
            )

    def _check_servers(self) -> None:
        speeds, servers = self.edge_cpu_hz, self.edge_servers
        rule = f"a positive number, or a tuple of {servers}, one for each edge server"
        if isinstance(speeds, tuple) and len(speeds) != servers:
            raise ConfigError(f"`edge_cpu_hz` must be {rule}, got {speeds}")
        for speed in speeds if isinstance(speeds, tuple) else (speeds,):
            _check_number("edge_cpu_hz", speed, rule, 0.0, strict=True)
        places = self.server_positions_m
        if places is None:
            return
        rule = f"a tuple of {servers} pairs of finite numbers, one for each edge server"
        if not isinstance(places, tuple) or len(places) != servers:
            raise ConfigError(f"`server_positions_m` must be {rule}, got {places}")
        for place in places:
            if not isinstance(place, tuple) or len(place) != 2:
                raise ConfigError(f"`server_positions_m` must be {rule}, got {place} in it")
            for metres in place:
                _check_number("server_positions_m", metres, rule)

    @property
    def slots(self) -> int:
        """M·G, how many devices can offload in one round; slot m·G + g is sub-channel g of edge server m."""
        return self.edge_servers * self.sub_channels

    @property
    def edge_speeds_hz(self) -> Array:
        """f_m, shape (M,)."""
        return np.broadcast_to(np.asarray(self.edge_cpu_hz, dtype=np.float64), (self.edge_servers,))

    @property
    def latency_limit_s(self) -> float:
        """τ of (31)."""
        return self.latency_bound_s * self.devices

    @property
    def places_m(self) -> Array:
        """Where the edge servers are, metres from the centre, shape (M, 2).

        Unless given: 1 in the centre, 5 in the centre and at (±350, ±350), others on a circle of 350 m.
        """
        if self.server_positions_m is not None:
            return np.asarray(self.server_positions_m, dtype=np.float64)
        scale = self.radio.area_m / 1000
        if self.edge_servers == 1:
            return np.zeros((1, 2))
        if self.edge_servers == 5:
            return 350 * scale * np.array([(0, 0), (1, 1), (-1, 1), (-1, -1), (1, -1)], dtype=np.float64)
        angles = 2 * np.pi * np.arange(self.edge_servers) / self.edge_servers
        return 350 * scale * np.stack([np.cos(angles), np.sin(angles)], axis=1)

    @classmethod
    def from_toml(cls, path: Path | str) -> Self:
        """Read a network; what the file leaves out is as in Table IV.

        Raises:
            ConfigError: the file cannot be read, is no TOML, has an unknown name or breaks a rule.
        """
        try:
            with Path(path).open("rb") as file:
                text = file.read(_LONGEST + 1)
            if len(text) > _LONGEST:
                raise ValueError(f"longer than {_LONGEST} bytes")
            return cls.from_dict(tomllib.loads(text.decode()))
        except FlowerBFLError:
            raise
        except (OSError, ValueError, RecursionError) as error:  # also a number of 5,000 digits
            raise ConfigError(f"`path` must be a readable TOML file, got {path} ({error})") from error

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; what is left out is as in Table IV."""
        given = dict(table)
        for name, part in _PARTS.items():
            if name in given:
                if not isinstance(given[name], Mapping):
                    raise ConfigError(f"`{name}` must be a table of settings, got {given[name]!r}")
                given[name] = _build(part, given[name], f"{name}.")
        made: Self = _build(cls, given, "")
        return made

    def to_dict(self) -> dict[str, Any]:
        """All settings, as plain numbers, strings, lists and tables; what is None is left out."""
        return {name: _plain(value) for name, value in asdict(self).items() if value is not None}

    def to_toml(self) -> str:
        """The text that `from_toml` reads."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())


_PARTS: dict[str, type] = {"radio": Radio, "tasks": Tasks, "blocks": Blocks}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _build(kind: type, given: Mapping[str, Any], prefix: str) -> Any:
    known = {each.name for each in fields(kind)}
    for name in given:
        if name not in known:
            raise ConfigError(f"`{prefix}{name}` is no setting of a network, known are {sorted(known)}")
    try:
        return kind(**{name: _tuples(value) for name, value in given.items()})
    except ConfigError as error:
        # Every message begins with a name; the reader of a file looks for the one that is written there.
        raise ConfigError(str(error).replace("`", f"`{prefix}", 1)) from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        _check_number(name, getattr(owner, name), "positive and finite", 0.0, strict=True)


def _check_not_negative(owner: object, *names: str) -> None:
    for name in names:
        _check_number(name, getattr(owner, name), "finite and not negative", 0.0)


def _check_positive_range(owner: object, *names: str) -> None:
    for name in names:
        _check_range(name, getattr(owner, name), "positive and finite", 0.0, strict=True)


def _check_number(
    name: str,
    value: object,
    rule: str,
    least: float = -_LARGEST,
    most: float = _LARGEST,
    *,
    strict: bool = False,
) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or (strict and value == least):  # type: ignore[operator]
        raise ConfigError(f"`{name}` must be {rule}, got {value!r}")


def _check_range(
    name: str, value: object, rule: str, least: float, most: float = _LARGEST, *, strict: bool = False
) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ConfigError(f"`{name}` must be a pair (least, most), got {value!r}")
    for end in value:
        _check_number(name, end, f"a pair of numbers {rule}", least, most, strict=strict)
    if value[0] > value[1]:
        raise ConfigError(f"`{name}` must be a pair (least, most), got {value}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"`{name}` must be one of {choices}, got {value!r}")

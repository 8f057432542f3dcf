"""The network as a map: edge servers, devices, links, and who belonged where in each round."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flower_bfl.report import Round, round_numbers
from flower_bfl.report_page._events import numbers

WIDTH, HEIGHT = 360.0, 320.0
_CENTRE = (WIDTH / 2, HEIGHT / 2)
_MARGIN = 20.0
_SERVERS_AT, _DEVICES_AT = 78.0, 116.0  # from the centre
_MOST_DEVICES = 300  # that are drawn
_NUMBERED = 40  # devices that get their number
_MOST_SERVERS = 64

Point = tuple[float, float]


@dataclass(frozen=True)
class RoundMap:
    """A round on the map: devices by edge server."""

    number: int
    own: tuple[tuple[int, ...], ...]  # that trained themselves
    data: tuple[tuple[int, ...], ...]  # that sent their data
    leader: int | None
    barred: tuple[int, ...]


@dataclass(frozen=True)
class NetworkMap:
    """Where everything is, in a box of 360 by 320, and the rounds."""

    servers: tuple[Point, ...]
    devices: Mapping[int, Point]  # empty if they are too many to draw
    count: int  # of devices
    links: tuple[tuple[int, int], ...]
    rounds: tuple[RoundMap, ...]
    measured: bool  # devices stand where they are, not where there is room

    @property
    def numbered(self) -> bool:
        """Whether there is room for the devices' numbers."""
        return len(self.devices) <= _NUMBERED

    def compact(self) -> dict[str, object]:
        """For the page's script."""
        drawn = bool(self.devices)
        return {
            "servers": self.servers,
            "devices": {str(device): at for device, at in self.devices.items()},
            "rounds": [
                [
                    one.number,
                    one.own if drawn else [len(own) for own in one.own],
                    one.data if drawn else [len(data) for data in one.data],
                    one.leader,
                    one.barred,
                ]
                for one in self.rounds
            ],
        }


@dataclass(frozen=True)
class Positions:
    """Where a run's network has its edge servers and devices, metres from the centre."""

    area_m: float
    servers_m: tuple[Point, ...]
    devices_m: tuple[Point, ...]


def read_positions(folder: Path) -> Positions | None:
    """What `network.json` in the run folder says; None if there is none that can be used."""
    try:
        file = folder / "network.json"
        if file.is_symlink() or not file.is_file():
            return None  # such as a pipe, which nobody may ever write to
        told = json.loads(file.read_text(encoding="utf-8"))
        servers, devices = (
            tuple((float(x), float(y)) for x, y in told[key]) for key in ("edge_servers_m", "devices_m")
        )
        area_m = float(told["area_m"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    if not all(math.isfinite(value) for value in (area_m, *(x for at in servers + devices for x in at))):
        return None
    return Positions(area_m, servers, devices)


def network_map(
    rounds: Sequence[Round], links: Sequence[tuple[int, int]], servers: int, positions: Positions | None
) -> NetworkMap | None:
    """The map of a run with so many edge servers; None if there are none, or too many for one."""
    shown = tuple(
        _round_map(number, one)
        for number, one in zip(round_numbers(list(rounds)), rounds, strict=True)
        if number > 0 and (one.get("server_devices") or one.get("server_data"))
    )
    if not 0 < servers <= _MOST_SERVERS or not shown:
        return None
    homes = _homes(shown, servers)
    measured = (
        positions is not None
        and len(positions.servers_m) == servers
        and len(positions.devices_m) > max(homes, default=0)
    )
    drawn = homes if len(homes) <= _MOST_DEVICES else {}
    if measured and positions is not None:
        at, devices = _to_scale(positions, sorted(drawn))
    else:
        at = _circle(servers)
        devices = _around(at, drawn)
    known = tuple((a, b) for a, b in links if a < servers and b < servers)
    return NetworkMap(at, devices, len(homes), known, shown, measured)


def _round_map(number: int, one: Round) -> RoundMap:
    leader = one.get("leader")
    return RoundMap(
        number,
        _groups(one.get("server_devices")),
        _groups(one.get("server_data")),
        leader if type(leader) is int else None,
        tuple(numbers(one.get("quarantined"))),
    )


def _groups(found: object) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(numbers(each)) for each in found) if isinstance(found, list) else ()


def _homes(rounds: Sequence[RoundMap], servers: int) -> dict[int, int]:
    """The edge server that each device belonged to first: later ones may stand in for it."""
    found: dict[int, int] = {}
    for one in rounds:
        for groups in (one.own, one.data):
            for server, devices in enumerate(groups[:servers]):
                for device in devices:
                    found.setdefault(device, server)
    return dict(sorted(found.items()))


def _circle(servers: int) -> tuple[Point, ...]:
    """The first at the top, the others clockwise; one alone in the centre."""
    if servers == 1:
        return (_CENTRE,)
    return tuple(_polar(_angle(server, servers), _SERVERS_AT) for server in range(servers))


def _around(servers: Sequence[Point], homes: Mapping[int, int]) -> dict[int, Point]:
    """Devices outside of their edge servers, in arcs of the server's sector."""
    space = 18.0 if len(homes) <= _NUMBERED else 9.0
    sector = 2 * math.pi / len(servers) * (0.86 if len(servers) > 1 else 1.0)
    found: dict[int, Point] = {}
    for server in range(len(servers)):
        waiting = [device for device, home in homes.items() if home == server]
        radius = _DEVICES_AT if len(servers) > 1 else 60.0
        while waiting:
            fit = max(1, int(sector * radius / space))
            row, waiting = waiting[:fit], waiting[fit:]
            step = min(sector / len(row), 1.6 * space / radius)
            for place, device in enumerate(row):
                turn = (place - (len(row) - 1) / 2) * step
                found[device] = _polar(_angle(server, len(servers)) + turn, radius)
            radius += space
    return found


def _to_scale(positions: Positions, devices: Sequence[int]) -> tuple[tuple[Point, ...], dict[int, Point]]:
    """North is up; everything fits, also what lies outside of the area."""
    every = (*positions.servers_m, *(positions.devices_m[device] for device in devices))
    reach_m = max(positions.area_m / 2, *(abs(x) for at in every for x in at), 1e-9)
    scale = (min(WIDTH, HEIGHT) / 2 - _MARGIN) / reach_m

    def place(at: Point) -> Point:
        return round(_CENTRE[0] + scale * at[0], 1), round(_CENTRE[1] - scale * at[1], 1)

    servers = tuple(map(place, positions.servers_m))
    return servers, {device: place(positions.devices_m[device]) for device in devices}


def _angle(server: int, servers: int) -> float:
    return 2 * math.pi * server / servers - math.pi / 2


def _polar(angle: float, radius: float) -> Point:
    return round(_CENTRE[0] + radius * math.cos(angle), 1), round(_CENTRE[1] + radius * math.sin(angle), 1)

"""Who is there before a round: devices and edge servers as they report themselves."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_bfl.errors import ReplyError
from flower_bfl.types import DeviceReport, LeftOut

REPORT = "query.report"
_RECORD = "flower-bfl"
GONE = (3, 4, 5, 8)  # Flower's error codes of nodes that are not there, or fell over
_REPORTED = {"work-cycles": "work_cycles", "cpu-hz": "cpu_hz", "energy-slack-j": "energy_slack_j"}
_ONCE = "another node reports that it is the same, got both"


@dataclass(frozen=True)
class Reported:
    """A device, and what it says of itself this round."""

    node: int
    samples: int
    data_bytes: int
    told: DeviceReport = field(default_factory=DeviceReport)


@dataclass(frozen=True)
class Fleet:
    """Everybody who is there in a round."""

    devices: Mapping[int, Reported] = field(default_factory=dict)  # by index
    servers: Mapping[int, int] = field(default_factory=dict)  # node of each edge server that is there
    plain: Collection[int] = ()  # nodes that do not report: their devices always train themselves
    left_out: tuple[LeftOut, ...] = ()

    @property
    def device_nodes(self) -> list[int]:
        """Nodes that can be asked to train on their own data."""
        return [*(device.node for device in self.devices.values()), *self.plain]


class RollCall:
    """Asks nodes who they are, round by round, and remembers which of them do not answer that."""

    def __init__(self, edge_servers: int, timeout_s: float) -> None:
        self._edge_servers = edge_servers
        self._timeout_s = timeout_s
        self._plain: set[int] = set()
        self._names: dict[int, str] = {}  # of the nodes that reported before
        self._owners: dict[tuple[str, int], int] = {}

    def take(self, server_round: int, nodes: Iterable[int], grid: Grid) -> Fleet:
        """The nodes' answers."""
        nodes = list(nodes)
        asked = [node for node in nodes if node not in self._plain]
        config = {"server-round": server_round, "edge-servers": self._edge_servers}
        messages = [
            Message(RecordDict({"config": ConfigRecord(dict(config))}), node, REPORT) for node in asked
        ]
        replies = list(grid.send_and_receive(messages, timeout=self._timeout_s)) if messages else []
        left_out: list[LeftOut] = []
        silent = set(asked)
        claims: dict[tuple[str, int], list[tuple[int, ConfigRecord]]] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if not reply.has_error():
                silent.discard(node)
                try:
                    record = cast(ConfigRecord, reply.content[_RECORD])
                    claims.setdefault(self._claim(record), []).append((node, record))
                except (KeyError, ReplyError) as error:
                    left_out.append(LeftOut(self._name(node), f"its report must be readable, got {error}"))
            elif reply.error.code not in GONE:
                silent.discard(node)
                if node in self._names:
                    left_out.append(LeftOut(self._name(node), f"it failed to report: {reply.error.reason}"))
                else:
                    self._plain.add(node)
        left_out += [LeftOut(self._name(node), "no report in time") for node in sorted(silent)]
        return self._fleet(claims, [node for node in nodes if node in self._plain], left_out)

    def _claim(self, record: ConfigRecord) -> tuple[str, int]:
        role, index = record["role"], record["index"]
        most = self._edge_servers if role == "edge-server" else 2**31
        if role not in ("device", "edge-server") or not isinstance(index, int) or not 0 <= index < most:
            raise ReplyError(f"{role!r} with index {index!r} of {self._edge_servers} edge servers")
        return role, index

    def _fleet(
        self,
        claims: Mapping[tuple[str, int], list[tuple[int, ConfigRecord]]],
        plain: Collection[int],
        left_out: list[LeftOut],
    ) -> Fleet:
        """One node for each claim: who had it before keeps it, two newcomers are both left out."""
        devices: dict[int, Reported] = {}
        servers: dict[int, int] = {}
        for claim, claimants in sorted(claims.items(), key=lambda item: item[0]):
            owners = [each for each in claimants if each[0] == self._owners.get(claim)] or claimants
            if len(owners) > 1:
                owners = []
            left_out += [
                LeftOut(f"node {node}", f"{claim[0]} {claim[1]}: {_ONCE}")
                for node, _ in claimants
                if node not in [owner for owner, _ in owners]
            ]
            for node, record in owners:
                role, index = claim
                name = f"device {index}" if role == "device" else f"edge server {index}"
                self._owners[claim], self._names[node] = node, name
                if role == "edge-server":
                    servers[index] = node
                    continue
                try:
                    devices[index] = self._reported(node, record)
                except ReplyError as error:
                    left_out.append(LeftOut(name, str(error)))
        return Fleet(devices, servers, plain, tuple(left_out))

    def _reported(self, node: int, record: ConfigRecord) -> Reported:
        samples, size = record.get("num-examples"), record.get("data-bytes")
        if not isinstance(samples, int) or not isinstance(size, int) or min(samples, size) < 0:
            raise ReplyError(f"a report must say 'num-examples' and 'data-bytes', got {samples!r}, {size!r}")
        if samples == 0:
            raise ReplyError("it has no samples this round")
        told: dict[str, float] = {}
        for key, name in _REPORTED.items():
            if key in record:
                told[name] = _positive(key, record[key])
        gains = record.get("gain-db")
        if gains is not None and not (
            isinstance(gains, list)
            and len(gains) == self._edge_servers
            and all(isinstance(gain, float | int) and -250 <= gain <= 0 for gain in gains)
        ):
            raise ReplyError(f"'gain-db' must be {self._edge_servers} numbers from -250 to 0, got {gains!r}")
        may = record.get("may-offload", True) is True
        return Reported(node, samples, size, DeviceReport(may, gain_db=cast(list[float], gains), **told))

    def _name(self, node: int) -> str:
        return self._names.get(node, f"node {node}")


def _positive(key: str, value: object) -> float:
    if not isinstance(value, float | int) or not 1e-3 <= value <= 1e18:
        raise ReplyError(f"{key!r} must be a number from 0.001 to 1e18, got {value!r}")
    return float(value)

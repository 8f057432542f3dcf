"""Who is there before a round: devices and edge servers as they report themselves."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from flower_bfl.errors import ReplyError
from flower_bfl.strategies._replies import Asked
from flower_bfl.types import OWN_RECORD, REPORT, DeviceReport, LeftOut

_RAISED = 2  # Flower's error code of an app that raised, as one does that was never taught the question
_DEVICE, _SERVER = "device", "edge-server"
_REPORTED = {"work-cycles": "work_cycles", "cpu-hz": "cpu_hz", "energy-slack-j": "energy_slack_j"}

Claim = tuple[str, int]  # role and index


@dataclass(frozen=True)
class Reported:
    """A device, and what it says of itself this round."""

    node: int
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
    """Asks nodes who they are, round by round, and remembers what each is."""

    def __init__(self, edge_servers: int, key: str, timeout_s: float) -> None:
        self._edge_servers = edge_servers
        self._key = key  # of the config in messages
        self._timeout_s = timeout_s
        self._plain: set[int] = set()
        self._claims: dict[int, Claim] = {}  # what each node is that reported before
        self._owners: dict[Claim, int] = {}  # the node that was last the only one

    def take(self, nodes: Iterable[int], config: ConfigRecord, grid: Grid) -> Fleet:
        """The nodes' answers; `config` is what they are told of the round."""
        nodes = list(nodes)
        asked = [node for node in nodes if node not in self._plain]
        messages = [self._question(node, config) for node in asked]
        refused = dict.fromkeys(asked, "no report in time")
        claims: dict[Claim, dict[int, ConfigRecord]] = {}
        replies = grid.send_and_receive(messages, timeout=self._timeout_s) if messages else ()
        for reply in Asked(messages).replies(replies):
            node = reply.metadata.src_node_id
            if reply.has_error() and reply.error.code == _RAISED and node not in self._claims:
                self._plain.add(node)
                del refused[node]
                continue
            try:
                claim, record = self._read(node, reply)
                claims.setdefault(claim, {})[node] = record
                del refused[node]
            except ReplyError as error:
                refused[node] = str(error)
        return self._fleet(claims, [node for node in nodes if node in self._plain], refused)

    def is_device(self, node: int) -> bool:
        """Whether the node is known to be a device, also if it is left out of this round."""
        return node in self._plain or self._claims.get(node, ("", 0))[0] == _DEVICE

    def _question(self, node: int, config: ConfigRecord) -> Message:
        asked = ConfigRecord({**config, "edge-servers": self._edge_servers})
        return Message(RecordDict({self._key: asked}), dst_node_id=node, message_type=REPORT)

    def _read(self, node: int, reply: Message) -> tuple[Claim, ConfigRecord]:
        """What the node says it is, and the rest; raises ReplyError."""
        if reply.has_error():
            raise ReplyError(f"it did not report: {reply.error.reason:.200}")
        if (record := reply.content.config_records.get(OWN_RECORD)) is None:
            raise ReplyError(f"a report must hold {OWN_RECORD!r}, got {sorted(reply.content)!s:.80}")
        role, index = record.get("role"), record.get("index")
        if "failed" in record and role is None:
            raise _failed(record)
        most = self._edge_servers if role == _SERVER else 2**31
        if role not in (_DEVICE, _SERVER) or not _is_whole(index) or not 0 <= index < most:
            rule = f"{_DEVICE!r} or {_SERVER!r} with an index, of {self._edge_servers} edge servers"
            raise ReplyError(f"a report must be of a {rule}, got {role!r:.80} with {index!r:.80}")
        claim = str(role), index
        if self._claims.get(node, claim) != claim:
            raise ReplyError(f"it must stay what it was, got a report of {_name(claim)}")
        return claim, record

    def _fleet(
        self,
        claims: Mapping[Claim, Mapping[int, ConfigRecord]],
        plain: Collection[int],
        refused: dict[int, str],
    ) -> Fleet:
        """One node for each claim: who had it before keeps it, two newcomers are both left out."""
        devices: dict[int, Reported] = {}
        servers: dict[int, int] = {}
        for claim, claimants in sorted(claims.items()):
            owners = [node for node in claimants if self._owners.get(claim) == node] or [*claimants]
            if len(claimants) > 1:
                rule = f"it must be the only node that is {_name(claim)}, got {len(claimants)} such nodes"
                refused |= {node: rule for node in claimants if [node] != owners}
            if len(owners) > 1:
                continue
            node, (role, index) = owners[0], claim
            self._owners[claim], self._claims[node] = node, claim
            try:
                if role == _SERVER:
                    servers[index] = node
                else:
                    devices[index] = self._reported(node, claimants[node])
            except ReplyError as error:
                refused[node] = str(error)
        known = sorted((claim, node) for node, claim in self._claims.items() if node in refused)
        left_out = [LeftOut(_name(claim), refused.pop(node)) for claim, node in known]
        left_out += [LeftOut(f"node {node}", reason) for node, reason in sorted(refused.items())]
        return Fleet(devices, servers, plain, tuple(left_out))

    def _reported(self, node: int, record: ConfigRecord) -> Reported:
        """What a device says of itself; raises ReplyError."""
        if "failed" in record:
            raise _failed(record)
        if record.get("num-examples") == 0:
            raise ReplyError("it has no samples this round")
        _count(record, "num-examples")
        size = _count(record, "data-bytes")
        told = {
            name: _number(key, record[key], 1e-3, 1e18) for key, name in _REPORTED.items() if key in record
        }
        gain_db = None
        if "gain-db" in record:
            gains = record["gain-db"]
            if not isinstance(gains, list) or len(gains) != self._edge_servers:
                raise ReplyError(f"'gain-db' must be {self._edge_servers} numbers, got {gains!r:.80}")
            gain_db = [_number("gain-db", gain, -250, 0) for gain in gains]
        may = record.get("may-offload") is True
        return Reported(node, size, DeviceReport(may, gain_db=gain_db, **told))


def _name(claim: Claim) -> str:
    role, index = claim
    return f"{role.replace('-', ' ')} {index}"


def _failed(record: ConfigRecord) -> ReplyError:
    return ReplyError(f"it could not report: {record['failed']!s:.200}")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(record: ConfigRecord, key: str) -> int:
    if not _is_whole(count := record.get(key)) or not 1 <= count <= 2**53:
        raise ReplyError(f"{key!r} must be a whole number from 1 to 2**53, got {count!r:.80}")
    return count


def _number(key: str, value: object, least: float, most: float) -> float:
    if not isinstance(value, float | int) or isinstance(value, bool) or not least <= value <= most:
        raise ReplyError(f"{key!r} must be from {least:g} to {most:g}, got {value!r:.80}")
    return float(value)

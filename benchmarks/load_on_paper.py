"""What a run of load.py writes to its ledger, by docs/ledger.md and without the package's help."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flower_bfl.defences import Replay, described
from flower_bfl.types import RoundReport

SHAPE = (100, 200)
SERVERS, STEPS = 5, 5  # M and φ
PIECE = 80_000  # bytes of a payload in one transaction
VARIANTS = ("auto", "full", "memory", "on-ledger", "offloading", "attack")


@dataclass(frozen=True)
class Setting:
    """A run.  variant : one of VARIANTS.  shape : of the model's only array, float32."""

    rounds: int = 500
    devices: int = 50
    variant: str = "auto"
    servers: int = SERVERS
    steps: int = STEPS
    shape: tuple[int, int] = SHAPE
    fsync: bool = True


def samples_of(device: int) -> int:
    return 90 + 7 * device


def steps_of(device: int) -> int:
    return 1 + device % 4


@dataclass(frozen=True)
class Size:
    """What a run writes: transactions, bytes of payload on the chain and beside it, gas, the chain's file."""

    transactions: int
    calldata_bytes: int
    stored_bytes: int
    gas: float = 0.0
    file_bytes: float = 0.0


def encoded_bytes(
    metadata: Mapping[str, object], arrays: Mapping[str, tuple[str, tuple[int, ...], int]]
) -> int:
    """Length of a payload with this metadata and these arrays: type, shape and bytes of each."""
    members = []
    if metadata:
        told = ",".join(f'"{name}":"{metadata[name]}"' for name in sorted(metadata))
        members.append(f'"__metadata__":{{{told}}}')
    begin = 0
    for name, (dtype, shape, size) in arrays.items():
        sides = ",".join(map(str, shape))
        end = begin + size
        members.append(f'"{name}":{{"dtype":"{dtype}","shape":[{sides}],"data_offsets":[{begin},{end}]}}')
        begin = end
    return 8 + -(-len("{" + ",".join(members) + "}") // 8) * 8 + begin


Groups = Sequence[Sequence[int]]  # devices of each edge server


def opening_sizes(setting: Setting) -> list[int]:
    """Bytes of RULES and of the initial model."""
    rules: dict[str, object] = {"format": "flower-bfl 5", "strategy": "FedAvg"}
    mixing = {}
    if setting.variant != "on-ledger":
        m = setting.servers
        mixing = {"mixing": ("F64", (m, m), 8 * m**2)}
        rules |= {"strategy": "ConsensusBFL", "edge-servers": m, "p2p-rounds": setting.steps}
        rules |= {"mass": "count", "leader": "random", "learning-rate": "1.0"}
    if setting.variant == "attack":
        rules["defences"] = described(Replay()).replace('"', '\\"')
    return [encoded_bytes(rules, mixing), encoded_bytes({"round": 0}, model(setting))]


def round_sizes(
    setting: Setting, k: int, report: RoundReport | None = None, senders: Iterable[int] = ()
) -> list[int]:
    """Bytes of a round's payloads, the seal's too, which has none; `senders` are those of any data so far.

    Who sends data where, and who accuses whom, is the report's; without one, nobody does.
    """
    in_turn = [range(m, setting.devices, setting.servers) for m in range(setting.servers)]
    summed: Groups = in_turn if report is None or not report.server_devices else report.server_devices
    unions: Groups = () if report is None else report.server_data
    accused = () if report is None else report.accused
    barred = set() if report is None else set(report.quarantined)
    arrays, digest = model(setting), "0" * 64
    sent = {device for devices in unions for device in devices}
    sizes = []
    for device in sorted(set(range(setting.devices)) - sent):
        told = {"num-examples": samples_of(device), "num-steps": steps_of(device), "round": k}
        sizes.append(encoded_bytes({"model": digest, **told}, arrays))
    for m, devices in enumerate(unions):
        for device in devices:
            told = {"round": k, "server": m, "num-examples": samples_of(device), "data": digest}
            sizes.append(encoded_bytes(told, {}))
        if devices:
            told = {"num-examples": sum(map(samples_of, devices)), "num-steps": steps_of(setting.devices + m)}
            told |= {"devices": listed(devices), "data": digest, "model": digest, "round": k}
            sizes.append(encoded_bytes(told, arrays))

    def consensus(groups: Groups, steps: Iterable[int], first: int) -> None:
        for step in steps:
            for m in range(setting.servers):
                if m in barred:
                    continue
                told = {"round": k, "step": step, "server": m}
                if step == first:
                    told |= {"devices": listed(groups[m])} | (
                        {"itself": "yes"} if unions and unions[m] else {}
                    )
                sizes.append(encoded_bytes(told, arrays))

    if setting.variant != "on-ledger":
        first = 0
        if accused:  # the others hear the lie, vote, and begin anew
            barred, found = set(), barred
            consensus(in_turn, (0, 1), 0)
            barred, first = found, setting.steps + 1
        for one in accused:
            vote = {"round": k, "server": one.server, "offence": one.offence, "step": one.step}
            sizes += [encoded_bytes(vote | {"found": digest, "expected": digest}, {})] * one.votes
        consensus(summed, range(first, first + setting.steps + 1), first)
    if setting.variant == "offloading":
        numbers, each = ("F64", (), 8), ("F64", (setting.devices,), 8 * setting.devices)
        seen = len(json.dumps({device: [["x", "|u1", [4]]] for device in senders}))
        network = {"rounds": ("I64", (), 8), "spent-j": each, "energy-slack-j": each, "clock-s": numbers}
        network |= {"schemas": ("U8", (seen,), seen)}
        sizes.append(
            encoded_bytes({"round": k}, {f"network/{name}": array for name, array in network.items()})
        )
    return [*sizes, encoded_bytes({"round": k}, arrays), 0]


def model(setting: Setting) -> dict[str, tuple[str, tuple[int, ...], int]]:
    return {"w": ("F32", setting.shape, 4 * setting.shape[0] * setting.shape[1])}


def edge_servers(setting: Setting) -> int:
    return 1 if setting.variant == "on-ledger" else setting.servers


def listed(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def predicted(setting: Setting, reports: Sequence[RoundReport] = ()) -> Size:
    """What a run's ledger comes to; `reports`, from round 0 on, where it depends on decisions and lies."""
    sizes = opening_sizes(setting)
    for k in range(1, setting.rounds + 1):
        seen = {n for report in reports[: k + 1] for devices in report.server_data for n in devices}
        sizes += round_sizes(setting, k, reports[k] if reports else None, seen)
    if setting.variant == "memory":  # no chain, no accounts, and all payloads count as stored
        return Size(len(sizes), 0, sum(sizes))
    whole = setting.variant == "full"
    inline = [size for size in sizes if whole or size <= 24_000]
    pieces = [piece for size in inline if size > PIECE for piece in cut(size)]
    # The contract's creation, the registration of the devices, and that of the servers.
    transactions = 3 + len(sizes) + len(pieces)
    # By digest; calldata at 40.2 gas a byte where it is more than some hundred bytes.
    gas = 2_292_375 + 83_600 * (setting.devices + edge_servers(setting))
    gas += 52_733 * (transactions - 3 - 2 * setting.rounds) + (80_434 + 110_169) * setting.rounds
    gas += sum(40.2 * size - 33_850 for size in [*pieces, *(s for s in inline if s <= PIECE)] if size > 1000)
    return Size(transactions, sum(inline), sum(sizes) - sum(inline), gas, file_bytes(setting))


def cut(size: int) -> list[int]:
    """Bytes of a payload's pieces."""
    return [PIECE] * (size // PIECE) + ([size % PIECE] if size % PIECE else [])


def file_bytes(setting: Setting) -> float:
    """chain.sqlite of a run without lies and offloading, as far as averages tell.

    Every block leaves new nodes: of the tries of its transactions and receipts, and of the paths in those of
    accounts and of the contract's storage to what it changed. Keys are hashes, so they lie anywhere in a
    trie, and branches have as many children as chance gives them.
    """
    servers, devices = edge_servers(setting), setting.devices
    pieces = cut(round_sizes(setting, 1)[0]) if setting.variant == "full" else []
    rows: Counter[tuple[float, float]] = Counter()  # of key and value, in bytes
    accounts, slots = devices + servers + 2, 2 * (devices + servers)

    def node(size: float, count: float = 1) -> None:
        rows[32, size] += count  # type: ignore[assignment]  # expected numbers

    def path(keys: float, changed: int, leaf: float, new: int = 0) -> None:
        """To the changed ones among so many keys; a third of the new ones part with a leaf, which moves."""
        node(leaf, changed + new * 0.36)
        places = 1.0
        while (load := keys / places) > 0.02:
            touched = 1.0 if places == 1 else places * -np.expm1(changed * np.log1p(-1 / places))
            parted = -np.expm1(-load)  # another key is below it
            node(20 + 32 * (1 - 15 * np.expm1(-load / 16) / parted), touched * parted)
            places *= 16

    def block(calls: Sequence[tuple[int, int]], senders: int, changed: int, new: int) -> None:
        """Of calls by bytes of calldata and of logs; changed slots of the contract's storage."""
        for data, logs in calls:
            node(116 + data)  # signature 68, address 21, numbers, path and headings
            node(284 + logs)  # bloom filter 259
            rows[121, 4.5] += 1
        for _ in range(2):
            node(20 + 32 * (1 + -(-len(calls) // 16)))
            node(20 + 32 * min(len(calls), 16), len(calls) / 16)
        rows[32, 710] += 1
        rows[115, 3] += 1
        rows[24, 33] += 1
        path(accounts, senders + 1, 117)
        path(slots, changed, 68, new)

    sent = [(164 + piece, 186) for piece in pieces]
    submitted, proposed, sealed = [*sent, (196, 219)], [*sent, (228, 251)], [(100, 219)]
    for _ in range(setting.rounds):
        for senders in [devices, *[servers] * (0 if setting.variant == "on-ledger" else setting.steps + 1)]:
            new = senders * len(submitted)
            slots += new
            block(submitted * senders, senders, new, new)
        slots += 3 + len(sent)
        block(proposed + sealed, 2, 5 + len(sent), 3 + len(sent))
    # Rows are in the table, in the order in which they came, their keys in an index, seven eighths full.
    lengths, counts = np.array([key + value + 11 for key, value in rows]), np.array([*rows.values()])
    keys = counts @ np.array([key + 10 for key, _ in rows])
    large = lengths > 4096  # on pages of their own, the rest in the table
    lengths[large], own = 300, counts[large] @ np.ceil(lengths[large] / 4092) * 4096
    lost = (counts @ lengths**2) / (counts @ lengths) / 2  # at the end of a page of 4,096 bytes
    return float(own + counts @ lengths / (1 - lost / 4096) + keys / 0.875)

"""What the payloads of a run say: one pair of functions for each kind, to write it and to read it.

All are canonical encodings (`encoding`): arrays, and metadata from string to string. The formats are written
down in docs/ledger.md.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flower_bfl.chain_adapter.base import Role, Sender
from flower_bfl.chain_adapter.encoding import Arrays, decode, digest, encode, shallow
from flower_bfl.config import AutoRounds, Consensus, Outage, check_whole_number
from flower_bfl.errors import ConfigError, PayloadError
from flower_bfl.types import LeftOut

FORMAT = "flower-bfl 5"
_LAST = 2**32 - 1  # round or step
NamedArrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class RunRules:
    """The run's constants: whoever has them and the gradients can recompute every model."""

    strategy: str  # class of the strategy whose models are recorded
    consensus: Consensus | None = None  # None: the models do not follow from (8)-(12)
    mixing: NDArray[np.float64] | None = None  # Λ, shape (M, M)
    defences: tuple[str, ...] = ()  # descriptions, see `flower_bfl.defences`
    edge_rule: str = ""  # description of what stands in for the mean in (8)

    def encode(self) -> bytes:
        """As the payload of a RULES entry."""
        fields = {} if self.consensus is None else asdict(self.consensus)
        if self.consensus is not None and isinstance(self.consensus.p2p_rounds, AutoRounds):
            fields |= _auto_fields(self.consensus.p2p_rounds)
        if self.defences:
            fields["defences"] = "\n".join(self.defences)
        if self.edge_rule:
            fields["edge_rule"] = self.edge_rule
        arrays = {} if self.mixing is None else {"mixing": self.mixing}
        return encode(arrays, _metadata(format=FORMAT, strategy=self.strategy, **fields))

    @classmethod
    def decode(cls, payload: bytes) -> "RunRules":
        """What `encode` was given; raises PayloadError."""
        arrays, metadata = _decode(payload)
        try:
            if not metadata["strategy"].isidentifier():
                raise ValueError(f"strategy must be the name of a class, got {metadata['strategy']!r:.80}")
            if metadata["format"] != FORMAT:
                raise ValueError(f"format must be {FORMAT!r}, got {metadata['format']!r}")
            strategy = metadata["strategy"]
            if "mixing" not in arrays:
                return cls(strategy)
            leader = metadata["leader"]
            consensus = Consensus(
                edge_servers=_whole(metadata["edge-servers"]),
                p2p_rounds=_p2p_rounds(metadata),
                mass=metadata["mass"],  # type: ignore[arg-type]  # checked there
                leader=leader if leader in ("random", "reputation") else _whole(leader),  # type: ignore[arg-type]
                learning_rate=float(metadata["learning-rate"]),
            )
            mixing, servers = arrays["mixing"], consensus.edge_servers
            if mixing.shape != (servers, servers) or mixing.dtype != np.float64:
                raise ValueError(
                    f"mixing must be float64 and square in the edge servers, got {mixing.dtype} of shape "
                    f"{mixing.shape}"
                )
        except (KeyError, ValueError, ConfigError) as error:
            raise PayloadError(f"a RULES payload does not say how models are made: {error}") from error
        defences = metadata["defences"].split("\n") if "defences" in metadata else ()
        return cls(
            strategy, consensus, mixing.astype(np.float64), tuple(defences), metadata.get("edge-rule", "")
        )


def _auto_fields(auto: AutoRounds) -> dict[str, object]:
    """How the steps of a round are counted, beside the constants of every run."""
    if auto.rounds is None:
        raise ConfigError(
            "`p2p_rounds` must say how many `rounds` there are, unless `start` does, "
            "got AutoRounds(rounds=None)"
        )
    fields = {"most_p2p_rounds": auto.most, "tolerance": float(auto.tolerance), "rounds": auto.rounds}
    return {"p2p_rounds": "auto", **fields} | ({"absolute": "yes"} if auto.absolute else {})


def _p2p_rounds(metadata: Mapping[str, str]) -> int | AutoRounds:
    if metadata["p2p-rounds"] != "auto":
        return _whole(metadata["p2p-rounds"])
    return AutoRounds(
        float(metadata["tolerance"]),
        "absolute" in metadata,
        _whole(metadata["most-p2p-rounds"]),
        _whole(metadata["rounds"]),
    )


@dataclass(frozen=True)
class DataSet:
    """What a device sent to an edge server to be trained on."""

    samples: int  # D_n
    digest: bytes  # SHA-256 of the canonical encoding of its arrays, without metadata

    @classmethod
    def of(cls, arrays: Arrays) -> "DataSet":
        """The record of arrays with a row a sample; raises PayloadError for what cannot be recorded."""
        rows = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
        if len({*rows.values()}) != 1 or 0 in rows.values():
            raise PayloadError(f"a data set must be arrays with a row for each sample, got as many as {rows}")
        return cls(next(iter(rows.values())), digest(encode(arrays)))

    def encode(self, server_round: int, server: int) -> bytes:
        """As the payload of a DATA entry."""
        said = {"num_examples": self.samples, "data": self.digest.hex()}
        return encode({}, _metadata(round=server_round, server=server, **said))

    @classmethod
    def decode(cls, payload: bytes) -> "DataSet":
        """What `encode` was given; raises PayloadError."""
        _, metadata = _decode(payload)
        try:
            samples, data = int(_samples(metadata)), _sha256(metadata["data"])
        except (KeyError, ValueError) as error:
            raise PayloadError(f"a DATA payload must say examples and digest: {error}") from error
        return cls(samples, data)


@dataclass(frozen=True)
class DataUnion:
    """The data sets that an edge server trained on together, (4)."""

    devices: tuple[int, ...]  # who sent them, ascending
    digest: bytes  # SHA-256 over the digests of their data sets, in this order

    @classmethod
    def of(cls, sets: Mapping[int, DataSet]) -> "DataUnion":
        """Of the data sets, by device."""
        devices = tuple(sorted(sets))
        return cls(devices, digest(b"".join(sets[device].digest for device in devices)))


@dataclass(frozen=True, eq=False)
class Gradient:
    """A cumulative gradient (6)(7), and the sender's values of what gradients cannot move."""

    arrays: Mapping[str, NDArray[np.generic]]  # float32 where the model is floating-point, in its order
    samples: float  # D_y
    steps: int  # e_y
    union: DataUnion | None = None  # what an edge server trained on; a device trains on its own

    @classmethod
    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is seen where it is added up
    def between(
        cls,
        before: Arrays,
        after: Arrays,
        samples: float,
        steps: int,
        learning_rate: float = 1.0,
        union: DataUnion | None = None,
    ) -> "Gradient":
        """g_y = (w_k − w_y) / η of each floating-point array, in float32; the other arrays as in `after`."""
        moved: NamedArrays = {}
        for name in (name for name, array in before.items() if array.dtype.kind == "f"):
            difference = np.asarray(before[name], np.float32) - np.asarray(after[name], np.float32)
            moved[name] = difference if learning_rate == 1.0 else difference / np.float32(learning_rate)
        copied = {name: array for name, array in after.items() if name not in moved}
        return cls(moved | {name: copied[name] for name in before if name in copied}, samples, steps, union)

    def encode(self, server_round: int, model: bytes) -> bytes:
        """As the payload of a GRADIENT entry; `model` is the digest of w_k, which it was made from."""
        metadata = _metadata(
            round=server_round, model=model.hex(), num_examples=f"{self.samples:.17g}", num_steps=self.steps
        )
        if self.union is not None:
            metadata |= {"devices": _listed(self.union.devices), "data": self.union.digest.hex()}
        return encode(self.arrays, metadata)

    @classmethod
    def decode(cls, payload: bytes) -> "Gradient":
        """What `encode` was given; raises PayloadError."""
        arrays, metadata = _decode(payload)
        try:
            samples, steps, union = _samples(metadata), int(metadata["num-steps"]), None
            if not 1 <= steps < 2**31:
                raise ValueError(f"got {steps} steps")
            if "data" in metadata:
                devices = tuple(map(int, metadata["devices"].split()))
                union = DataUnion(devices, _sha256(metadata["data"]))
        except (KeyError, ValueError) as error:
            raise PayloadError(f"a GRADIENT payload must say what it was made from: {error}") from error
        return cls(arrays, samples, steps, union)


def consensus_payload(
    server_round: int, step: int, server: int, state: Arrays, members: Sequence[Sender] | None = None
) -> bytes:
    """x_m^(l) of an edge server; of its sum (8), also whose gradients are in it: devices', and its own."""
    summed = {}
    if members is not None:
        devices = [member.index for member in members if member.role is Role.DEVICE]
        summed = {"devices": _listed(devices)} | ({"itself": "yes"} if len(devices) < len(members) else {})
    return encode(state, _metadata(round=server_round, step=step, server=server, **summed))


def read_consensus(payload: bytes) -> tuple[NamedArrays, list[Sender]]:
    """State and members of `consensus_payload`; raises PayloadError."""
    arrays, metadata = _decode(payload)
    try:
        members = [Sender(Role.DEVICE, int(device)) for device in metadata.get("devices", "").split()]
        if "itself" in metadata:
            members.append(Sender(Role.SERVER, int(metadata["server"])))
    except (KeyError, ValueError) as error:
        raise PayloadError(f"a CONSENSUS payload must list devices by number: {error}") from error
    return arrays, members


def report_payload(server_round: int, left_out: Sequence[LeftOut], down: Sequence[Outage]) -> bytes:
    """Replies that did not enter the round, and edge servers and links that were down."""
    text = json.dumps({"left_out": list(map(asdict, left_out)), "down": list(map(asdict, down))})
    return encode({}, _metadata(round=server_round, report=text))


def read_report(payload: bytes) -> tuple[list[LeftOut], list[Outage]]:
    """What `report_payload` was given; raises PayloadError."""
    _, metadata = _decode(payload)
    try:
        report = json.loads(shallow(metadata["report"].encode(), 4))
        left_out = [_left_out(**each) for each in report["left_out"]]
        down = [_outage(**each) for each in report["down"]]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise PayloadError(f"a REPORT payload must hold a report: {error}") from error
    return left_out, down


def state_payload(server_round: int, state: Arrays) -> bytes:
    """What the round after this one depends on beside the model, for whoever goes on with the run."""
    return encode(state, _metadata(round=server_round))


def read_state(payload: bytes) -> NamedArrays:
    """What `state_payload` was given; raises PayloadError."""
    return _decode(payload)[0]


def _left_out(who: object, reason: object) -> LeftOut:
    for text in (who, reason):
        if not isinstance(text, str):
            raise ValueError(f"names and reasons are text, got {text!r:.80}")
        text.encode()  # UnicodeEncodeError, a ValueError, for halves of surrogates: nobody can print them
    return LeftOut(str(who), str(reason))


def _outage(round: object, server: object, link: object, step: object) -> Outage:
    """As it was written; that there are such edge servers is for the audit to say."""
    for number in (round, step):
        check_whole_number("down", number, 0, _LAST)
    if link is not None and not isinstance(link, list):
        raise ValueError(f"a link has two ends, got {link!r:.80}")
    return Outage(round, server, None if link is None else tuple(link), step)  # type: ignore[arg-type]


Offence = Literal["state", "silence", "equivocation", "model", "no model", "accusation"]


@dataclass(frozen=True)
class Evidence:
    """Why an edge server is accused, for anybody to check.

    offence : "state" or "model": it does not follow. "silence", "no model": there is none. "equivocation": it
        signed two states of one step. "accusation": it accused another one without reason.
    step : of the state; servers passed over before the model; who was accused without reason.
    found : digest of what is wrong: a state, a model, the state that was sent to some, a false vote.
    expected : digest of what would follow, or of the state that was recorded.
    signature : of an equivocation: by the accused, of `found` as the CONSENSUS entry of the step.
    """

    offence: Offence
    step: int = 0
    found: bytes = b""
    expected: bytes = b""
    signature: bytes = b""

    def encode(self, server_round: int, accused: int) -> bytes:
        """As the payload of a VOTE entry."""
        digests = {
            name: value.hex() for name in ("found", "expected", "signature") if (value := getattr(self, name))
        }
        said = {"offence": self.offence, "step": self.step}
        return encode({}, _metadata(round=server_round, server=accused, **said, **digests))

    @classmethod
    def decode(cls, payload: bytes) -> "Evidence":
        """What `encode` was given; raises PayloadError."""
        _, metadata = _decode(payload)
        try:
            if metadata["offence"] not in get_args(Offence):
                raise ValueError(f"there is no offence {metadata['offence']!r:.40}")
            digests = {name: _sha256(metadata[name]) for name in ("found", "expected") if name in metadata}
            signature = bytes.fromhex(metadata.get("signature", ""))
            return cls(metadata["offence"], int(metadata["step"]), **digests, signature=signature)  # type: ignore[arg-type]
        except (KeyError, ValueError) as error:
            raise PayloadError(f"a VOTE payload must say what it is about: {error}") from error


def model_payload(server_round: int, model: Arrays) -> bytes:
    """The global model after a round; round 0 is the initial one."""
    return encode(model, _metadata(round=server_round))


def model_digest(server_round: int, model: Arrays) -> bytes:
    """SHA-256 of the payload of the model after a round."""
    return digest(model_payload(server_round, model))


def read_model(payload: bytes) -> NamedArrays:
    """The arrays of `model_payload`; raises PayloadError."""
    return _decode(payload)[0]


def _metadata(**fields: object) -> dict[str, str]:
    return {name.replace("_", "-"): str(value) for name, value in fields.items()}


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def _samples(metadata: Mapping[str, str]) -> float:
    samples = float(metadata["num-examples"])
    if not 0 < samples <= 2**53:
        raise ValueError(f"got {samples} examples")
    return samples


def _whole(text: str) -> int:
    """A whole number as `str` writes it: no sign, no leading zero, nothing else that `int` takes."""
    if not re.fullmatch("0|[1-9][0-9]{0,9}", text):
        raise ValueError(f"not a whole number: {text!r:.40}")
    return int(text)


def _sha256(text: str) -> bytes:
    found = bytes.fromhex(text)
    if len(found) != 32:
        raise ValueError(f"a digest must have 32 bytes, got {len(found)}")
    return found


def _decode(payload: bytes) -> tuple[NamedArrays, dict[str, str]]:
    return decode(payload)

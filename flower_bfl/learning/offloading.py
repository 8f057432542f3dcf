"""A ClientApp whose devices may send their data to an edge server, and which edge servers can run.

What goes between server and clients is written down in docs/offloading.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from logging import getLogger

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from flower_bfl.errors import ReplyError
from flower_bfl.types import DATA_RECORD, OWN_RECORD, DeviceReport

Data = Mapping[str, NDArray[np.generic]]
"""Samples as named arrays, one sample a row of each."""

DataSource = Callable[[Message, Context], Data]
Reporting = Callable[[Message, Context], DeviceReport]
TrainFunction = Callable[[Message, Context, Data], Message]


def offloadable(
    app: ClientApp, data: DataSource, *, report: Reporting | None = None
) -> Callable[[TrainFunction], TrainFunction]:
    """In place of ``@app.train()``: the function gets the data to train on as its third argument.

    ::

        @offloadable(app, my_samples)
        def train(message: Message, context: Context, data: Data) -> Message: ...

    On a device these are its own, on an edge server those that devices sent to it. Data leave a device only
    if the server's controller decides so, and the device does not say that they may not.

    Parameters
    ----------
    app
        the ClientApp, which runs on devices and on edge servers.
    data
        a device's samples; called for each message, for data may come and go. Not called on edge servers.
    report
        what the device says of itself, see `DeviceReport`; called before each round. Whatever it says, a
        device whose node config has ``may-offload=false`` keeps its data.

    Who is what: a node is an edge server if its node config has ``role="edge-server"``, with its number in
    ``index``, and a device if it has ``role="device"``. Without a role, the last M partitions are the edge
    servers. A device's index is its ``index`` or else its ``partition-id``.
    """
    device = _Device(data, report)

    def register(train: TrainFunction) -> TrainFunction:
        app.query("report")(device.answer_report)
        app.query("offload")(device.answer_offload)

        @app.train("edge")
        def on_edge(message: Message, context: Context) -> Message:
            union = _union(message)
            del message.content[DATA_RECORD]  # so that the message is as any other
            return train(message, context, union)

        @app.train()
        def on_train(message: Message, context: Context) -> Message:
            return train(message, context, device.samples(message, context))

        return train

    return register


@dataclass(frozen=True)
class _Device:
    """What a device answers to the server's questions; of an edge server only who it is."""

    data: DataSource
    report: Reporting | None

    def samples(self, message: Message, context: Context) -> dict[str, NDArray[np.generic]]:
        """What the device has now; raises ReplyError if that is no data set."""
        arrays = {name: np.asarray(array) for name, array in self.data(message, context).items()}
        rows = {name: len(array) if array.ndim else None for name, array in arrays.items()}
        if not arrays or len({*rows.values()}) > 1 or None in rows.values():
            raise ReplyError(f"`data` must be arrays with a row for each sample, got as many rows as {rows}")
        return arrays

    def told(self, message: Message, context: Context) -> DeviceReport:
        """What it says of itself; data stay where its author, or its owner, does not agree."""
        own = DeviceReport() if self.report is None else self.report(message, context)
        may = bool(own.may_offload) and context.node_config.get("may-offload", True) is True
        return replace(own, may_offload=may)

    def answer_report(self, message: Message, context: Context) -> Message:
        """Who this is, and what it has."""
        record = ConfigRecord()
        try:
            record["role"], record["index"] = identity(context, _number(message, "edge-servers"))
            if record["role"] == "device":
                samples = self.samples(message, context)
                record.update(_described(samples, self.told(message, context)))
        except Exception as error:  # not raised: an app that does is taken for one without this handler
            getLogger("flwr").exception("this node cannot report")
            record["failed"] = f"{error!r:.200}"
        return Message(RecordDict({OWN_RECORD: record}), reply_to=message)

    def answer_offload(self, message: Message, context: Context) -> Message:
        """The data; raises ReplyError, which the server sees, if they must stay or are too many."""
        if not self.told(message, context).may_offload:
            raise ReplyError("this device's data must stay where they are")
        samples = self.samples(message, context)
        size, most = _size(samples), _number(message, "most-bytes")
        if size > most:
            raise ReplyError(f"a data set must have at most {most} bytes to be offloaded, got {size}")
        arrays = ArrayRecord({name: Array(array) for name, array in samples.items()})
        return Message(RecordDict({DATA_RECORD: arrays}), reply_to=message)


def identity(context: Context, edge_servers: int) -> tuple[str, int]:
    """Role ("device" or "edge-server") and index of the node that runs this; raises ReplyError."""
    config = context.node_config
    role, index = config.get("role"), config.get("index", config.get("partition-id"))
    if role is None and {"partition-id", "num-partitions"} <= config.keys():
        place, devices = int(config["partition-id"]), int(config["num-partitions"]) - edge_servers
        if place >= devices:
            return "edge-server", place - devices
        role = "device"
    if role not in ("device", "edge-server") or not isinstance(index, int) or isinstance(index, bool):
        raise ReplyError(
            "a node config must have a `role`, 'device' or 'edge-server', and a whole number as `index` or "
            f"`partition-id`; or `partition-id` and `num-partitions`, got {config}"
        )
    return str(role), index


def _described(samples: Data, told: DeviceReport) -> dict[str, bool | int | float | list[float]]:
    """A device's report."""
    record: dict[str, bool | int | float | list[float]] = {
        "may-offload": told.may_offload,
        "num-examples": len(next(iter(samples.values()))),
        "data-bytes": _size(samples),
    }
    for name in ("work_cycles", "cpu_hz", "energy_slack_j"):
        if (value := getattr(told, name)) is not None:
            record[name.replace("_", "-")] = float(value)
    if told.gain_db is not None:
        record["gain-db"] = [float(gain) for gain in told.gain_db]
    return record


def _number(message: Message, name: str) -> int:
    """A whole number of the message's config, by whatever name that has."""
    found = [config[name] for config in message.content.config_records.values() if name in config]
    if not found or not isinstance(found[0], int):
        raise ReplyError(f"a message must have the whole number {name!r}, got {found}")
    return found[0]


def _union(message: Message) -> dict[str, NDArray[np.generic]]:
    """The data that come with a message; raises ReplyError if there are none."""
    if (record := message.content.array_records.get(DATA_RECORD)) is None:
        raise ReplyError(f"a message to an edge server must hold the arrays {DATA_RECORD!r}")
    try:
        return {name: np.asarray(array.numpy()) for name, array in record.items()}
    except Exception as error:  # whatever numpy makes of a stranger's bytes
        raise ReplyError(f"arrays must be readable as numpy arrays: {error!r:.200}") from error


def _size(samples: Data) -> int:
    return sum(array.nbytes for array in samples.values())

"""A Flower app in this process: the same apps and messages, but no SuperLink and no Ray.

::

    simulate(server_app, client_app, nodes=10, settings={"num-server-rounds": 3})

or with a strategy alone::

    with in_process(client_app, nodes=10) as grid:
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)

Nodes answer one after another. That is slower than Ray where training takes long and there are many cores,
and faster where it does not, or where many such runs go on side by side.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from logging import getLogger

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity

from flower_bfl.config import check_whole_number

Settings = Mapping[str, bool | float | int | str]

_IDS = ("run_id", "task_id", "node_id")


class InProcessGrid:
    """What a strategy asks of Flower's Grid, with a ClientApp in this process behind it.

    A node is called with the context that it always had, so state that a ClientApp keeps there stays. As
    under Flower, ids are random, replies come in any order, an exception in the ClientApp is a reply with an
    error, and a message that a node changes is changed for nobody else. Timeouts mean nothing here: a node
    that hangs, hangs the run.
    """

    def __init__(self, client_app: ClientApp, nodes: int, settings: Settings | None = None) -> None:
        check_whole_number("nodes", nodes, 1, 2**31 - 1)
        self._client_app = client_app
        self._random = random.Random()
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": partition, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(settings or {}),
            )
            for partition, node in enumerate(self._random.sample(range(1, 2**62), nodes))
        }

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, at once."""
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """The replies to messages, in no particular order."""
        replies = [self._reply(message) for message in messages]
        self._random.shuffle(replies)
        return replies

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            # Copies cost next to nothing: the bytes of arrays are not copied.
            return deepcopy(self._client_app(deepcopy(message), self._contexts[node]))
        except Exception as error:
            getLogger("flwr").exception("node %d failed", node)
            return Message(Error(code=0, reason=f"{error!r}"), reply_to=message)


@contextmanager
def in_process(
    client_app: ClientApp, nodes: int, settings: Settings | None = None
) -> Iterator[InProcessGrid]:
    """A grid of so many nodes, and Flower's identity for messages to be made in this process.

    Raises ConfigError for fewer nodes than one.
    """
    before = {name: getattr(TaskIdentity, f"_{name}") for name in _IDS}
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1
    try:
        yield InProcessGrid(client_app, nodes, settings)
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, f"_{name}", value)


def simulate(server_app: ServerApp, client_app: ClientApp, *, nodes: int, settings: Settings) -> None:
    """Run a Flower app from its first round to its last.

    Args:
        server_app: its main function gets a grid and a context with the settings as its `run_config`.
        client_app: of every node.
        nodes: how many there are.
        settings: the whole run config; defaults of a pyproject.toml are not looked up.
    """
    with in_process(client_app, nodes, settings) as grid:
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(settings))
        server_app(grid, context)  # type: ignore[arg-type]  # a Grid as far as strategies know it

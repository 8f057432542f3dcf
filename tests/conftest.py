"""Shared by all tests: real Flower messages without a running SuperLink."""

import pytest
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(autouse=True, scope="session")
def flower_identity():
    """Flower stamps messages with the ids of the running task; outside a run somebody must set them."""
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1


def pytest_collection_modifyitems(items):
    """Slow tests may take longer than the limit that is there for what hangs."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1200))

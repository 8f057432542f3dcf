"""What tests of hostile input share: bounds of memory and time, rules and policies with other content."""

import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import flower_bfl
from flower_bfl.chain_adapter.encoding import digest, encode

PACKAGE = Path(flower_bfl.__file__).parent
MEGABYTE = 1 << 20


@contextmanager
def bounded(megabytes: float = 4.0, seconds: float = 60.0) -> Iterator[None]:
    """That no more memory is taken, and no more time."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        yield
        assert time.monotonic() - started < seconds
        assert tracemalloc.get_traced_memory()[1] < megabytes * MEGABYTE
    finally:
        tracemalloc.stop()


def policy_folder(folder: Path, content: bytes, **change: object) -> Path:
    about = json.loads((PACKAGE / "controller" / "policies" / "shared" / "policy.json").read_bytes())
    about |= {"weights": {"file": "w.safetensors", "sha256": digest(content).hex()}, **change}
    (folder / "policy.json").write_text(json.dumps(about))
    (folder / "w.safetensors").write_bytes(content)
    return folder


def rules_of(mixing: np.ndarray | None, **change: str) -> bytes:
    said = {
        "format": "flower-bfl 5",
        "strategy": "ConsensusBFL",
        "edge-servers": "65535",
        "p2p-rounds": "65535",
    }
    said |= {"mass": "count", "leader": "random", "learning-rate": "1.0"}
    return encode({} if mixing is None else {"mixing": mixing}, said | change)

"""Where a run's contract is, in the file ``chain.json``."""

import json
import os
import re
from pathlib import Path

from flower_bfl.chain_adapter._rpc_log import Where, to_bytes, to_hex
from flower_bfl.chain_adapter.store import read_file
from flower_bfl.errors import ConfigError, LedgerError

FORMAT = "flower-bfl chain 1"


def read_where(path: Path) -> Where | None:
    """What the file says; None if there is none, LedgerError if it cannot be read."""
    try:
        fields = json.loads(read_file(path).decode())
        if fields["format"] != FORMAT:
            raise ValueError(f"`format` must be {FORMAT!r}, got {fields['format']!r}")
        numbers = [fields[name] for name in ("chain_id", "first_block")]
        if any(type(each) is not int or not 0 <= each < 2**64 for each in numbers):
            raise ValueError(f"`chain_id` and `first_block` must be whole numbers, got {numbers!r:.80}")
        return Where(numbers[0], read_address(fields["contract"]), numbers[1])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LedgerError(f"chain file {path} cannot be read: {error!r}") from error


def write_where(path: Path, where: Where) -> None:
    """Write the file, unless it is there; raises LedgerError if it cannot be written."""
    fields = {
        "format": FORMAT,
        "chain_id": where.chain_id,
        "contract": to_hex(where.contract),
        "first_block": where.first_block,
    }
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(fields, indent=2) + "\n")
            temporary.replace(path)
    except OSError as error:
        raise LedgerError(f"chain file {path} cannot be written: {error}") from error


def read_address(text: str) -> bytes:
    """An address, 20 bytes; raises ConfigError for anything else."""
    if not isinstance(text, str) or not re.fullmatch("0x[0-9a-fA-F]{40}", text):
        raise ConfigError(f"`contract` must be 0x and 40 hexadecimal digits, got {text!r}")
    return to_bytes(text)

"""Private keys in a folder of encrypted files, the keystore format (version 3) of Ethereum's wallets."""

import json
import math
import os
import secrets
import threading
from pathlib import Path
from typing import Any

from coincurve.utils import GROUP_ORDER_INT

try:
    from eth_account import Account
except ModuleNotFoundError as missing:
    from flower_bfl.errors import ConfigError

    raise ConfigError(
        f"`KeyFolder` needs the package {missing.name}: pip install 'flower-bfl[web3]'"
    ) from missing

from flower_bfl.chain_adapter.base import Sender
from flower_bfl.errors import ConfigError

_KEY_BYTES = 32
_MOST_ROUNDS = 10_000_000  # of PBKDF2; files that are made here take a million
_MOST_BLOCKS = 2**22  # n·r·p of scrypt, 128 bytes each: twice what wallets take


class KeyFolder:
    """The keys of a run's senders, one file each: ``operator.json``, ``device-3.json``, ``server-0.json``.

    An instance is `Keys` as `Ledger.open` takes them. Decrypting a key takes most of a second, so that
    guessing passwords does too; it is done once, and the key stays in memory.

    Parameters
    ----------
    folder
        holds the files; made if missing, for the owner alone.
    password
        of all of them; not empty.
    create
        make the key of a sender that has none; without it, a missing file is an error.

    Raises
    ------
    ConfigError
        here for an empty password; when called, for a file that is missing, cannot be read or written, is no
        keystore, or has another password.
    """

    def __init__(self, folder: Path | str, password: str, *, create: bool = False) -> None:
        if not isinstance(password, str) or not password:
            raise ConfigError("`password` must be text, and not empty")
        self._folder = Path(folder)
        self._password = password
        self._create = create
        self._lock = threading.Lock()
        self._keys: dict[Sender, bytes] = {}

    def __repr__(self) -> str:
        return f"KeyFolder({str(self._folder)!r})"

    def __call__(self, sender: Sender) -> bytes:
        """The sender's private key, 32 bytes."""
        with self._lock:
            if sender not in self._keys:
                path = self._folder / f"{str(sender).replace(' ', '-')}.json"
                try:
                    made = self._make(path) if self._create and not path.exists() else None
                    self._keys[sender] = made or self._read(path)
                except OSError as error:
                    raise ConfigError(f"key file {path} cannot be used: {error.strerror}") from error
            return self._keys[sender]

    def _read(self, path: Path) -> bytes:
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise ConfigError(f"key file {path} is missing; `create=True` makes new keys") from None
        try:
            keystore = _lowered(json.loads(text))
            if keystore["version"] != 3:
                raise ValueError
            _check_cost(keystore["crypto"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ConfigError(f"key file {path} must be a keystore of version 3") from None
        try:
            key = bytes(Account.decrypt(keystore, self._password))
        except Exception as error:  # eth_account's own, and whatever a damaged file leads it to
            if "MAC mismatch" in str(error):
                raise ConfigError(f"key file {path} has another password, or is damaged") from None
            raise ConfigError(f"key file {path} must be a keystore of version 3") from None
        if len(key) != _KEY_BYTES:
            raise ConfigError(f"key file {path} must hold {_KEY_BYTES} bytes, found {len(key)}")
        return key

    def _make(self, path: Path) -> bytes | None:
        """Write a new key, and return it unless another process was faster; a file appears whole or not."""
        key = (1 + secrets.randbelow(GROUP_ORDER_INT - 1)).to_bytes(_KEY_BYTES)
        text = json.dumps(Account.encrypt(key, self._password))
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a renamed file, it takes no other's place
        except FileExistsError:
            return None
        finally:
            temporary.unlink(missing_ok=True)
        return key


def _lowered(value: Any) -> Any:
    """As decrypting reads it, which does not tell capital letters in names."""
    return (
        {name.lower(): _lowered(each) for name, each in value.items()} if isinstance(value, dict) else value
    )


def _check_cost(crypto: Any) -> None:
    """Raise ValueError where decrypting would take minutes, or more memory than there is."""
    params = crypto["kdfparams"]
    if crypto["kdf"] == "pbkdf2":
        cost, most = [params["c"]], _MOST_ROUNDS
    else:
        cost, most = [params[name] for name in "nrp"], _MOST_BLOCKS
    if any(type(each) is not int or each < 1 for each in cost) or math.prod(cost) > most:
        raise ValueError(f"too costly: {cost}")
    if params["dklen"] != _KEY_BYTES:
        raise ValueError(f"a derived key has {_KEY_BYTES} bytes, got {params['dklen']!r}")

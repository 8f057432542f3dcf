"""Everything that flower-bfl raises on purpose.

::

    FlowerBFLError
    ├── ConfigError        an argument breaks a rule; also a ValueError
    ├── InfeasibleError    no decision can meet a constraint; also a ValueError
    ├── TrainingError      a controller cannot be trained on, or its checkpoint not written
    ├── ReplyError         a client's reply cannot be used; also a ValueError
    ├── RunFolderError     the run folder cannot be written or read
    └── LedgerError        the ledger cannot be reached, read or written
        ├── RejectedError  the contract refused an entry
        └── PayloadError   a payload is missing, or is not what its digest says
"""


class FlowerBFLError(Exception):
    """Base of every error of this package."""


class ConfigError(FlowerBFLError, ValueError):
    """An argument breaks a rule; the message names argument, rule and value."""


class InfeasibleError(FlowerBFLError, ValueError):
    """No decision can meet a constraint of the network; the message names constraint, device and amount."""


class TrainingError(FlowerBFLError):
    """A controller cannot be trained on, or a checkpoint cannot be written or read."""


class ReplyError(FlowerBFLError, ValueError):
    """A client's reply cannot be used; the message says which rule it breaks."""


class RunFolderError(FlowerBFLError):
    """The run folder cannot be written or read."""


class LedgerError(FlowerBFLError):
    """The ledger cannot be reached, read or written.

    Where something recorded is wrong, the attributes say what: number of the block, place of the transaction
    in it, the account as text, what was expected and what was found. They are None or empty where not known.
    """

    def __init__(
        self,
        message: str,
        *,
        block: int | None = None,
        transaction: int | None = None,
        account: str = "",
        expected: str = "",
        found: str = "",
    ) -> None:
        super().__init__(message)
        self.block = block
        self.transaction = transaction
        self.account = account
        self.expected = expected
        self.found = found


class RejectedError(LedgerError):
    """The contract refused an entry; the message carries its named reason."""


class PayloadError(LedgerError):
    """A payload is missing, or is not what its digest says."""

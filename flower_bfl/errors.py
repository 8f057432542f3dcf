"""Everything that flower-bfl raises on purpose.

::

    FlowerBFLError
    ├── ConfigError        an argument breaks a rule; also a ValueError
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


class ReplyError(FlowerBFLError, ValueError):
    """A client's reply cannot be used; the message says which rule it breaks."""


class RunFolderError(FlowerBFLError):
    """The run folder cannot be written or read."""


class LedgerError(FlowerBFLError):
    """The ledger cannot be reached, read or written."""


class RejectedError(LedgerError):
    """The contract refused an entry; the message carries its named reason."""


class PayloadError(LedgerError):
    """A payload is missing, or is not what its digest says."""

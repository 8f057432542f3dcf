"""A JSON-RPC node over HTTP, as a provider of web3.py: batches, retries, and no word of the URL's secrets.

web3.py's own HTTP provider, and requests and urllib3 below it, put the whole URL into errors and logs.
"""

import json
import re
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from io import BufferedReader, RawIOBase
from socket import socket
from threading import RLock
from typing import Any, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from web3 import Web3
from web3.providers import JSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from flower_bfl.errors import ConfigError, LedgerError

_CALLS, _BATCH_BYTES = 100, 2_000_000  # of one request: what public nodes take
_MOST_BYTES = 1 << 25  # of an answer; as JSON it may take twenty times that in memory
_TOO_LONG = -32_099  # what stands for such an answer, a number that JSON-RPC leaves free
_IDLE_S = 2.0  # servers close idle connections after five seconds and more
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_OVERLOADED = (429, -32005, -32029)  # JSON-RPC errors that pass
_KEY_LENGTH = 6  # shorter parts of a path are names such as "rpc"
_PASSING = (408, 425, 429)  # HTTP statuses of the client's kind that are not its fault
_SHOWN = 300  # characters of a node's message

Json = Any
Call = tuple[str, Sequence[Json]]
"""Method and parameters."""


@dataclass(frozen=True)
class Refusal:
    """A JSON-RPC error in place of a result."""

    code: int
    message: str
    data: str | None = None  # what a contract answered when it refused, "0x..."


class _TroubleError(Exception):
    """One try that failed; another may succeed."""


class _TooLongError(Exception):
    """An answer that is too long to be read."""


class _Bounded(RawIOBase):
    """What comes from a socket until a deadline, and no more than an answer may have.

    With headers, and with all that http.client reads on its own: it takes interim answers, say, for ever.
    """

    def __init__(self, connection: socket, deadline_s: float) -> None:
        self._connection = connection
        self._raw = connection.makefile("rb", buffering=0)
        self._deadline_s = deadline_s
        self._left = _MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise _TooLongError
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(HTTPResponse):
    """An answer that is read until a deadline."""

    def __init__(self, deadline_s: float, connection: socket, method: str | None = None) -> None:
        super().__init__(connection, method=method)
        self.fp.close()
        self.fp = BufferedReader(_Bounded(connection, deadline_s))


def pause_s(tries: int) -> float:
    """How long to wait after so many tries, seconds."""
    return float(min(_FIRST_PAUSE_S * 2 ** min(tries, 16), _LONGEST_PAUSE_S))


class Node(JSONBaseProvider):
    """A node; connects when first asked.

    Parameters
    ----------
    url
        http or https; user name and password in it are sent as basic authentication.
    timeout_s
        how long to wait for an answer.
    retries
        how often to ask again if there is none, after 0.1, 0.2, 0.4, ... seconds, 5 at most.

    Raises
    ------
    ConfigError
        the URL is none of HTTP.
    """

    def __init__(self, url: str, timeout_s: float, retries: int) -> None:
        super().__init__()
        parts = _split(url)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._parts = parts
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "User-Agent": "flower-bfl"}
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        login = b64encode(f"{user}:{password}".encode()).decode() if user or password else ""
        if login:
            self._headers["Authorization"] = f"Basic {login}"
        shown = {value for _, value in parse_qsl(parts.query)} | set(unquote(parts.path).split("/"))
        secrets = {user, password, login, parts.username or "", parts.password or ""}
        secrets |= {word for word in shown | {parts.path, parts.query} if len(word) >= _KEY_LENGTH}
        self._secrets = sorted(secrets - {""}, key=len, reverse=True)
        self._timeout_s = timeout_s
        self._retries = retries
        self._lock = RLock()
        self._connection: HTTPConnection | None = None
        self._used_s = 0.0

    def __repr__(self) -> str:
        return f"Node({self.name!r})"

    __str__ = __repr__

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            self.close()

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def ask(self, method: str, *params: Json) -> Json:
        """The result of one call; raises LedgerError for a JSON-RPC error, or if there is no answer."""
        return self.ask_all([(method, params)])[0]

    def ask_all(self, calls: Sequence[Call]) -> list[Json]:
        """The results of several calls; raises LedgerError as `ask` does."""
        answers = self.batch(calls)
        for (method, _), answer in zip(calls, answers, strict=True):
            if isinstance(answer, Refusal):
                raise LedgerError(f"the node at {self.name} refuses {method}: {answer.message}")
        return answers

    def batch(self, calls: Sequence[Call], in_order: bool = False) -> list[Json]:
        """The result of each call, or a `Refusal` in its place.

        A node may work on the calls of a request at the same time; `in_order` makes one request of each.
        Raises LedgerError, after as many tries as there are to be, if there is no sensible answer.
        """
        parts = [[call] for call in calls] if in_order else _parts(calls)
        return [answer for part in parts for answer in self._insist(part)]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what results of another form than expected lead to into a LedgerError."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise LedgerError(
                f"the node at {self.name} answers what cannot be read: {error!r:.{_SHOWN}}"
            ) from error

    def make_request(self, method: RPCEndpoint, params: Json) -> RPCResponse:
        """One call for web3.py."""
        return self.make_batch_request([(method, params)])[0]

    def make_batch_request(self, requests: list[tuple[RPCEndpoint, Json]]) -> list[RPCResponse]:
        """Several calls for web3.py."""
        calls = [(method, params or []) for method, params in requests]
        return [_response(answer) for answer in self.batch(calls)]

    def is_connected(self, show_traceback: bool = False) -> bool:
        """Whether the node answers."""
        try:
            self.ask("web3_clientVersion")
        except LedgerError:
            if show_traceback:
                raise
            return False
        return True

    def _insist(self, calls: Sequence[Call]) -> list[Json]:
        again = all(method.startswith("eth_") and method != "eth_sendTransaction" for method, _ in calls)
        for tries in range(self._retries + 1 if again else 1):
            if tries:
                time.sleep(pause_s(tries - 1))
            try:
                return self._try(calls)
            except _TroubleError as error:
                trouble = str(error)
        raise LedgerError(
            f"the node at {self.name} gives no answer: {trouble}, {tries + 1} times in a row; "
            "see that it runs and can be reached, then do the same again"
        )

    def _try(self, calls: Sequence[Call]) -> list[Json]:
        with self._lock:
            numbers = [next(self.request_counter) for _ in calls]
            requests = [
                {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
                for number, (method, params) in zip(numbers, calls, strict=True)
            ]
            body = Web3.to_json(requests if len(calls) > 1 else requests[0])  # type: ignore[arg-type]
            try:
                status, raw = self._post(body.encode())
            except _TooLongError:
                what = f"the answer has more than {_MOST_BYTES:,} bytes"
                return [Refusal(_TOO_LONG, what)] * len(calls)
            except TimeoutError:
                raise _TroubleError(f"nothing within {self._timeout_s:g} s") from None
            except OSError as error:
                raise _TroubleError(self._clean(error.strerror or type(error).__name__)) from None
            except (HTTPException, UnicodeError) as error:
                raise _TroubleError(type(error).__name__) from None
        answers = _read_answers(raw, numbers)
        if answers is None:
            if 300 <= status < 500 and status not in _PASSING:
                raise LedgerError(
                    f"the node at {self.name} answers HTTP status {status}: see whether the URL's path and "
                    "credentials are right"
                )
            raise _TroubleError(f"no JSON-RPC, but HTTP status {status}")
        answers = [self._cleaned(answer) for answer in answers]
        for answer in answers:
            if isinstance(answer, Refusal) and answer.code in _OVERLOADED:
                raise _TroubleError(f"error {answer.code}, {answer.message}")
        return answers

    def _post(self, body: bytes) -> tuple[int, bytes]:
        connection, self._connection = self._connection, None
        if connection is not None and time.monotonic() - self._used_s > _IDLE_S:
            connection.close()
            connection = None
        if connection is None:
            kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
            connection = kind(cast(str, self._parts.hostname), self._parts.port, timeout=self._timeout_s)
        try:
            if connection.sock is not None:
                connection.sock.settimeout(self._timeout_s)
            deadline_s = time.monotonic() + self._timeout_s
            connection.response_class = partial(_Answer, deadline_s)  # type: ignore[assignment]
            connection.request("POST", self._target, body, self._headers)
            response = connection.getresponse()
            chunks = []
            while chunk := response.read1(1 << 20):
                chunks.append(chunk)
            if response.length:
                raise IncompleteRead(b"", response.length)
            response.read()  # notes that it is at its end, so that the connection can be used again
        except BaseException:
            connection.close()
            raise
        self._connection, self._used_s = connection, time.monotonic()
        return response.status, b"".join(chunks)

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return re.sub(r"\s+", " ", text)[:_SHOWN]

    def _cleaned(self, answer: Json) -> Json:
        if not isinstance(answer, Refusal):
            return answer
        return Refusal(answer.code, self._clean(answer.message), answer.data)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except (ValueError, AttributeError):  # their text quotes the URL
        raise ConfigError("`url` must be one such as http://127.0.0.1:8545") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"`url` must start with http:// or https:// and a host, got scheme {parts.scheme!r}"
        )
    if not re.fullmatch(r"[!-~]+", url) or ("@" in url and "@" not in parts.netloc):
        raise ConfigError(
            f"`url` of scheme {parts.scheme} must write /, ?, #, spaces and what is not ASCII in user name "
            "and password as %2F, %3F, %23, ..."
        )
    return parts


def _parts(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Calls in requests of a size that nodes take."""
    part: list[Call] = []
    size = 0
    for call in calls:
        length = sum(len(param) for param in call[1] if isinstance(param, str))
        if part and (len(part) == _CALLS or size + length > _BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(call)
        size += length
    if part:
        yield part


def _read_answers(raw: bytes, numbers: Sequence[int]) -> list[Json] | None:
    """Results and refusals in the order of the request's numbers; None if that is not what was answered."""
    with suppress(ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError):
        found = json.loads(raw)
        if isinstance(found, dict) and found.get("error") is not None and found.get("id") in (None, *numbers):
            return [_refusal(found["error"])] * len(numbers)  # one for all
        found = [found] if isinstance(found, dict) else found
        answers = {each["id"]: each for each in found}
        if len(found) == len(numbers) and set(answers) == set(numbers):
            return [
                _refusal(each["error"]) if each.get("error") is not None else each["result"]
                for each in map(answers.__getitem__, numbers)
            ]
    return None


def _refusal(error: Json) -> Refusal:
    data = error.get("data")
    if isinstance(data, dict):  # hardhat's way
        data = data.get("data")
    hexadecimal = isinstance(data, str) and re.fullmatch("0x[0-9a-fA-F]*", data)
    return Refusal(int(error["code"]), str(error.get("message", "")), data if hexadecimal else None)


def _response(answer: Json) -> RPCResponse:
    response: dict[str, Json] = {"jsonrpc": "2.0", "id": 0}
    if isinstance(answer, Refusal):
        response["error"] = {"code": answer.code, "message": answer.message}
        if answer.data is not None:
            response["error"]["data"] = answer.data
    else:
        response["result"] = answer
    return cast(RPCResponse, response)

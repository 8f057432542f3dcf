"""The payload store, in a folder and in memory."""

import os
from hashlib import sha256
from pathlib import Path

import pytest

from flower_bfl.chain_adapter import PayloadStore
from flower_bfl.errors import LedgerError, PayloadError

PAYLOAD = bytes(range(256)) * 40
DIGEST = sha256(PAYLOAD).digest()


@pytest.fixture(params=["memory", "folder", "fsync"])
def store(request, tmp_path):
    return PayloadStore(
        None if request.param == "memory" else tmp_path / "a" / "b", fsync=request.param == "fsync"
    )


def test_what_was_written_is_read(store):
    assert DIGEST not in store
    assert store.write(PAYLOAD) == DIGEST
    assert store.write(PAYLOAD, DIGEST) == DIGEST
    assert DIGEST in store
    assert store.read(DIGEST) == PAYLOAD


def test_a_missing_payload(store):
    store.write(b"other")
    with pytest.raises(PayloadError, match=f"{DIGEST.hex()}.* is missing"):
        store.read(DIGEST)


def test_discarded_payloads_are_gone(store):
    store.write(PAYLOAD)
    store.discard([DIGEST, bytes(32)])
    assert DIGEST not in store


def test_files_are_named_by_their_digest_and_nothing_else_is_left(tmp_path):
    PayloadStore(tmp_path).write(PAYLOAD)
    (file,) = tmp_path.iterdir()
    assert file.name == f"{DIGEST.hex()}.safetensors"
    assert file.read_bytes() == PAYLOAD


@pytest.mark.parametrize("position", [0, 1, 5000, len(PAYLOAD) - 1])
def test_a_changed_byte_is_found(tmp_path, position):
    store = PayloadStore(tmp_path)
    store.write(PAYLOAD)
    (file,) = tmp_path.iterdir()
    damaged = bytearray(PAYLOAD)
    damaged[position] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(PayloadError) as caught:
        store.read(DIGEST)
    assert all(text in str(caught.value) for text in (str(file), DIGEST.hex(), sha256(damaged).hexdigest()))


def test_a_file_cut_short_is_found_and_written_anew(tmp_path):
    store = PayloadStore(tmp_path)
    store.write(PAYLOAD)
    (file,) = tmp_path.iterdir()
    os.truncate(file, 100)
    with pytest.raises(PayloadError, match="must have digest"):
        store.read(DIGEST)
    store.write(PAYLOAD)
    assert store.read(DIGEST) == PAYLOAD


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(LedgerError, match=f"payload folder {tmp_path / 'taken'} cannot be written"):
        PayloadStore(tmp_path / "taken").write(PAYLOAD)


def test_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    store = PayloadStore(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store.write(PAYLOAD)
    for _ in range(2):  # nothing was flushed by failing once
        with pytest.raises(LedgerError, match="No space left on device"):
            store.flush()


def at(file: int) -> str:
    """Path of an open file."""
    return str(Path(f"/proc/self/fd/{file}").readlink())


def test_a_flush_waits_for_what_was_written_since_the_last(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(
        os, "fsync", lambda file: flushed.append(str(Path(f"/proc/self/fd/{file}").readlink()))
    )
    store = PayloadStore(tmp_path / "payloads")
    names = [store.write(f"payload {n}".encode()) for n in range(40)]
    store.discard(names[:3])
    store.flush()
    *files, folder, parent = flushed
    assert parent == str(tmp_path)
    assert sorted(files) == sorted(str(store._path(store.folder, name)) for name in names[3:])
    assert folder == str(store.folder)
    store.flush()
    assert len(flushed) == 39
    store.write(b"payload 5")  # an earlier process may have left it without a flush
    store.flush()
    assert len(flushed) == 41
    quick = PayloadStore(tmp_path / "payloads", fsync=False)
    quick.write(b"another")
    quick.flush()
    assert len(flushed) == 41


@pytest.mark.parametrize("left", [b"\0" * len(PAYLOAD), PAYLOAD[:-1], b""])
def test_what_a_power_cut_left_of_a_file_is_written_again(tmp_path, left):
    store = PayloadStore(tmp_path)
    store._path(tmp_path, DIGEST).write_bytes(left)
    store.write(PAYLOAD)
    assert store.read(DIGEST) == PAYLOAD


def test_somebody_elses_payload_may_be_read_by_all(tmp_path):
    """Unlike a temporary file, which only its owner may read."""
    mask = os.umask(0o022)
    try:
        PayloadStore(tmp_path).write(PAYLOAD)
    finally:
        os.umask(mask)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644

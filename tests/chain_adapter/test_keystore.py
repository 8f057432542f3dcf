"""The encrypted key folder: eth_account and a published keystore as judges, damage, races, secrets."""

import json
import stat
import threading
import traceback
from pathlib import Path

import pytest
from coincurve import PrivateKey
from eth_account import Account
from makers import OPERATOR, device, gradient, model, server

from flower_bfl.chain_adapter import EvmLedger, KeyFolder
from flower_bfl.errors import ConfigError

PASSWORD = "correct horse"

# for "testpassword": test vector of the format's definition, Ethereum's "Web3 Secret Storage"
PUBLISHED_KEY = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"
PUBLISHED = {
    "crypto": {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
        "kdf": "pbkdf2",
        "kdfparams": {
            "c": 262144,
            "dklen": 32,
            "prf": "hmac-sha256",
            "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
        },
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
    },
    "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
    "version": 3,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Deriving a key from a password takes most of a second, on purpose; not so here."""
    if request.node.name != "test_the_files_are_as_hard_to_guess_as_the_standard_says":
        monkeypatch.setattr("eth_keyfile.keyfile.get_default_work_factor_for_kdf", lambda kdf: 4)


def test_one_file_a_sender_which_eth_account_opens(tmp_path):
    keys = KeyFolder(tmp_path / "keys", PASSWORD, create=True)
    senders = {"operator.json": OPERATOR, "device-3.json": device(3), "server-0.json": server(0)}
    for name, sender in senders.items():
        path = tmp_path / "keys" / name
        key = keys(sender)
        keystore = json.loads(path.read_text())
        assert bytes(Account.decrypt(keystore, PASSWORD)) == key and len(key) == 32
        assert "0x" + keystore["address"].lower() == Account.from_key(key).address.lower()
        assert keystore["version"] == 3
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len({keys(sender) for sender in senders.values()}) == 3
    assert {path.name for path in (tmp_path / "keys").iterdir()} == set(senders)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_keys_stay_the_same(tmp_path):
    first = KeyFolder(tmp_path, PASSWORD, create=True)
    made = first(OPERATOR), first(device(1))
    for again in (KeyFolder(tmp_path, PASSWORD), KeyFolder(str(tmp_path), PASSWORD, create=True)):
        assert (again(OPERATOR), again(device(1))) == made


def test_a_key_is_decrypted_once(tmp_path):
    KeyFolder(tmp_path, PASSWORD, create=True)(OPERATOR)
    keys = KeyFolder(tmp_path, PASSWORD)
    key = keys(OPERATOR)
    (tmp_path / "operator.json").unlink()
    assert keys(OPERATOR) == key


def test_a_published_keystore_and_one_of_eth_account(tmp_path):
    (tmp_path / "device-0.json").write_text(json.dumps(PUBLISHED))
    assert KeyFolder(tmp_path, "testpassword")(device(0)).hex() == PUBLISHED_KEY
    key = Account.create().key
    (tmp_path / "device-1.json").write_text(json.dumps(Account.encrypt(key, "pässword", kdf="pbkdf2")))
    assert KeyFolder(tmp_path, "pässword")(device(1)) == bytes(key)


def test_a_ledger_takes_them(tmp_path):
    keys = KeyFolder(tmp_path / "keys", PASSWORD, create=True)
    ledger = EvmLedger(tmp_path / "run")
    ledger.open(keys)
    ledger.record([gradient(0, device(0)), model(0)])
    accounts = [recorded.account.hex() for recorded in ledger.recorded()]
    assert accounts == [Account.from_key(keys(each)).address[2:].lower() for each in (device(0), OPERATOR)]
    ledger.close()
    ledger.open(KeyFolder(tmp_path / "keys", PASSWORD))
    ledger.close()


def test_the_files_are_as_hard_to_guess_as_the_standard_says(tmp_path):
    KeyFolder(tmp_path, PASSWORD, create=True)(OPERATOR)
    crypto = json.loads((tmp_path / "operator.json").read_text())["crypto"]
    assert crypto["kdf"] == "scrypt"
    assert crypto["kdfparams"]["n"] >= 2**18 and crypto["kdfparams"]["r"] == 8


@pytest.mark.parametrize("drawn", ["first", "last"])
def test_the_ends_of_what_may_be_drawn_are_keys(tmp_path, monkeypatch, drawn):
    monkeypatch.setattr("secrets.randbelow", lambda end: 0 if drawn == "first" else end - 1)
    key = KeyFolder(tmp_path, PASSWORD, create=True)(OPERATOR)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    assert int.from_bytes(key) == (1 if drawn == "first" else order - 1)
    PrivateKey(key)  # ValueError for what is none


# ---- what is refused


def refusal(keys: KeyFolder, sender=OPERATOR) -> str:
    """The error's text; neither it nor what Python prints of it has the password or a key."""
    with pytest.raises(ConfigError) as caught:
        keys(sender)
    printed = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in printed and PUBLISHED_KEY not in printed
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    keys = KeyFolder(tmp_path, PASSWORD)
    expected = f"key file {tmp_path / 'device-2.json'} is missing; `create=True` makes new keys"
    assert refusal(keys, device(2)) == expected
    assert refusal(KeyFolder(tmp_path / "none", PASSWORD)).startswith(f"key file {tmp_path / 'none'}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [False, True])
def test_a_wrong_password(tmp_path, create):
    path = tmp_path / "operator.json"
    path.write_text(json.dumps(PUBLISHED))
    expected = f"key file {path} has another password, or is damaged"
    assert refusal(KeyFolder(tmp_path, PASSWORD, create=create)) == expected
    assert json.loads(path.read_text()) == PUBLISHED


def test_a_password_must_be_given():
    for password in ("", None, b"bytes"):
        with pytest.raises(ConfigError, match="`password` must be text, and not empty"):
            KeyFolder("keys", password)


def damaged(path: str, value: object) -> str:
    """The published keystore with one field another."""
    keystore = json.loads(json.dumps(PUBLISHED))
    *parents, last = path.split(".")
    place = keystore
    for name in parents:
        place = place[name]
    place[last] = value
    return json.dumps(keystore)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "\xff", "[" * 10**5, '{"version": 3}', '{"version": 4}',
        damaged("version", 1), damaged("crypto", []), damaged("crypto.kdf", "none"),
        damaged("crypto.kdfparams", {}), damaged("crypto.mac", 7), damaged("crypto.ciphertext", "zz"),
        damaged("crypto.kdfparams.c", -1),
    ],
)  # fmt: skip
def test_what_is_no_keystore(tmp_path, text):
    path = tmp_path / "operator.json"
    path.write_text(text, "latin1")
    message = refusal(KeyFolder(tmp_path, "testpassword", create=True))
    assert message in (
        f"key file {path} must be a keystore of version 3",
        f"key file {path} has another password, or is damaged",
    )
    assert path.read_text("latin1") == text


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "taken").write_text("a file")
    message = refusal(KeyFolder(tmp_path / "taken", PASSWORD, create=True))
    assert message.startswith(f"key file {tmp_path / 'taken' / 'operator.json'} cannot be used: ")


# ---- writing


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = refusal(KeyFolder(tmp_path, PASSWORD, create=True))
    assert message == f"key file {tmp_path / 'operator.json'} cannot be used: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_another_process_makes_meanwhile_is_taken(tmp_path, monkeypatch):
    encrypt = Account.encrypt

    def slow(key: bytes, password: str) -> dict:
        path = tmp_path / "operator.json"
        if not path.exists():
            path.write_text(json.dumps(encrypt(b"\7" * 32, PASSWORD)))
        return encrypt(key, password)

    monkeypatch.setattr(Account, "encrypt", slow)
    assert KeyFolder(tmp_path, PASSWORD, create=True)(OPERATOR) == b"\7" * 32
    assert [path.name for path in tmp_path.iterdir()] == ["operator.json"]


def test_many_at_once_agree(tmp_path):
    folders = [KeyFolder(tmp_path / "keys", PASSWORD, create=True) for _ in range(4)]
    found: list[bytes] = []

    def work(keys: KeyFolder) -> None:
        found.extend(keys(device(index)) for index in range(5))

    threads = [threading.Thread(target=work, args=(keys,)) for keys in folders for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40 and len(set(found)) == 5
    assert len(list((tmp_path / "keys").iterdir())) == 5


def test_nothing_secret_is_shown(tmp_path: Path):
    keys = KeyFolder(tmp_path, PASSWORD, create=True)
    key = keys(OPERATOR)
    shown = repr(keys) + str(keys)
    assert shown == 2 * f"KeyFolder({str(tmp_path)!r})"
    assert key.hex() not in (tmp_path / "operator.json").read_text()

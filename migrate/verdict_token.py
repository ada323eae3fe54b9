"""A destination's verdict on paper, for an operator to carry where no link goes.

The operator is then one more network path, and nothing has to be believed that the
network would not be believed: the token is signed with the key of the destination's
journal, and the epoch that the source heard with Ready is the digest of its public
half. So no other journal can sign for this one, and nobody has to be paired first.
"""

import base64
import binascii
import hashlib
from typing import Final

from migrate.journal import EPOCH_BYTES
from migrate.ownership import Verdict

_PREFIX: Final = "migrate-verdict-1:"
_TRANSACTION_BYTES: Final = 16
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64


class BadToken(Exception):
    """The message is a sentence that says what is wrong with it."""


def new_key() -> tuple[bytes, bytes]:
    """A key for a new journal, and the epoch that goes with it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    return key.private_bytes_raw(), _epoch(public)


def sign(key: bytes, transaction: bytes, verdict: Verdict) -> str:
    """The token that says ``verdict``."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signer = Ed25519PrivateKey.from_private_bytes(key)
    public = signer.public_key().public_bytes_raw()
    body = bytes([verdict.value]) + transaction + public
    signature = signer.sign(_PREFIX.encode() + body)
    return _PREFIX + base64.urlsafe_b64encode(body + signature).decode()


def verify(token: str, transaction: bytes, epoch: bytes) -> Verdict:
    """What it says about ``transaction``, if the journal of ``epoch`` says so.

    Raises:
        BadToken: it does not.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = base64.urlsafe_b64decode(token.strip().removeprefix(_PREFIX))
    except (binascii.Error, ValueError):
        raw = b""
    body, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
    if len(body) != 1 + _TRANSACTION_BYTES + _KEY_BYTES:
        raise BadToken("This is no verdict token, or not all of one.")
    public = body[1 + _TRANSACTION_BYTES :]
    if body[1 : 1 + _TRANSACTION_BYTES] != transaction:
        raise BadToken("This token is about another transaction.")
    if _epoch(public) != epoch:
        raise BadToken(
            "This token is signed by another journal than the one that was ready to "
            "take the process: by another host, or by one that has lost its journal."
        )
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(
            signature, _PREFIX.encode() + body
        )
        return Verdict(body[0])
    except (InvalidSignature, ValueError):
        raise BadToken("The signature of this token is not good.") from None


def _epoch(public: bytes) -> bytes:
    return hashlib.blake2b(public, digest_size=EPOCH_BYTES).digest()

"""Who this host is to others: an Ed25519 key, and a certificate that it signs itself.

The certificate only carries the key into TLS: what counts is its fingerprint. It names
no host, since names change hands, and has no end, since an end would turn up in the
middle of somebody's night (RFC 5280, 4.1.2.5: 99991231235959Z says so).

Made when it is first needed. Whoever can read it is this host to every peer.
"""

import ssl
from pathlib import Path
from typing import Final

from migrate import config_directory
from migrate.config_directory import NotOurs
from transport.tls import Credentials, Fingerprint

FILE: Final = "identity.pem"

_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aiou"
_WORDS: Final = 6  # 96 bits: nobody finds a second key with the same words


def load(folder: Path | None = None) -> Credentials:
    """This host's own; made if there is none.

    Raises:
        NotOurs: the file is not to be trusted, or cannot be made.
    """
    folder = folder or config_directory.path()
    file = folder / FILE
    try:
        pem = config_directory.read_ours(file, secret=True)
    except FileNotFoundError:
        config_directory.make(folder)
        # Whoever comes second takes that of the first.
        config_directory.write_ours(file, new(), anew=True)
        pem = config_directory.read_ours(file, secret=True)
    return Credentials(_certificate(pem, file), pem.encode())


def new() -> str:
    """A new key and its certificate, PEM."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "migrate")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(1970, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59))
        .sign(key, None)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return (private + certificate.public_bytes(serialization.Encoding.PEM)).decode()


def words(fingerprint: Fingerprint) -> str:
    """Its first 96 bits as six words that can be read out over a telephone."""
    raw = bytes.fromhex(fingerprint.removeprefix("SHA256:"))
    return spoken(raw[: 2 * _WORDS])


def spoken(raw: bytes) -> str:
    """16 bits a word, consonants and vowels in turns (proquints, arXiv:0901.4016)."""
    pairs = zip(raw[::2], raw[1::2], strict=True)
    return "-".join(_word(high << 8 | low) for high, low in pairs)


def _word(number: int) -> str:
    return (
        _CONSONANTS[number >> 12]
        + _VOWELS[number >> 10 & 3]
        + _CONSONANTS[number >> 6 & 15]
        + _VOWELS[number >> 4 & 3]
        + _CONSONANTS[number & 15]
    )


def require_own_kind(certificate: bytes) -> None:
    """An Ed25519 key that signs itself, as ours: nothing else is worth to be pinned.

    Raises:
        NotOurs: it is something else.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        found = x509.load_der_x509_certificate(certificate)
        key = found.public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise NotOurs("Its key is not an Ed25519 key, as those of migrate are.")
        key.verify(found.signature, found.tbs_certificate_bytes)
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise NotOurs(f"Its certificate is none of migrate's: {error}.") from error


def _certificate(text: str, file: Path) -> bytes:
    begin = text.find("-----BEGIN CERTIFICATE-----")
    if begin < 0 or "-----BEGIN PRIVATE KEY-----" not in text:
        raise NotOurs(
            f"{file} does not hold a key and a certificate. Restore it; or remove it "
            "for a new identity, and pair this host anew with every other."
        )
    try:
        return ssl.PEM_cert_to_DER_cert(text[begin:].strip())
    except ValueError as error:
        raise NotOurs(f"The certificate in {file} is none: {error}.") from error

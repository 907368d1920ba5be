"""Certificates for servers on this machine, made on the spot: an authority and who it signs."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path
    signer: Any
    x509: Any

    @property
    def pair(self) -> tuple[str, str]:
        """Certificate and key, as `ssl.SSLContext.load_cert_chain` takes them."""
        return str(self.certificate), str(self.key)


def make_certificate(folder: Path, name: str, by: Certificate | None = None) -> Certificate:
    """A certificate for 127.0.0.1, signed by an authority; without one: an authority.

    Writes NAME.crt and NAME.key into the folder. It is good for a day.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    local = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.x509.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(local, critical=False)
        .sign(by.signer if by else key, hashes.SHA256())
    )
    certificate, file = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Certificate(certificate, file, key, made)

"""TLS on our own port: certificates from files, which can be read again while it serves."""

from __future__ import annotations

import ssl

from agentsched.config_access import TlsConfig
from agentsched.model import ConfigError


def server_context(config: TlsConfig) -> ssl.SSLContext | None:
    """The context for our port; None where no certificate is configured.

    With `client_ca` whoever has no certificate of those authorities gets no further than the
    handshake.

    Raises:
        ConfigError: a file cannot be read, or key and certificate do not go together.
    """
    if config.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A client that asks for renegotiation asks for our CPU.
    context.options |= ssl.OP_NO_RENEGOTIATION
    load(context, config)
    return context


def load(context: ssl.SSLContext, config: TlsConfig) -> None:
    """Read the files into a context; handshakes from now on use what they hold.

    Raises:
        ConfigError: as `server_context`; the context serves on with what it had.
    """
    assert config.certificate is not None
    try:
        # Tried out first: a context is not to be left with half of a wrong pair.
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for into in (trial, context):
            into.load_cert_chain(config.certificate, config.key)
            if config.client_ca is not None:
                into.load_verify_locations(cafile=config.client_ca)
                into.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"tls: certificate, key or client_ca: {reason}") from error

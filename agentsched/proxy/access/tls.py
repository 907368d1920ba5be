"""TLS on our own port: certificates from files, which can be read again while it serves."""

from __future__ import annotations

import ssl

from agentsched.config_access import TlsConfig
from agentsched.model import ConfigError


class PortContext(ssl.SSLContext):
    """What the port is given, once: each handshake goes by what was loaded last.

    A context that was made forgets none of the authorities that it has trusted, nor whom it gave
    tickets to come back with, so each load is one of its own.
    """

    #: Set by `load`.
    latest: ssl.SSLContext

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """One connection, by the latest files; those that are open stay as they are."""
        return self.latest.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def server_context(config: TlsConfig) -> PortContext | None:
    """The context for our port; None where no certificate is configured.

    With `client_ca` whoever has no certificate of those authorities gets no further than the
    handshake.

    Raises:
        ConfigError: a file cannot be read, or key and certificate do not go together.
    """
    if config.certificate is None:
        return None
    context = PortContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, config)
    return context


def load(context: PortContext, config: TlsConfig) -> None:
    """Read the files; handshakes from now on use what they hold.

    Raises:
        ConfigError: as `server_context`; the context serves on with what it had.
    """
    context.latest = _made(config)


def _made(config: TlsConfig) -> ssl.SSLContext:
    assert config.certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A client that asks for renegotiation asks for our CPU.
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(config.certificate, config.key)
        if config.client_ca is not None:
            context.load_verify_locations(cafile=config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"tls: certificate, key or client_ca: {reason}") from error
    return context

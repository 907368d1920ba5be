"""Where engines that are added at run time may be: no way from our port into the network.

Addresses by which clouds hand out credentials, and link-local ones, are refused always; where the
operator names hosts or networks, everything else is, too. A name is looked up first, and all that
it stands for is looked at. What a name is made to mean later is not seen: name hosts you trust.
"""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from agentsched.config import EngineConfig
from agentsched.model import ConfigError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_LOOKUP_S: Final = 5.0

#: Besides link-local addresses: AWS over IPv6, Alibaba, Oracle, Azure's own, and "this host".
_REFUSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "fd00:ec2::/32",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "168.63.129.16/32",
        "0.0.0.0/8",
        "::/128",
    )
)
#: NAT64 (RFC 6052, RFC 8215): the last 32 bits are the IPv4 address that is reached.
_TRANSLATED: Final = tuple(
    ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/96")
)
_NAMES: Final = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"}
)


async def check_target(engine: EngineConfig, allowed: Sequence[str]) -> None:
    """Say whether an engine may be there, its tiers' controller and its events where theirs are.

    Raises:
        ConfigError: it may not, or its name cannot be looked up.
    """
    for url in (engine.url, engine.lmcache):
        if url is not None:
            await _check_place(url.host or "", url.port or 80, allowed)
    if engine.kv_events is not None:
        host, _, port = engine.kv_events.removeprefix("tcp://").rpartition(":")
        await _check_place(host, int(port), allowed)


async def _check_place(name: str, port: int, allowed: Sequence[str]) -> None:
    host = name.strip("[]").rstrip(".").lower()
    if host in _NAMES:
        raise ConfigError(f"{host} is no place for an engine: it hands out credentials")
    addresses = await _addresses(host, port)
    for address in addresses:
        if _is_refused(address):
            raise ConfigError(f"{host} is no place for an engine: link-local, or for credentials")
    if allowed and not _is_allowed(host, addresses, allowed):
        raise ConfigError(f"{host} is not among auth.engine_hosts")


async def _addresses(host: str, port: int) -> list[_Address]:
    try:
        return [ipaddress.ip_address(host.partition("%")[0])]
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_LOOKUP_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError) as error:
        raise ConfigError(f"{host[:256]} cannot be looked up") from error
    return [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]


def _plain(address: _Address) -> _Address:
    """IPv4 in the clothes of IPv6 is IPv4."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if any(address in network for network in _TRANSLATED):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_refused(address: _Address) -> bool:
    plain = _plain(address)
    return plain.is_link_local or plain.is_multicast or any(plain in n for n in _REFUSED)


def _is_allowed(host: str, addresses: Sequence[_Address], allowed: Sequence[str]) -> bool:
    for entry in allowed:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            if fnmatch.fnmatchcase(host, entry.lower()):
                return True
            continue
        if addresses and all(_plain(a) in network for a in addresses):
            return True
    return False

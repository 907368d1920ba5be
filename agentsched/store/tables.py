"""The tables, as SQLAlchemy classes. `migrations` makes them; a test holds the two together.

No prompt, no answer and no secret of a client is in any of them: prompts are keyed hashes, API keys
are hashes.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcTime(TypeDecorator[datetime]):
    """A moment; always UTC and always aware, also where the database forgets the zone (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        assert value is None or value.tzinfo is not None
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return moment.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables of the store."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class StreamRow(Base):
    """One replica's journal, from an empty scheduler on, over all its restarts.

    `epoch_ns` is the time of day (nanoseconds since 1970) of the journal's instant 0. Who writes
    holds a lease: `owner` names the process.
    """

    __tablename__ = "streams"

    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    replica: Mapped[str] = mapped_column(Text, index=True)
    header: Mapped[str] = mapped_column(Text)
    epoch_ns: Mapped[int] = mapped_column(BigInteger)
    opened_at: Mapped[datetime] = mapped_column(UtcTime)
    owner: Mapped[str] = mapped_column(Text)
    lease_until: Mapped[datetime] = mapped_column(UtcTime)


class JournalRow(Base):
    """One turn of a scheduler, as its line of the journal file. By day: PostgreSQL partitions."""

    __tablename__ = "journal"
    __table_args__ = ({"postgresql_partition_by": "RANGE (day)", "sqlite_with_rowid": False},)

    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    now: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(Text)
    program: Mapped[str | None] = mapped_column(Text)
    line: Mapped[str] = mapped_column(Text)


class TurnRow(Base):
    """One request of a program, as hashes: what its client will be recognised by."""

    __tablename__ = "turns"
    __table_args__ = (Index(None, "stream", "at_ns"),)

    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    handle: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at_ns: Mapped[int] = mapped_column(BigInteger)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class ImageRow(Base):
    """A scheduler after `seq` entries of its stream, for a quick start. `code` made it."""

    __tablename__ = "images"

    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    taken_at: Mapped[datetime] = mapped_column(UtcTime)
    code: Mapped[str] = mapped_column(Text)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class SecretRow(Base):
    """What keys the hashes of this store's prompts, where the operator configured nothing."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)


class ProgramRow(Base):
    """A program as it was when last looked at; a projection of the journal."""

    __tablename__ = "programs"
    __table_args__ = (Index(None, "tenant", "last_at"), Index(None, "last_at"))

    program: Mapped[str] = mapped_column(Text, primary_key=True)
    stream: Mapped[str] = mapped_column(Text)
    tenant: Mapped[str] = mapped_column(Text)
    agent: Mapped[str] = mapped_column(Text)
    parent: Mapped[str | None] = mapped_column(Text)
    opened_at: Mapped[datetime] = mapped_column(UtcTime)
    last_at: Mapped[datetime] = mapped_column(UtcTime)
    closed_at: Mapped[datetime | None] = mapped_column(UtcTime)
    steps_done: Mapped[int] = mapped_column(Integer)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    served_tokens: Mapped[int] = mapped_column(BigInteger)


class GraphRow(Base):
    """A program's execution graph (the JSON of `agentsched graph`); a projection."""

    __tablename__ = "graphs"

    program: Mapped[str] = mapped_column(
        Text, ForeignKey("programs.program", ondelete="CASCADE"), primary_key=True
    )
    taken_at: Mapped[datetime] = mapped_column(UtcTime)
    graph: Mapped[str] = mapped_column(Text)


class LearnedRow(Base):
    """Statistics learnt from traffic, for people and for planning; a projection."""

    __tablename__ = "learned"

    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    taken_at: Mapped[datetime] = mapped_column(UtcTime)
    data: Mapped[Any] = mapped_column(JSON)


class TenantRow(Base):
    """What an operator granted a tenant. `caps` are limits by name; None: the configuration's."""

    __tablename__ = "tenants"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    weight: Mapped[float] = mapped_column(Float, default=1.0)
    caps: Mapped[Any] = mapped_column(JSON, default=None, nullable=True)
    changed_at: Mapped[datetime] = mapped_column(UtcTime)


class TenantUsageRow(Base):
    """What a tenant was served by one replica; a projection of its journal."""

    __tablename__ = "tenant_usage"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    taken_at: Mapped[datetime] = mapped_column(UtcTime)
    steps: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    uncached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)


class ApiKeyRow(Base):
    """An API key: its hash, never the key. `hint` is its first characters, to tell keys apart."""

    __tablename__ = "api_keys"

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    hint: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    tenant: Mapped[str] = mapped_column(Text, index=True)
    scopes: Mapped[Any] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcTime)


METADATA: Final = Base.metadata

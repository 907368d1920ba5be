"""The tables, as SQLAlchemy classes. `migrations` makes them; a test holds the two together.

No prompt, no answer and no secret of a client is in any of them: prompts are keyed hashes, API keys
are hashes.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any, ClassVar, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
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


#: What rows are found by.
TextKey = Annotated[str, mapped_column(primary_key=True)]
NumberKey = Annotated[int, mapped_column(primary_key=True, autoincrement=False)]


class Base(DeclarativeBase):
    """All tables of the store."""

    #: Counts of tokens and of turns outgrow 32 bits.
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        int: BigInteger,
        float: Float,
        datetime: UtcTime,
        Any: JSON,
    }
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

    stream: Mapped[TextKey]
    replica: Mapped[str] = mapped_column(index=True)
    header: Mapped[str]
    epoch_ns: Mapped[int]
    opened_at: Mapped[datetime]
    owner: Mapped[str]
    lease_until: Mapped[datetime]


class JournalRow(Base):
    """One turn of a scheduler, as its line of the journal file. By day: PostgreSQL partitions."""

    __tablename__ = "journal"
    __table_args__ = ({"postgresql_partition_by": "RANGE (day)", "sqlite_with_rowid": False},)

    stream: Mapped[TextKey]
    seq: Mapped[NumberKey]
    day: Mapped[date] = mapped_column(primary_key=True)
    now: Mapped[int]
    kind: Mapped[str]
    program: Mapped[str | None]
    line: Mapped[str]


class TurnRow(Base):
    """One request of a program, as hashes: what its client will be recognised by."""

    __tablename__ = "turns"
    __table_args__ = (Index(None, "stream", "at_ns"),)

    stream: Mapped[TextKey]
    handle: Mapped[NumberKey]
    at_ns: Mapped[int]
    data: Mapped[bytes]


class ImageRow(Base):
    """A scheduler after `seq` entries of its stream, for a quick start. `code` made it."""

    __tablename__ = "images"

    stream: Mapped[TextKey]
    seq: Mapped[NumberKey]
    taken_at: Mapped[datetime]
    code: Mapped[str]
    data: Mapped[bytes]


class SecretRow(Base):
    """What keys the hashes of this store's prompts, where the operator configured nothing."""

    __tablename__ = "secrets"

    name: Mapped[TextKey]
    value: Mapped[bytes]


class ProgramRow(Base):
    """A program as it was when last looked at; a projection of the journal."""

    __tablename__ = "programs"
    __table_args__ = (Index(None, "tenant", "last_at"), Index(None, "last_at"))

    program: Mapped[TextKey]
    stream: Mapped[str]
    tenant: Mapped[str]
    agent: Mapped[str]
    parent: Mapped[str | None]
    opened_at: Mapped[datetime]
    last_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    steps_done: Mapped[int] = mapped_column(Integer)
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    output_tokens: Mapped[int]
    served_tokens: Mapped[int]


class GraphRow(Base):
    """A program's execution graph (the JSON of `agentsched graph`); a projection."""

    __tablename__ = "graphs"

    program: Mapped[str] = mapped_column(
        Text, ForeignKey("programs.program", ondelete="CASCADE"), primary_key=True
    )
    taken_at: Mapped[datetime]
    graph: Mapped[str]


class LearnedRow(Base):
    """Statistics learnt from traffic, for people and for planning; a projection."""

    __tablename__ = "learned"

    stream: Mapped[TextKey]
    name: Mapped[TextKey]
    taken_at: Mapped[datetime]
    data: Mapped[Any]


class TenantRow(Base):
    """What an operator granted a tenant. `caps` are limits by name; None: the configuration's."""

    __tablename__ = "tenants"

    tenant: Mapped[TextKey]
    weight: Mapped[float] = mapped_column(default=1.0)
    caps: Mapped[Any] = mapped_column(default=None, nullable=True)
    changed_at: Mapped[datetime]


class TenantUsageRow(Base):
    """What a tenant was served by one replica; a projection of its journal."""

    __tablename__ = "tenant_usage"

    tenant: Mapped[TextKey]
    stream: Mapped[TextKey]
    taken_at: Mapped[datetime]
    steps: Mapped[int]
    prompt_tokens: Mapped[int]
    uncached_tokens: Mapped[int]
    output_tokens: Mapped[int]


class ApiKeyRow(Base):
    """An API key: its hash, never the key. `hint` is its first characters, to tell keys apart."""

    __tablename__ = "api_keys"

    key: Mapped[TextKey]
    hash: Mapped[bytes] = mapped_column(unique=True)
    hint: Mapped[str]
    name: Mapped[str]
    tenant: Mapped[str] = mapped_column(index=True)
    scopes: Mapped[Any]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


METADATA: Final = Base.metadata

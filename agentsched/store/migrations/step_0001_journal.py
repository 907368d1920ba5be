"""Streams, their journal, the turns of programs, images and secrets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "streams",
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("replica", sa.Text, nullable=False),
        sa.Column("header", sa.Text, nullable=False),
        sa.Column("epoch_ns", sa.BigInteger, nullable=False),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("lease_until", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("stream", name="pk_streams"),
    )
    op.create_index("ix_streams_replica", "streams", ["replica"])
    op.create_table(
        "journal",
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("now", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("program", sa.Text, nullable=True),
        sa.Column("line", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("stream", "seq", "day", name="pk_journal"),
        postgresql_partition_by="RANGE (day)",
        sqlite_with_rowid=False,
    )
    op.create_table(
        "turns",
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("handle", sa.BigInteger, nullable=False),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("stream", "handle", name="pk_turns"),
    )
    op.create_index("ix_turns_stream_at_ns", "turns", ["stream", "at_ns"])
    op.create_table(
        "images",
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("taken_at", _TIME, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("stream", "seq", name="pk_images"),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )


def downgrade() -> None:
    """Drop them, with all that is in them."""
    for table in ("secrets", "images", "turns", "journal", "streams"):
        op.drop_table(table)

"""What is drawn from the journal: programs, graphs, learnt statistics, tenants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "programs",
        sa.Column("program", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("parent", sa.Text, nullable=True),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("last_at", _TIME, nullable=False),
        sa.Column("closed_at", _TIME, nullable=True),
        sa.Column("steps_done", sa.Integer, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("served_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("program", name="pk_programs"),
    )
    op.create_index("ix_programs_tenant_last_at", "programs", ["tenant", "last_at"])
    op.create_index("ix_programs_last_at", "programs", ["last_at"])
    op.create_table(
        "graphs",
        sa.Column("program", sa.Text, nullable=False),
        sa.Column("taken_at", _TIME, nullable=False),
        sa.Column("graph", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("program", name="pk_graphs"),
        sa.ForeignKeyConstraint(
            ["program"],
            ["programs.program"],
            name="fk_graphs_program_programs",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "learned",
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("taken_at", _TIME, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("stream", "name", name="pk_learned"),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("weight", sa.Float, nullable=False),
        sa.Column("caps", sa.JSON, nullable=True),
        sa.Column("changed_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_tenants"),
    )
    op.create_table(
        "tenant_usage",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("taken_at", _TIME, nullable=False),
        sa.Column("steps", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("uncached_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "stream", name="pk_tenant_usage"),
    )


def downgrade() -> None:
    """Drop them, with all that is in them."""
    for table in ("tenant_usage", "tenants", "learned", "graphs", "programs"):
        op.drop_table(table)

"""Witnesses: the last checkpoints of other logs, what was refused, and the own cosigned one."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the books' three tables."""
    op.create_table(
        "seen_checkpoint",
        sa.Column("origin", sa.String(200), primary_key=True),
        sa.Column("size", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("root", sa.LargeBinary(32), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("seen", sa.String(32), nullable=False),
    )
    op.create_table(
        "witness_alarm",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("origin", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("ours", sa.Text(), nullable=False),
        sa.Column("theirs", sa.Text(), nullable=False),
        sa.Column("found", sa.String(32), nullable=False),
    )
    op.create_index("ix_witness_alarm_origin", "witness_alarm", ["origin"])
    op.create_table(
        "own_checkpoint",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("since", sa.String(32), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
    )

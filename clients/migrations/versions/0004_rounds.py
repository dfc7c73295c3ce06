"""Sums over several banks: what was said in each round, and over whom each statistic was summed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the book's two tables."""
    op.create_table(
        "round_fact",
        sa.Column("manifest", sa.String(64), primary_key=True),
        sa.Column("attempt", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("label", sa.String(200), primary_key=True),
        sa.Column("fact", sa.String(200), primary_key=True),
        sa.Column("value", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "round_sum",
        sa.Column("statistic", sa.String(64), primary_key=True),
        sa.Column("parties", sa.Text(), primary_key=True),
    )

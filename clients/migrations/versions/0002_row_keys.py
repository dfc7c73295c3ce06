"""Books of row keys: the bank's one reply of an attempt, the department's attempts."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add both books."""
    op.create_table(
        "row_key_reply",
        *_attempt(),
        sa.Column("m", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("hello", sa.LargeBinary(), nullable=False),
        sa.Column("customers", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "row_key_attempt",
        *_attempt(),
        sa.Column("m", sa.BigInteger(), nullable=False),
        sa.Column("reply", sa.LargeBinary()),
        sa.Column("refused", sa.Boolean(), nullable=False),
    )


def _attempt() -> list[sa.Column[Any]]:
    return [
        sa.Column("bank", sa.String(32), primary_key=True),
        sa.Column("department", sa.String(32), primary_key=True),
        sa.Column("snapshot", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
    ]

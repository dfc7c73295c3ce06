"""Receipts that are completed once witnesses have cosigned."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Whom a completed receipt is due from, and which uses their subjects wait to hear of."""
    op.create_table(
        "use_outbox",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("said", sa.JSON, nullable=False),
        sa.Column("sent", sa.String(32)),
    )
    for table in ("enquiry", "score", "alert"):
        op.add_column(table, sa.Column("due_from", sa.String(64)))
        op.create_index(f"ix_{table}_due_from", table, ["due_from"])

"""checkpoints of the members' logs, and who cosigned which"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("org", sa.String(32), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("org", name="pk_checkpoints"),
    )
    op.create_table(
        "cosignatures",
        sa.Column("org", sa.String(32), nullable=False),
        sa.Column("witness", sa.String(32), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("org", "witness", name="pk_cosignatures"),
    )


def downgrade() -> None:
    for table in ("cosignatures", "checkpoints"):
        op.drop_table(table)

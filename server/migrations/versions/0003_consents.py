"""events on grants, status lists, sealed receipts"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "grant_events",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("sender", sa.String(32), nullable=False),
        sa.Column("bundle", sa.LargeBinary(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_grant_events"),
    )
    op.create_index("ix_grant_events_sender", "grant_events", ["sender"])
    op.create_table(
        "certificate_revocations",
        sa.Column("certificate", sa.String(64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("certificate", name="pk_certificate_revocations"),
    )
    op.create_table(
        "status_lists",
        sa.Column("org", sa.String(32), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("org", name="pk_status_lists"),
    )
    op.create_table(
        "notices",
        sa.Column("number", BIG, autoincrement=True, nullable=False),
        sa.Column("mailbox", sa.String(32), nullable=False),
        sa.Column("sender", sa.String(32), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_notices"),
    )
    op.create_index("ix_notices_mailbox", "notices", ["mailbox", "number"])


def downgrade() -> None:
    for table in ("notices", "status_lists", "certificate_revocations", "grant_events"):
        op.drop_table(table)

"""whose events and revocations fill the status list"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("grant_events", sa.Column("subject", sa.String(18), nullable=True))
    op.create_index("ix_grant_events_subject", "grant_events", ["subject"])
    op.add_column("certificate_revocations", sa.Column("org", sa.String(32), nullable=True))


def downgrade() -> None:
    op.drop_column("certificate_revocations", "org")
    op.drop_index("ix_grant_events_subject", "grant_events")
    op.drop_column("grant_events", "subject")

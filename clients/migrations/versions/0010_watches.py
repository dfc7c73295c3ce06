"""Watches and their alerts."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """What is watched, and what was told."""
    op.create_table(
        "watch",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("part", sa.String(8), nullable=False),
        sa.Column("consent", sa.String(64), nullable=False, index=True),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("snapshot", sa.String(64)),
        sa.Column("holds", sa.Boolean, nullable=False),
        sa.Column("last_alert", sa.String(32)),
        sa.Column("ended", sa.String(32)),
    )
    op.create_table(
        "alert",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("watch", sa.String(64), nullable=False, index=True),
        sa.Column("notice", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.String(32), nullable=False, index=True),
        sa.Column("taken", sa.String(32)),
    )

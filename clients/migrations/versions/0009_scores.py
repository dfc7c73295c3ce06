"""Scores of applicants."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """What was asked for, and what came of it."""
    op.create_table(
        "score",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("job", sa.String(64), nullable=False, index=True),
        sa.Column("manifest", sa.String(64), nullable=False),
        sa.Column("consent", sa.String(64), nullable=False, index=True),
        sa.Column("created", sa.String(32), nullable=False, index=True),
        sa.Column("requests", sa.JSON, nullable=False),
        sa.Column("answers", sa.JSON),
        sa.Column("score", sa.LargeBinary),
        sa.Column("points", sa.Integer),
    )

"""Grants, what was asked and told under them, and what that leaves to be told."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the tables of subjects, providers and verifiers."""
    op.create_table(
        "consent",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(18), nullable=False),
        sa.Column("bundle", sa.LargeBinary(), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("last_use", sa.String(32)),
        sa.Column("added", sa.String(32), nullable=False),
    )
    op.create_index("ix_consent_subject", "consent", ["subject"])
    op.create_table(
        "consent_event",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("consent", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(18)),
        sa.Column("bundle", sa.LargeBinary(), nullable=False),
        sa.Column("seen", sa.String(32), nullable=False),
    )
    op.create_index("ix_consent_event_consent", "consent_event", ["consent"])
    op.create_table(
        "status_list",
        sa.Column("org", sa.String(32), primary_key=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "subject_salt",
        sa.Column("subject", sa.String(18), primary_key=True),
        sa.Column("salt", sa.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "leak",
        sa.Column("scope", sa.String(64), primary_key=True),
        sa.Column("millibits", sa.BigInteger(), nullable=False),
        sa.Column("snapshot", sa.String(64), nullable=False),
        sa.Column("known", sa.JSON(), nullable=False),
    )
    op.create_table(
        "cuts",
        sa.Column("scope", sa.String(64), primary_key=True),
        sa.Column("cuts", sa.JSON(), nullable=False),
    )
    op.create_table(
        "consent_use",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("consent", sa.String(64), nullable=False),
        sa.Column("notice", sa.LargeBinary(), nullable=False),
        sa.Column("added", sa.String(32), nullable=False),
    )
    op.create_index("ix_consent_use_consent", "consent_use", ["consent"])
    op.create_table(
        "enquiry",
        sa.Column("number", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("request", sa.String(64), nullable=False, unique=True),
        sa.Column("question", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("answer", sa.LargeBinary()),
        sa.Column("receipt", sa.LargeBinary()),
        sa.Column("result", sa.String(16)),
    )
    op.create_table(
        "local_idempotency",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("body", sa.LargeBinary()),
        sa.Column("content_type", sa.String(80), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
    )
    op.create_index("ix_local_idempotency_created", "local_idempotency", ["created"])

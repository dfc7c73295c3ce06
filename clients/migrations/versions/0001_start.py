"""The first schema: registry, datasets, catalogue, jobs, exposure, token books, decoys, nonces."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Bring the schema from nothing."""
    op.create_table(
        "registry",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("region", sa.String(200), nullable=False),
        sa.Column("as_of", sa.String(10), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("file", sa.String(200), nullable=False),
        sa.Column("added", sa.String(32), nullable=False),
        sa.Column("current", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "dataset",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("source", sa.JSON(), nullable=False),
        sa.Column("columns", sa.JSON(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("unknown", sa.BigInteger(), nullable=False),
        sa.Column("checked_against", sa.String(64), nullable=False),
        sa.Column("snapshot", sa.String(64), nullable=False),
        sa.Column("file", sa.String(200), nullable=False),
        sa.Column("added", sa.String(32), nullable=False),
    )
    op.create_table(
        "catalogue",
        sa.Column(
            "dataset",
            sa.String(64),
            sa.ForeignKey("dataset.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("draft", sa.JSON(), nullable=False),
        sa.Column("envelope", sa.LargeBinary()),
        sa.Column("digest", sa.String(64)),
        sa.Column("published", sa.String(32)),
    )
    op.create_table(
        "job",
        sa.Column("manifest", sa.String(64), primary_key=True),
        sa.Column("job", sa.String(64), nullable=False, index=True),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("seen", sa.String(32), nullable=False),
        sa.Column("decision", sa.String(16)),
    )
    op.create_table(
        "approval",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("manifest", sa.String(64), nullable=False, index=True),
        sa.Column("org", sa.String(32), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("seen", sa.String(32), nullable=False),
    )
    op.create_table(
        "exposure",
        sa.Column("manifest", sa.String(64), primary_key=True),
        sa.Column("attempt", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("bank", sa.String(32), nullable=False),
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("customers_min", sa.BigInteger(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("opened", sa.String(32), nullable=False),
        sa.Column("closed", sa.String(32)),
    )
    for book in ("spent", "granted", "answer"):
        op.create_table(
            book,
            sa.Column("manifest", sa.String(64), primary_key=True),
            sa.Column("attempt", sa.Integer(), primary_key=True, autoincrement=False),
            sa.Column("querier", sa.String(32), primary_key=True),
            sa.Column("matrix", sa.String(200), primary_key=True),
            sa.Column("batch", sa.Integer(), primary_key=True, autoincrement=False),
            *_rest_of(book),
            sa.Column("digest", sa.LargeBinary(), nullable=False),
        )
    op.create_table(
        "decoy",
        sa.Column("arrival", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("k", sa.Integer(), nullable=False),
        sa.Column("owner", sa.LargeBinary(18), nullable=False),
        sa.Column("decoy", sa.LargeBinary(18), nullable=False),
    )
    op.create_table(
        "nonce",
        sa.Column("scope", sa.String(64), primary_key=True),
        sa.Column("nonce", sa.String(64), primary_key=True),
        sa.Column("expires", sa.String(32), nullable=False, index=True),
    )


def _rest_of(book: str) -> list[sa.Column[Any]]:
    if book == "granted":
        return []
    place = sa.Column("place", sa.Integer(), primary_key=True, autoincrement=False)
    if book == "spent":
        return [place, sa.Column("message", sa.LargeBinary())]
    return [place, sa.Column("payload", sa.LargeBinary(), nullable=False)]

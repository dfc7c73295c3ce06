"""jobs, approvals, records, events, organisations, catalogue"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "catalogue",
        sa.Column("org", sa.String(length=32), nullable=False),
        sa.Column("dataset", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("org", "dataset", name=op.f("pk_catalogue")),
    )
    op.create_table(
        "idempotency",
        sa.Column("org", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("content_type", sa.String(length=80), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("org", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created"), "idempotency", ["created"])

    op.create_table(
        "jobs",
        sa.Column("number", BIG, autoincrement=True, nullable=False),
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("manifest_digest", sa.String(length=64), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=20), nullable=True),
        sa.Column("started", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_jobs")),
        sa.UniqueConstraint("job", name=op.f("uq_jobs_job")),
        sa.UniqueConstraint("manifest_digest", name=op.f("uq_jobs_manifest_digest")),
    )
    op.create_index(op.f("ix_jobs_status"), "jobs", ["status"])

    op.create_table(
        "organisations",
        sa.Column("org", sa.String(length=32), nullable=False),
        sa.Column("card_digest", sa.String(length=64), nullable=False),
        sa.Column("node_id", sa.String(length=20), nullable=False),
        sa.Column("registered", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("org", name=op.f("pk_organisations")),
    )
    op.create_table(
        "job_parties",
        sa.Column("org", sa.String(length=32), nullable=False),
        sa.Column("job_number", BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_number"], ["jobs.number"], name=op.f("fk_job_parties_job_number_jobs")
        ),
        sa.PrimaryKeyConstraint("org", "job_number", name=op.f("pk_job_parties")),
    )
    op.create_table(
        "approvals",
        sa.Column("number", BIG, autoincrement=True, nullable=False),
        sa.Column("manifest_digest", sa.String(length=64), nullable=False),
        sa.Column("org", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["manifest_digest"],
            ["jobs.manifest_digest"],
            name=op.f("fk_approvals_manifest_digest_jobs"),
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_approvals")),
        sa.UniqueConstraint("manifest_digest", "digest", name=op.f("uq_approvals_manifest_digest")),
    )
    op.create_index(op.f("ix_approvals_manifest_digest"), "approvals", ["manifest_digest"])

    op.create_table(
        "events",
        sa.Column("number", BIG, autoincrement=True, nullable=False),
        sa.Column("job", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("org", sa.String(length=32), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=True),
        sa.Column("stage", sa.String(length=200), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["job"], ["jobs.job"], name=op.f("fk_events_job_jobs")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_job", "events", ["job", "number"])

    op.create_table(
        "run_records",
        sa.Column("number", BIG, autoincrement=True, nullable=False),
        sa.Column("manifest_digest", sa.String(length=64), nullable=False),
        sa.Column("org", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["manifest_digest"],
            ["jobs.manifest_digest"],
            name=op.f("fk_run_records_manifest_digest_jobs"),
        ),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_run_records")),
        sa.UniqueConstraint(
            "manifest_digest", "attempt", "org", name=op.f("uq_run_records_manifest_digest")
        ),
    )
    op.create_index(op.f("ix_run_records_manifest_digest"), "run_records", ["manifest_digest"])


def downgrade() -> None:
    for table in ("run_records", "events", "approvals", "job_parties", "jobs"):
        op.drop_table(table)
    for table in ("organisations", "idempotency", "catalogue"):
        op.drop_table(table)

"""events with the certificate that they rest on and who has issued it, named with their proofs"""

from __future__ import annotations

import base64
import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, length in (("certificate", 64), ("issuer", 32)):
        op.add_column("grant_events", sa.Column(name, sa.String(length), nullable=True))
        op.create_index(f"ix_grant_events_{name}", "grant_events", [name])
    connection = op.get_bind()
    names = ("digest", "bundle", "certificate", "issuer")
    events = sa.table("grant_events", *map(sa.column, names))
    for digest, bundle in connection.execute(sa.select(events.c.digest, events.c.bundle)).all():
        told = {"digest": hashlib.sha256(bytes(bundle)).hexdigest()}
        if (proof := json.loads(bytes(bundle))["certificate"]) is not None:  # else the platform's
            payload = base64.b64decode(proof["payload"])
            told["certificate"] = hashlib.sha256(payload).hexdigest()
            told["issuer"] = json.loads(payload)["org"]
        connection.execute(sa.update(events).where(events.c.digest == digest).values(told))
    op.drop_index("ix_grant_events_subject", "grant_events")
    op.drop_column("grant_events", "subject")


def downgrade() -> None:
    op.add_column("grant_events", sa.Column("subject", sa.String(18), nullable=True))
    op.create_index("ix_grant_events_subject", "grant_events", ["subject"])
    for name in ("issuer", "certificate"):
        op.drop_index(f"ix_grant_events_{name}", "grant_events")
        op.drop_column("grant_events", name)

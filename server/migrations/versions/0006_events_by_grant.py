"""events by the grant that they are on, for those who have it"""

from __future__ import annotations

import base64
import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "grant_events", sa.Column("consent", sa.String(64), nullable=False, server_default="")
    )
    op.create_index("ix_grant_events_consent", "grant_events", ["consent"])
    connection = op.get_bind()
    events = sa.table(
        "grant_events", sa.column("digest"), sa.column("bundle"), sa.column("consent")
    )
    for digest, bundle in connection.execute(sa.select(events.c.digest, events.c.bundle)).all():
        payload = json.loads(bytes(bundle))["signed"]["payload"]
        said = json.loads(base64.b64decode(payload))
        changed = sa.update(events).where(events.c.digest == digest)
        connection.execute(changed.values(consent=said["grant"]))


def downgrade() -> None:
    op.drop_index("ix_grant_events_consent", "grant_events")
    op.drop_column("grant_events", "consent")

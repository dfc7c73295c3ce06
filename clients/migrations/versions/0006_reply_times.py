"""When a reply for row keys was made, so that it can be erased with the audit window."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Replies of before count as made when they are first looked at."""
    op.add_column("row_key_reply", sa.Column("made", sa.String(32)))

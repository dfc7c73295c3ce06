"""How a watch has ended, at its owner and at its bank."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """The owner's entry of it, and what the owner has said to the bank."""
    op.add_column("watch", sa.Column("end_entry", sa.BigInteger))
    op.add_column("watch", sa.Column("end_reply", sa.LargeBinary))

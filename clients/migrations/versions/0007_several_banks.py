"""An exposure may be that of several banks that open sums together."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Room for their names."""
    with op.batch_alter_table("exposure") as table:
        table.alter_column("bank", type_=sa.Text(), existing_type=sa.String(32))

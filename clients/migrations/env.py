"""Alembic's entry point: upgrades over the connection that the store has already locked."""

from alembic import context

from clients.store import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,  # SQLite can: the store begins its transactions itself
)
with context.begin_transaction():
    context.run_migrations()

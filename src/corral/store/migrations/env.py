"""What Alembic runs: with the connection that ``database.migrate`` gives it."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()

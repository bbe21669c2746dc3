"""Keys, and a number that says whether they have changed."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        # What it begins with, so that people know which it is.
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("client", sa.String(64), nullable=False, index=True),
        sa.Column("name", sa.String(200), nullable=False),
        # As JSON: scopes, patterns of models, limits, limits by pattern.
        sa.Column("grants", sa.Text, nullable=False),
        # Not set: as the settings of the queue have it.
        sa.Column("priority", sa.String(16), nullable=True),
        sa.Column("weight", sa.Float, nullable=True),
        # Seconds since 1970, as all times.
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("expires", sa.Float, nullable=True),
        sa.Column("last_used", sa.Float, nullable=True),
        sa.Column("revoked", sa.Float, nullable=True),
        # What it was before it was rotated, and until when that counts.
        sa.Column("old_digest", sa.LargeBinary(32), nullable=True),
        sa.Column("old_until", sa.Float, nullable=True),
        # The version of the keyring in which it was last changed.
        sa.Column("version", sa.BigInteger, nullable=False, index=True),
    )
    keyring = op.create_table(
        "keyring",
        sa.Column("id", sa.Integer, primary_key=True),
        # Goes up with every change of a key.
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(keyring, [{"id": 1, "version": 1}])


def downgrade() -> None:
    op.drop_table("keyring")
    op.drop_table("api_key")

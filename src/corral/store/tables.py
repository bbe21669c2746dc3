"""The tables as queries see them; ``migrations/`` makes them."""

import sqlalchemy as sa

metadata = sa.MetaData()

api_key = sa.Table(
    "api_key",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("prefix", sa.String(16), nullable=False),
    sa.Column("client", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("grants", sa.Text, nullable=False),
    sa.Column("priority", sa.String(16)),
    sa.Column("weight", sa.Float),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("last_used", sa.Float),
    sa.Column("revoked", sa.Float),
    sa.Column("old_digest", sa.LargeBinary(32)),
    sa.Column("old_until", sa.Float),
    sa.Column("version", sa.BigInteger, nullable=False, index=True),
)

keyring = sa.Table(
    "keyring",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)

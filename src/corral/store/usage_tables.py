"""The tables of usage as queries see them; ``migrations/`` makes them."""

import sqlalchemy as sa

from corral.store.tables import metadata

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("run", sa.String(64), nullable=False, unique=True),
    sa.Column("file", sa.Integer, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
)

exchange = sa.Table(
    "exchange",
    metadata,
    sa.Column("journal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("ended", sa.Double, nullable=False),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("replica", sa.Text, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("estimated", sa.Boolean, nullable=False),
    sa.Column("ttft_s", sa.Double),
    sa.Column("duration_s", sa.Double, nullable=False),
    sa.Column("queue_wait_s", sa.Double),
    sa.Column("slot_s", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("resumed", sa.Integer, nullable=False),
    sa.Column("cost", sa.Double, nullable=False),
)

usage_hour = sa.Table(
    "usage_hour",
    metadata,
    sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("client", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("outcome", sa.Text, primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("slot_s", sa.Double, nullable=False),
    sa.Column("cost", sa.Double, nullable=False),
    sa.Column("ttft", sa.LargeBinary, nullable=False),
)

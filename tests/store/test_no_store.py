"""What only a store or a Valkey needs is not even loaded where there is none."""

import subprocess
import sys

NEEDED_ONLY_THERE = ("sqlalchemy", "alembic", "aiosqlite", "asyncpg", "sqlite3", "redis")

CODE = """
import asyncio, sys
import corral.cli, corral.serve
from corral.assembly import Assembly
from corral.config import load

async def build():
    Assembly(load(env={"OPERATOR_API_KEY": "key-of-operator"}))

asyncio.run(build())
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_without_a_store_nothing_of_it_is_loaded(tmp_path: object) -> None:
    told = subprocess.run(
        [sys.executable, "-c", CODE], cwd=str(tmp_path), capture_output=True, text=True, check=True, timeout=60
    )
    loaded = told.stdout.split()
    assert "fastapi" in loaded
    assert [name for name in NEEDED_ONLY_THERE if name in loaded] == []

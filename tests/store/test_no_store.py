"""Where there is no store, nothing of it is loaded or written."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, sys
from corral import cli, serve
from corral.assembly import Assembly
from corral.config import load

async def main():
    async with Assembly(load(env={})).running():
        pass

asyncio.run(main())
print([name for name in ("sqlalchemy", "alembic", "aiosqlite", "asyncpg") if name in sys.modules])
"""


def test_without_a_store_nothing_of_it_is_loaded_or_written(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []

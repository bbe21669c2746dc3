"""The same as ``corral bench``: ``python scripts/load_test.py --requests 40 --concurrency 8 --model llama``."""

import sys

from corral.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    main()

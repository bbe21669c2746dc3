"""``python -m corral`` is the command line."""

from corral.cli import main

if __name__ == "__main__":
    main()

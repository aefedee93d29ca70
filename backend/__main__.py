"""`python -m backend`: the command line."""

from backend.tools.cli import main

if __name__ == "__main__":
    main()

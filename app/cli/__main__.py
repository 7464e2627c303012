"""`python -m app.cli`: the command line without the installed script."""

import sys

from app.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

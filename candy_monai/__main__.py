"""``python -m candy_monai`` is the command line."""

from __future__ import annotations

import sys

from candy_monai.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

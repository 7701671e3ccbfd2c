"""Entry point of `python -m diffup`, which does the same as `diffup`."""

import sys

from diffup.cli import main

sys.exit(main())

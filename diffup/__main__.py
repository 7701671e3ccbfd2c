"""`python -m diffup`, the same as `diffup`."""

import sys

from diffup.cli import main

sys.exit(main())

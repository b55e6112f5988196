"""`python -m s24compile` is `s24`."""

import sys

from s24compile.cli import main

sys.exit(main())

"""`python -m cortex_fast`: the command `cortex-fast`, for launchers that start modules."""

import sys

from cortex_fast.cli import main

sys.exit(main())

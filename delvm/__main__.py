"""``python -m delvm`` is ``delvm``."""

import sys

from delvm.cli import main

sys.exit(main())

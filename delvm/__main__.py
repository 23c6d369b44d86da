"""``python -m delvm`` is ``delvm``."""

import sys

from delvm.cli import entry

sys.exit(entry())

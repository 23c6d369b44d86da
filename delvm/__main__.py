"""``python -m delvm`` is ``delvm``."""

import sys

from delvm.commands.cli import entry

sys.exit(entry())

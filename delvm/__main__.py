"""``python -m delvm`` is ``delvm``."""

import sys

from delvm.commands.cli import main

sys.exit(main())

"""`python -m steer_heal` does what `steer-heal` does."""

import sys

from steer_heal.commands.main import main

sys.exit(main())

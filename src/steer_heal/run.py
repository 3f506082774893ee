"""`python -m steer_heal.run --reg kl_rev` does what `steer-heal run --reg kl_rev` does."""

import sys

from steer_heal.commands.run import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())

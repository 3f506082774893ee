"""`python -m steer_heal.run --reg kl_rev` does what `steer-heal run --reg kl_rev` does."""

import sys

from steer_heal.commands.run import CommandLine, main, parsed

__all__ = ["CommandLine", "main", "parsed"]

if __name__ == "__main__":
    sys.exit(main())

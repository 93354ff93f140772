"""`python -m streamer` is the command `streamer`."""

import sys

from streamer.orphan import die_with_parent

if __name__ == "__main__":
    if "--supervised" in sys.argv:  # before all that takes time to import
        die_with_parent()
    from streamer.cli import main

    main()

"""`python -m busmicro`: the command line."""

from busmicro.cli import main

main()

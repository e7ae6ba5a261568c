"""Run the command line as ``python -m virnucpro``."""

from virnucpro.cli import main

main()

"""``python -m pyfedcomm``: the same as the command ``pyfedcomm``."""

from pyfedcomm.cli import main

main()

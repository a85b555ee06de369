"""Parse the options of a command, and report a wrong command line in one line."""

import argparse

from deeplab_lightning.usage import OneLineUsage

TRUST_HELP = "import the classes that the checkpoint names from any package, which runs their code"
OF_FIT = "All other options are those of `deeplab fit`"
OF_DATA = "All other options are `-c CONFIG`, of which only the data part is read, and `--data.*`, which override it."


class OptionParser(OneLineUsage, argparse.ArgumentParser):
    """Parse a command's own options; a wrong command line is reported in one line."""

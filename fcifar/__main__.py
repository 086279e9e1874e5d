"""Entry point of ``python -m fcifar``."""

from fcifar.cli import entry

entry()

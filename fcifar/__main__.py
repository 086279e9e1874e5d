"""Entry point of ``python -m fcifar``."""

from fcifar.cli import main

main()

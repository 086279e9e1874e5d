"""``python -m fcifar`` is ``fcifar``."""

from fcifar.cli import main

main()

"""The two ways a command can fail.

Each message is one line that says what was given, what is accepted and what to do.
"""


class UserError(ValueError):
    """The request cannot be carried out as it was made. The command line exits with 2."""


class WorldError(RuntimeError):
    """Disk, network or a damaged file stood in the way. The command line exits with 1."""

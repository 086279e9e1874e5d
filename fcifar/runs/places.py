"""Where runs go when nobody says. Nothing here needs torch."""

import os
import time
from pathlib import Path

from fcifar.errors import UserError, shown


def runs_root(runs_dir: Path | None = None) -> Path:
    """The folder of runs; it need not exist yet.

    ``runs_dir`` if given, else ``$FCIFAR_RUNS``, where ~ is the user's home, else "runs" in the
    current folder.

    Raises:
        UserError: ``$FCIFAR_RUNS`` is not UTF-8, and files of tensors could not be read there.
    """
    if runs_dir is not None:
        return runs_dir
    chosen = os.environ.get("FCIFAR_RUNS") or "runs"
    try:
        chosen.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"FCIFAR_RUNS is {shown(chosen)}, which is not UTF-8, as files of tensors need it; "
            "choose another"
        ) from error
    return Path(os.path.expanduser(chosen))


def new_run(root: Path, recipe: str, dataset: str, which: str) -> Path:
    """A directory in ``root`` for a run, or a group of them, that begins now.

    Args:
        which: of many: ``seed0``, or ``8runs``.
    """
    return root / f"{recipe}-{dataset}-{which}-{time.strftime('%Y%m%d-%H%M%S')}"

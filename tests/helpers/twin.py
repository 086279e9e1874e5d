"""torchvision's functional transforms, imported at the first use of one, for it takes seconds."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith(("_", "pytest")):  # pytest looks for them while it collects
        raise AttributeError(name)
    from torchvision.transforms.v2 import functional

    return getattr(functional, name)

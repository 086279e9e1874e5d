from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty data root beside the sources of a test."""
    return tmp_path / "root"

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tvnet_cli import writing

# Where there is no GPU, its kernels run in Triton's interpreter, which has to know before anything imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real films and reference outputs, which are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the test media in ../shared/data")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch) -> Path:
    """An empty folder in place of the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TVNET_CACHE", str(folder))
    return folder


@pytest.fixture
def small_disk(request, tmp_path) -> Iterator[Path]:
    """A disk of 2 MB, or of as many as a test asks for."""
    size = f"size={getattr(request, 'param', 2)}m"
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def no_room_for(monkeypatch) -> Callable[[str], None]:
    """All that is written to take the place of a file of this name goes to a disk without room."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a device that is always full")
    usual = writing.beside

    def fill(name: str) -> None:
        def beside(path: Path) -> Path:
            new = usual(path)
            if path.name == name:
                new.symlink_to("/dev/full")
            return new

        monkeypatch.setattr(writing, "beside", beside)

    return fill


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))

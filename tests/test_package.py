"""The package as a user gets it: what it installs, what it imports, and the films that come with it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "tvnet_cli"

# Each floor may import from those below it, and from itself.
FLOORS = [
    {"cli", "__main__"},
    {"commands"},
    {"progress", "doctor"},
    {"bench"},
    {"features", "aslan", "training", "visualize"},
    {"network"},
    {"flow"},
    {"video"},
    {"recipe", "device", "interrupt", "log", "writing", "terminal", "console", "hdf5", "locks", "reading"},
    {"options", "errors", "url"},
]


def floor(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module in names)


def test_imports_go_down_only():
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tvnet_cli."):
                assert own == "__init__" or floor(node.module.split(".")[1]) >= floor(own), (path, node.module)
                checked += 1
    assert checked >= 25


def test_systems_without_locks_and_limits_of_unix_can_import_the_program():
    modules = "cli device hdf5 locks network.fetch network.pickles commands.features features.store flow.store "
    modules += "video.reader"
    code = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
    code += "\n".join(f"import tvnet_cli.{name}" for name in modules.split())
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_mathematics_knows_no_disk_and_no_command_line():
    names = (
        "flow/operators.py flow/kernels_cpu.py flow/solver_cuda.py flow/tvnet.py flow/accuracy.py "
        "network/bn_inception.py network/inference.py network/stack.py aslan/similarity.py training/losses.py"
    )
    for name in names.split():
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pathlib", "os", "click", "av", "h5py", "rich"} & {module.split(".")[0] for module in modules}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built


def test_a_wheel_finds_its_weights_wherever_it_lies(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tvnet_cli.network.cards import weights_folder\n"
        "print(weights_folder()); assert (weights_folder() / 'README.md').is_file()"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "site")], check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()) == tmp_path / "site" / "tvnet_cli" / "weights"


def test_a_wheel_holds_the_program_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert "tvnet = tvnet_cli.cli:main" in entry_points
    assert "tvnet_cli/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tvnet_cli", "tvnet"}


def test_the_python_lines_of_the_readme_run():
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["flow"].shape == (2, 240, 320)
    np.testing.assert_array_equal(names["same"][0].detach(), names["flow"])


def test_the_example_films_are_small_and_play():
    films = sorted((REPOSITORY / "examples").glob("*.mp4"))
    assert len(films) == 4
    assert sum(film.stat().st_size for film in films) < 2_000_000
    for film in films:
        with av.open(str(film)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 100

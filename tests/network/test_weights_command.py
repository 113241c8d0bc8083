from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from checkpoint_files import Tensors, renamed, tensors_of
from click.testing import CliRunner, Result

from tvnet_cli.cli import main
from tvnet_cli.network import fetch
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.registry import PUBLISHED

REPOSITORY = Path(__file__).resolve().parents[2]


def weights(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["weights", *map(str, arguments)])


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return tensors_of(BNInception(3, num_classes=4))


@pytest.fixture(scope="module")
def checkpoint(tensors, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "model.pth"
    torch.save({"state_dict": renamed(tensors, "module.base_model.")}, path)
    return path


@pytest.fixture
def imported(checkpoint) -> Result:
    return weights("import", checkpoint, "--name", "mine", "--licence", "BSD")


def test_what_is_imported_is_listed_shown_verified_and_found(imported, cache_folder):
    assert imported.exit_code == 0, imported.stderr
    assert imported.stdout == ""
    assert "note input: BGR less 104, 117, 128, as tsn-pytorch; --input says otherwise\n" in imported.stderr
    assert "note classifier: fc, 4 classes\n" in imported.stderr
    path = cache_folder / "weights" / "mine.safetensors"
    assert imported.stderr.endswith(f"mine is in {path}; --weights mine takes it\n")
    assert weights("path", "mine").stdout == f"{path}\n"
    assert weights("path").stdout == f"{path.parent}\n"
    (line,) = [line for line in weights("list").stdout.splitlines() if line.startswith("mine ")]
    assert line.split(maxsplit=3)[1:] == ["rgb", "imported", "imported from model.pth (PyTorch)"]
    shown = weights("show", "mine").stdout
    assert shown == path.with_suffix(".toml").read_text()
    assert 'licence = "BSD"' in shown
    assert "\n[training]\nimported_from = " in shown
    card = json.loads(weights("show", "mine", "--json").stdout)
    verified = weights("verify")
    assert verified.exit_code == 0
    assert f"good  mine: rgb, sha256 {card['sha256']}\n" in verified.stdout
    (entry,) = [entry for entry in json.loads(weights("list", "--json").stdout) if entry["name"] == "mine"]
    assert entry == {"name": "mine", "state": "imported", "path": str(path), **card}


def test_imported_weights_serve_features(imported, tmp_path):
    result = CliRunner().invoke(main, ["features", str(tmp_path), "--weights", "mine"])
    assert "no videos in" in result.stderr
    (tmp_path / "film.mp4").write_text("no film")
    arguments = ["features", str(tmp_path), "--weights", "mine", "--streams", "rgb", "-o", str(tmp_path / "f.h5"), "-v"]
    assert "rgb stream on cpu: mine, sha256" in CliRunner().invoke(main, [*arguments, "--device", "cpu"]).stderr


def test_verify_tells_of_each_that_is_damaged(imported, cache_folder):
    path = cache_folder / "weights" / "mine.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = weights("verify", "mine", "nothing")
    assert result.exit_code == 1
    assert "bad   mine: " in result.stderr
    assert "is damaged or not the file of its card" in result.stderr
    assert "bad   nothing: no weights called 'nothing'" in result.stderr
    path.with_suffix(".toml").write_text("]")
    (entry,) = [entry for entry in json.loads(weights("list", "--json").stdout) if entry["name"] == "mine"]
    assert entry["state"] == "bad"
    assert "cannot read the card" in entry["source"]


def test_without_imports_the_published_ones_are_listed():
    names = [line.split()[0] for line in weights("list").stdout.splitlines()]
    assert names[-len(PUBLISHED) :] == list(PUBLISHED)
    assert 'git_blob = "7a84bcc6"' in weights("show", "tsn-ucf101-flow").stdout
    assert weights("verify", "-q").output == ""


def test_fetch_downloads_and_imports(checkpoint, cache_folder, monkeypatch):
    asked = []

    def fetch_published(name, *, mirrors, trust, offline, progress):
        asked.append((name, mirrors, trust, offline))
        progress(1, None)
        return checkpoint

    monkeypatch.setattr(fetch, "fetch_published", fetch_published)
    result = weights("fetch", "tsn-ucf101-flow", "--trust", "--url", "http://a", "--url", "http://b", "--offline")
    assert result.exit_code == 0, result.stderr
    assert asked == [("tsn-ucf101-flow", ("http://a", "http://b"), True, True)]
    assert "tsn-ucf101-flow is in " in result.stderr
    shown = weights("show", "tsn-ucf101-flow").stdout
    assert f'source = "{PUBLISHED["tsn-ucf101-flow"].source}"' in shown
    assert 'training_data = "UCF101"' in shown
    again = weights("fetch", "tsn-ucf101-flow")
    assert "there are weights called tsn-ucf101-flow already" in again.stderr
    assert len(asked) == 1
    assert weights("fetch", "tsn-ucf101-flow", "--name", "other", "--licence", "MIT", "-q").output == ""
    assert 'licence = "MIT"' in weights("show", "other").stdout


def test_a_published_name_for_a_file_of_ones_own_is_said(checkpoint):
    said = "note tsn-ucf101-rgb is also the name of published weights; this file was not compared with theirs"
    assert said in weights("import", checkpoint, "--name", "tsn-ucf101-rgb").stderr
    assert "also the name" not in weights("import", checkpoint, "--name", "my-own").stderr


def test_a_file_that_is_no_checkpoint_is_one_line_without_warnings(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(print))
    tvnet = [sys.executable, "-m", "tvnet_cli", "weights", "import", str(tmp_path / "evil.pkl"), "--name", "mine"]
    found = subprocess.run(tvnet, check=False, capture_output=True, text=True, cwd=REPOSITORY)
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "evil.pkl: it is damaged, or no file of a known format" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "error"),
    [
        (["import", "nowhere.pth", "--name", "x"], 1, "cannot read nowhere.pth"),
        (["import", "nowhere.pth"], 2, "--name"),
        (["import", "nowhere.pth", "--name", "a/b"], 1, "weights cannot be called 'a/b'"),
        (["import", "nowhere.pth", "--name", "x", "--input", "y"], 2, "--input"),
        (["fetch", "cadene-imagene", "--offline"], 1, "did you mean cadene-imagenet"),
        (["fetch", "cadene-imagenet", "--offline"], 1, "nothing is downloaded offline"),
        (["fetch", "tsn-ucf101-flow"], 1, "--trust"),
        (["show", "cadene"], 1, "no weights called 'cadene'"),
        (["path", "cadene-imagenet"], 1, "no weights called 'cadene-imagenet': tvnet weights fetch cadene-imagenet"),
        (["path", "nowhere.safetensors"], 1, "there is no file nowhere.safetensors"),
        (["verify", "nowhere.safetensors"], 1, "nowhere.toml is missing"),
    ],
)
def test_each_mistake_has_one_clear_line(tmp_path, monkeypatch, arguments, exit_code, error):
    monkeypatch.chdir(tmp_path)
    result = weights(*arguments)
    assert result.exit_code == exit_code, result.output
    assert error in result.stderr
    assert "Traceback" not in result.stderr
    assert exit_code == 2 or result.stderr.count("\n") == 1


def test_every_option_of_every_command_has_help():
    for name, command in main.commands["weights"].commands.items():
        assert command.help, name
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, (name, parameter.name)


def test_list_path_and_help_do_without_torch(tmp_path):
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom tvnet_cli.cli import main\n"
        "for words in (['-h'], ['list'], ['list', '--json'], ['path'], ['show', 'tsn-ucf101-flow'],"
        " *([name, '-h'] for name in main.commands['weights'].commands)):\n"
        "    assert CliRunner().invoke(main, ['weights', *words]).exit_code == 0, words\n"
        "print(sorted({'torch', 'numpy', 'rich', 'safetensors'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert found.stdout == "[]\n"

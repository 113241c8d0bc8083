"""Shell completion: the scripts, and what they ask the program, by click's protocol."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tvnet_cli.cli import main
from tvnet_cli.network.registry import PUBLISHED
from tvnet_cli.options import DEFAULT_WEIGHTS, DTYPES

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = DEFAULT_WEIGHTS["flow"]


def completed(words: str, shell: str = "bash") -> list[str]:
    """What is offered for the last of these words."""
    count = len(words.split(" "))
    variables = {"_TVNET_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(count - 1)}
    result = CliRunner().invoke(main, [], env=variables, prog_name="tvnet")
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(shell):
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_TVNET_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_read_their_script(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(CliRunner().invoke(main, ["completion", shell]).stdout)
    subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tvnet fea", ["plain,features"]),
        ("tvnet features --weights tv", [f"plain,{NAME}"]),
        ("tvnet features --weights ", [f"plain,{NAME}", "plain,untrained"]),
        ("tvnet features --weights films/", ["file,films/"]),
        ("tvnet features --streams f", ["plain,flow", "plain,flow,rgb"]),
        ("tvnet features --device ", ["plain,auto", "plain,cpu", "plain,cuda", "plain,all"]),
        ("tvnet features --dtype ", [f"plain,{dtype}" for dtype in DTYPES]),
        ("tvnet features --batch", ["plain,--batch-size"]),
        ("tvnet features fil", ["file,fil"]),
        ("tvnet flow --weights tv", [f"plain,{NAME}"]),
        ("tvnet flow --preset tv-", ["plain,tv-l1"]),
        ("tvnet train mo", ["plain,motion"]),
        ("tvnet train motion --weights tv", [f"plain,{NAME}"]),
        ("tvnet train actions --weights tv", [f"plain,{NAME}"]),
        ("tvnet weights verify tv", [f"plain,{NAME}"]),
        ("tvnet weights path tv", [f"plain,{NAME}"]),
        ("tvnet completion z", ["plain,zsh"]),
    ],
)
def test_words_are_completed(words, offered):
    assert completed(words) == offered


def test_published_weights_are_offered_where_they_can_be_had():
    assert completed("tvnet weights fetch ") == [f"plain,{name}" for name in PUBLISHED]
    assert f"plain,{NAME}" in completed("tvnet weights show ")
    assert f"plain,{next(iter(PUBLISHED))}" in completed("tvnet weights show ")


def test_imported_weights_are_offered(cache_folder):
    (cache_folder / "weights").mkdir()
    (cache_folder / "weights" / "tv-mine.safetensors").write_bytes(b"")
    assert "plain,tv-mine" in completed("tvnet features --weights tv")


def test_zsh_and_fish_are_answered_too():
    assert completed("tvnet fea", "zsh")[:2] == ["plain", "features"]
    variables = {"_TVNET_COMPLETE": "fish_complete", "COMP_WORDS": "tvnet fea", "COMP_CWORD": "fea"}
    result = CliRunner().invoke(main, [], env=variables, prog_name="tvnet")
    assert result.stdout.startswith("plain")
    assert "features" in result.stdout


def test_a_shell_that_is_not_known_is_wrong_usage():
    assert CliRunner().invoke(main, ["completion", "cmd"]).exit_code == 2


def test_completing_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'av', 'h5py', 'rich', 'safetensors', 'scipy', 'sklearn', 'numba'}"
    code = (
        "import atexit, os, sys\n"
        "os.environ |= {'_TVNET_COMPLETE': 'bash_complete', 'COMP_CWORD': '3'}\n"
        "os.environ['COMP_WORDS'] = 'tvnet features --weights tv'\n"
        f"atexit.register(lambda: print(sorted({heavy} & set(sys.modules))))\n"
        "from tvnet_cli.cli import main\n"
        "main(prog_name='tvnet')\n"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert found.stdout == f"plain,{NAME}\n[]\n"

"""``tvnet doctor``: here all is well, and whatever is not is found, named, and the rest is still looked at."""

from __future__ import annotations

import json
import re
import shutil
import sys
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest
import torch
from av import VideoFrame
from click.testing import CliRunner, Result

from tvnet_cli import doctor
from tvnet_cli.cli import main
from tvnet_cli.doctor import Finding, examine
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network import cards
from tvnet_cli.options import DEFAULT_WEIGHTS

NAMES = (
    "software",
    "machine",
    "gpu",
    "triton",
    "decoders",
    "weights",
    "folder",
    "cache",
    "flow solver",
    "open files",
    "environment",
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, Finding]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {finding.name: finding for finding in examine(tmp_path_factory.mktemp("output"))}


def test_every_check_is_made_and_all_is_well_here(here):
    assert tuple(here) == NAMES
    assert {finding.state for finding in here.values()} <= {"ok", "warning"}, here
    for finding in here.values():
        assert bool(finding.advice) == (finding.state != "ok")


def test_versions_and_libraries_are_named(here):
    found = here["software"].found
    assert found["torch"] == torch.__version__
    assert found["FFmpeg libraries"]["libavcodec"].count(".") == 2
    assert {"tvnet", "python", "av", "FFmpeg", "numpy", "h5py", "HDF5", "numba", "sklearn"} <= set(found)


def test_the_machine_is_described(here):
    assert {"system", "cpu", "cores", "vector_extensions", "cache_bytes", "threads"} <= set(here["machine"].found)


def test_films_are_really_written_and_read(here):
    found = here["decoders"].found
    assert "h264" in found["there"]
    assert {found[f"film by {encoder}"] for encoder in doctor.FILMS} == {"written and read"}


def test_a_folder_is_written_in_synced_and_locked_and_left_as_it_was(tmp_path):
    facts = doctor._folder(tmp_path)
    assert [facts.found[step] for step in ("written", "HDF5", "locks")] == ["yes", "yes", "yes"]
    assert facts.found["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_solver_is_held_against_the_reference(here):
    assert here["flow solver"].found["cpu"].startswith("numba, at most ")


def test_a_solver_that_is_wrong_fails(monkeypatch):
    forward = TVNet.forward

    def shifted(self, first, second):
        return forward(self, first, second) + (0.01 if self.solver == "auto" else 0)

    monkeypatch.setattr(TVNet, "forward", shifted)
    facts = doctor._solver()
    assert facts.state == "failed"
    assert "wrong" in facts.advice


def test_a_solver_that_breaks_fails_with_its_error(monkeypatch):
    def broken(self):
        raise ValueError("no such solver")

    monkeypatch.setattr(TVNet, "solver_in_use", broken)
    result = run("--json")
    (finding,) = [one for one in json.loads(result.stdout)["checks"] if one["name"] == "flow solver"]
    assert result.exit_code == 1
    assert finding["state"] == "failed"
    assert "no such solver" in str(finding["found"])


def test_a_library_that_is_missing_fails_and_one_that_is_optional_does_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(doctor, "OPTIONAL", ["cv2", "no_such_library"])
    facts = doctor._software()
    assert facts.state == "ok"
    assert facts.found["no_such_library"] == "not installed"
    monkeypatch.setattr(doctor, "LIBRARIES", ["torch", "no_such_library"])
    facts = doctor._software()
    assert facts.state == "failed"
    assert "pip install" in facts.advice


def test_a_library_that_breaks_when_it_is_imported_is_named(monkeypatch, tmp_path):
    (tmp_path / "broken_library.py").write_text("raise ImportError('libfoo.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "LIBRARIES", ["broken_library", "numpy"])
    facts = doctor._software()
    assert facts.state == "failed"
    assert facts.found["broken_library"] == "cannot be imported: ImportError: libfoo.so: cannot open"
    assert "numpy" in facts.found


def test_a_check_that_breaks_fails_alone(monkeypatch, tmp_path):
    def broken():
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(doctor, "_decoders", broken)
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert tuple(found) == NAMES
    assert found["decoders"].state == "failed"
    assert found["decoders"].found == {"error": "ZeroDivisionError: oh"}
    assert found["decoders"].advice
    assert found["weights"].state == "ok"


def test_without_a_gpu_it_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "none")
    facts = doctor._gpu()
    assert facts.state == "ok"
    assert facts.found["none because"]
    assert "driver" not in facts.found


def test_a_driver_without_a_pytorch_for_it_is_a_warning(monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12.1.0\n"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", driver)
    facts = doctor._gpu()
    assert facts.state == "warning"
    assert facts.found["driver"] == "570.86.15"
    assert "CUDA" in facts.advice


def test_a_gpu_that_does_not_compute_fails(monkeypatch):
    properties = SimpleNamespace(name="Old GPU", major=3, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 2 << 30))
    monkeypatch.setattr(doctor, "_convolve", broken_kernel)
    facts = doctor._gpu()
    assert facts.state == "failed"
    assert facts.found["cuda:0"] == "Old GPU, compute capability 3.5, 1.0 GiB of 2.0 GiB free"
    assert "no kernel image" in facts.found["cuda:0 error"]


def broken_kernel(device: str) -> None:
    raise RuntimeError(f"{device}: no kernel image is available")


def test_a_decoder_that_is_not_there_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "FILMS", {})
    monkeypatch.setattr(doctor, "DECODERS", ["h264", "no_such_codec"])
    facts = doctor._decoders()
    assert facts.state == "warning"
    assert facts.found["missing"] == ["no_such_codec"]


def test_a_film_that_comes_back_in_another_way_fails(monkeypatch):
    darker = SimpleNamespace(from_ndarray=lambda picture, **more: VideoFrame.from_ndarray(picture // 2, **more))
    monkeypatch.setattr(doctor, "FILMS", {"mpeg4": {}})
    monkeypatch.setattr("av.VideoFrame", darker)
    facts = doctor._decoders()
    assert facts.state == "failed"
    assert "come back as [30" in facts.found["film by mpeg4"]


def test_an_encoder_that_is_not_there_is_no_failure(monkeypatch):
    monkeypatch.setattr(doctor, "FILMS", {"no_such_encoder": {}})
    facts = doctor._decoders()
    assert facts.state == "ok"
    assert facts.found["film by no_such_encoder"] == "not tried: no encoder"


def test_damaged_weights_fail_where_they_are_needed_and_are_a_warning_elsewhere(monkeypatch, tmp_path, cache_folder):
    name = DEFAULT_WEIGHTS["flow"]
    shipped = tmp_path / "weights"
    shutil.copytree(cards.weights_folder(), shipped)
    monkeypatch.setattr(cards, "weights_folder", lambda: shipped)
    imported = cache_folder / "weights"
    imported.mkdir()
    (imported / "mine.safetensors").write_bytes(b"no weights")
    shutil.copy(shipped / f"{name}.toml", imported / "mine.toml")
    facts = doctor._weights()
    assert facts.state == "warning"
    assert "import" in facts.advice
    assert facts.found["mine"].startswith("bad: ")
    assert facts.found[name].startswith("flow, sha256 ")

    with (shipped / f"{name}.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    facts = doctor._weights()
    assert facts.state == "failed"
    assert "sha256" in facts.found[name]

    (shipped / f"{name}.safetensors").unlink()
    facts = doctor._weights()
    assert facts.state == "failed"
    assert facts.found[name] == "missing"


def test_a_folder_that_cannot_be_written_fails(tmp_path):
    result = run(tmp_path / "nowhere")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("failed: folder")
    assert re.search(r"^failed   folder$", result.stdout, re.MULTILINE)
    assert "-o names an output in another folder" in result.stdout
    assert result.stderr == ""


def test_a_folder_without_locks_fails(monkeypatch, tmp_path):
    monkeypatch.setattr("tvnet_cli.features.lock.locked", nullcontext)
    facts = doctor._folder(tmp_path)
    assert facts.state == "failed"
    assert "two runs" in facts.found["error"]
    assert facts.found["locks"] == "no"


def test_a_disk_that_is_nearly_full_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    facts = doctor._folder(tmp_path)
    assert facts.state == "warning"
    assert "0.0 GiB are free" in facts.advice


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TVNET_CACHE", str(tmp_path / "file"))
    facts = doctor._cache()
    assert facts.state == "warning"
    assert "TVNET_CACHE" in facts.advice


def test_a_cache_that_is_not_there_yet_is_tried_where_it_would_be_and_not_made(monkeypatch, tmp_path):
    monkeypatch.setenv("TVNET_CACHE", str(tmp_path / "some" / "cache"))
    facts = doctor._cache()
    assert facts.state == "ok"
    assert facts.found["tried in"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "own", "found"),
    [
        ({"a/memory.max": "1073741824\n", "memory.max": "max\n"}, "0::/a\n", {"cgroup_memory_bytes": 1 << 30}),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, "0::/a/b\n", {"cgroup_cpus": 1.5}),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, "0::/\n", {}),
        ({"memory/memory.limit_in_bytes": f"{2 << 30}\n"}, "4:memory:/host/path\n", {"cgroup_memory_bytes": 2 << 30}),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, "4:memory:/\n", {}),
        (
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            "2:cpu,cpuacct:/a\n",
            {"cgroup_cpus": 0.5},
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "2:cpu,cpuacct:/\n", {}),
    ],
)
def test_limits_of_containers_are_found(monkeypatch, tmp_path, files, own, found):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(doctor, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(doctor, "OWN_CGROUPS", tmp_path / "own")
    assert doctor._cgroup_limits() == found


@pytest.mark.parametrize(
    ("limits", "advice"),
    [({"cgroup_cpus": 0.5}, "OMP_NUM_THREADS=1"), ({"cgroup_memory_bytes": 1 << 29}, "0.5 GiB of memory")],
)
def test_a_container_with_little_is_a_warning(monkeypatch, limits, advice):
    monkeypatch.setattr(doctor, "_cgroup_limits", lambda: limits)
    facts = doctor._machine()
    assert facts.state == "warning"
    assert advice in facts.advice


def test_few_open_files_are_a_warning(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 4096))
    facts = doctor._open_files()
    assert facts.state == "warning"
    assert "ulimit -n" in facts.advice


def test_the_home_folder_and_unknown_variables_stay_out(monkeypatch, tmp_path):
    home = tmp_path / "home" / "someone"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TVNET_CACHE", str(home / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("SOME_SECRET_TOKEN", "hush")
    for arguments in ((home,), (home, "--json")):
        result = run(*arguments)
        assert "someone" not in result.stdout
        assert "hush" not in result.stdout
        assert "~/cache" in result.stdout
        assert "OMP_NUM_THREADS" in result.stdout


def test_another_folder_that_begins_like_home_is_left_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/data/ann")
    text = "/data/ann, /data/ann/x, /data/anna, /data/ann-2"
    assert doctor._without_home({"a": [text]}) == {"a": ["~, ~/x, /data/anna, /data/ann-2"]}


def test_the_json_holds_every_check():
    result = run("--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["works"] is True
    assert tuple(check["name"] for check in report["checks"]) == NAMES
    assert all(set(check) == {"name", "found", "state", "advice"} for check in report["checks"])


def test_the_text_ends_in_one_line_that_says_it_all(tmp_path):
    result = run(tmp_path)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("all that is needed works")


def test_tracebacks_come_with_vv_only(monkeypatch):
    monkeypatch.setattr(doctor, "_weights", lambda: 1 / 0)
    assert "Traceback" not in run().output
    assert "Traceback" in run("-vv").output


def test_a_full_disk_is_named(small_disk):
    with (small_disk / "fill").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    facts = doctor._writing(small_disk)
    assert facts.state == "failed"
    assert f".tvnet-doctor: the disk at {small_disk} is full: No space left on device" in facts.found["error"]

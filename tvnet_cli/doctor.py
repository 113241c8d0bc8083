"""Does everything here work? What `tvnet doctor` looks at, for people who wonder and for reports of errors.

Each check imports what it looks at by itself: so what is broken is found and named, and the others go on.
"""

from __future__ import annotations

import importlib
import io
import os
import platform
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tvnet_cli import __version__
from tvnet_cli.errors import FeatureFileError, TVNetError, WeightsError
from tvnet_cli.options import DEFAULT_WEIGHTS
from tvnet_cli.writing import DISK_IS_FULL, no_room

State = Literal["ok", "warning", "failed"]
Found = dict[str, Any]

LIBRARIES = "torch av numpy h5py numba llvmlite scipy sklearn safetensors PIL filelock".split()
OPTIONAL = "cv2 tensorboard ray fsspec".split()  # a part of the program asks for them, or may use them
# Of video; what usual files hold. FFmpeg's own av1 needs a GPU, so it does not count.
DECODERS = (
    "h264 hevc vp8 vp9 libdav1d mpeg4 mpeg2video mpeg1video msmpeg4v3 wmv3 vc1 mjpeg prores theora flv h263 rv40 "
    "dvvideo"
).split()
# Films that are really written and read: the encoder, and options that keep it from talking.
FILMS: dict[str, dict[str, str]] = {
    "libx264": {},
    "libx265": {"x265-params": "log-level=none"},
    "libvpx-vp9": {},
    "libsvtav1": {},
    "mpeg4": {},
}
FILM_LEVELS = (60, 120, 180)  # grey levels, one a frame
FILM_SIDE = 64  # pixels
VARIABLES = re.compile(
    r"TVNET_\w+|(OMP|MKL|OPENBLAS|NUMEXPR)_NUM_THREADS|OMP_PROC_BIND|KMP_AFFINITY|NUMBA_\w+|TRITON_\w+|TORCH_\w+|PYTORCH_\w+|"
    r"CUDA_\w+|NVIDIA_\w+|HDF5_\w+|XDG_CACHE_HOME|TMPDIR|LANG|LC_\w+|PYTHON(UTF8|IOENCODING|WARNINGS|OPTIMIZE)|"
    r"SLURM_ARRAY_TASK_(ID|COUNT)|SLURM_CPUS_PER_TASK|SLURM_GPUS_ON_NODE|RANK|LOCAL_RANK|WORLD_SIZE|NO_COLOR|TERM"
)
GIB = 1 << 30
ENOUGH_MEMORY = 2 * GIB  # tvnet features on two cores stays below
ENOUGH_DISK = GIB
ENOUGH_FILES = 256  # open at once
ALLOWED_DIFFERENCE = 1e-3  # pixels, between solvers; they agree to about 1e-5
PAIR = (48, 64, 2.0)  # height, width and longest motion of the pair that they solve, in pixels
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMINFO, MOUNTS = Path("/proc/meminfo"), Path("/proc/mounts")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes
    ----------
    name : str
        Of the check.
    found : dict
        Facts by name, ready for JSON.
    state : {"ok", "warning", "failed"}
        ``failed``: something that the program needs does not work.
    advice : str
        What to do, in one line; empty if all is well.
    """

    name: str
    found: Found
    state: State = "ok"
    advice: str = ""


@dataclass
class _Facts:
    """Facts and the worst that was met among them."""

    found: Found = field(default_factory=dict)
    state: State = "ok"
    advice: str = ""

    def warn(self, advice: str) -> None:
        if self.state == "ok":
            self.state, self.advice = "warning", advice

    def fail(self, advice: str) -> None:
        if self.state != "failed":
            self.state, self.advice = "failed", advice


def examine(folder: Path, tracebacks: bool = False) -> Iterator[Finding]:
    """Make all checks, one after the other.

    Parameters
    ----------
    folder : Path
        Where feature files are to be written.
    tracebacks : bool
        Print the traceback of a check that breaks, on stderr.

    Yields
    ------
    Finding
        The home folder is written as ~ in it.
    """
    checks: dict[str, Callable[[], _Facts]] = {
        "software": _software,
        "machine": _machine,
        "gpu": _gpu,
        "triton": _triton,
        "decoders": _decoders,
        "weights": _weights,
        "folder": lambda: _folder(folder),
        "cache": _cache,
        "flow solver": _solver,
        "open files": _open_files,
        "environment": _environment,
    }
    for name, check in checks.items():
        try:
            facts = check()
        except Exception as error:
            if tracebacks:
                traceback.print_exc()
            facts = _Facts({"error": _one_line(error)}, "failed", "this is needed: the line above says what is missing")
        yield Finding(name, _without_home(facts.found), facts.state, _without_home(facts.advice))


def as_text(finding: Finding) -> str:
    """A finding as lines for people."""
    width = max(map(len, finding.found), default=0)
    lines = [f"{finding.state:8} {finding.name}"]
    lines += [f"         {name:{width}}  {_as_words(name, value)}" for name, value in finding.found.items()]
    return "\n".join(lines + ([f"      -> {finding.advice}"] if finding.advice else []))


def summary(findings: list[Finding]) -> str:
    """All findings in one line."""
    failed, warned = ([one.name for one in findings if one.state == state] for state in ("failed", "warning"))
    said = f"failed: {', '.join(failed)}" if failed else "all that is needed works"
    return said + (f"; warnings: {', '.join(warned)}" if warned else "")


def _software() -> _Facts:
    facts = _Facts(
        {"tvnet": __version__, "python": f"{platform.python_version()} ({platform.python_implementation()})"}
    )
    for name in (*LIBRARIES, *OPTIONAL):
        try:
            facts.found[name] = getattr(importlib.import_module(name), "__version__", "unknown")
        except ModuleNotFoundError as error:
            facts.found[name] = "not installed" if error.name == name else f"misses {error.name}"
            if name in LIBRARIES:
                facts.fail(f"{error.name} is missing: pip install tvnet brings it")
        except Exception as error:  # a library beside it may be missing, or another version
            facts.found[name] = f"cannot be imported: {_one_line(error)}"
            if name in LIBRARIES:
                facts.fail(f"{name} does not work: install it anew, pip install --force-reinstall --no-deps {name}")
    if h5py := sys.modules.get("h5py"):
        facts.found["HDF5"] = h5py.version.hdf5_version
    if av := sys.modules.get("av"):
        facts.found["FFmpeg"] = av.ffmpeg_version_info
        facts.found["FFmpeg libraries"] = {name: ".".join(map(str, ver)) for name, ver in av.library_versions.items()}
    facts.found["program in"] = str(Path(__file__).resolve().parent)
    facts.found["python in"] = sys.prefix
    return facts


def _machine() -> _Facts:
    import torch

    from tvnet_cli.bench.machine import describe

    machine = describe()
    limits = _cgroup_limits()
    facts = _Facts({key: machine[key] for key in ("system", "cpu", "cores", "vector_extensions", "cache_bytes")})
    facts.found |= {"threads": torch.get_num_threads(), "load": _load(), **_memory(), **limits}
    if limits.get("cgroup_cpus", torch.get_num_threads()) < torch.get_num_threads():
        cpus = max(1, int(limits["cgroup_cpus"]))
        facts.warn(f"the container gets less time than its cores promise: OMP_NUM_THREADS={cpus} wastes none")
    least = min(limits.get("cgroup_memory_bytes", 1 << 62), facts.found.get("memory_bytes", 1 << 62))
    if least < ENOUGH_MEMORY:
        facts.warn(f"{_gib(least)} of memory are little: -j 1 and OMP_NUM_THREADS=1 take the least")
    return facts


def _memory() -> Found:
    found: Found = {}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = re.search(r"^MemAvailable: +(\d+) kB$", _read(MEMINFO), re.MULTILINE)
    return {**found, "available_bytes": 1024 * int(available[1])} if available else found


def _load() -> str | None:
    return " ".join(f"{number:.2f}" for number in os.getloadavg()) if hasattr(os, "getloadavg") else None


def _cgroup_limits() -> Found:
    """Memory and processors' time that the container may take, the least of all groups it is in; no limit, no entry."""
    memory, cpus = [], []
    for group in _own_cgroups():
        memory += [_read(group / name).strip() for name in ("memory.max", "memory.limit_in_bytes")]
        cpus += [_read(group / "cpu.max").split()]
        cpus += [[_read(group / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]]
    # Without a limit they say "max", -1, or the largest number of pages.
    sizes = [int(size) for size in memory if size.isdigit() and int(size) < 1 << 60]
    shares = [int(cpu[0]) / int(cpu[1]) for cpu in cpus if len(cpu) == 2 and all(map(str.isdigit, cpu))]
    found = {"cgroup_memory_bytes": min(sizes, default=None), "cgroup_cpus": min(shares, default=None)}
    return {name: value for name, value in found.items() if value is not None}


def _own_cgroups() -> Iterator[Path]:
    """The groups of this process and those around them, in one tree (version 2) or one for each controller."""
    for line in _read(OWN_CGROUPS).splitlines():
        _, controllers, place = line.split(":", 2)
        for name in dict.fromkeys([controllers, *controllers.split(",")]):
            inner = CGROUPS / name / place.lstrip("/")
            yield from (group for group in (inner, *inner.parents) if group.is_relative_to(CGROUPS / name))


def _gpu() -> _Facts:
    import torch

    facts = _Facts({"built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"})
    driver = re.search(r"Kernel Module[^\n]*?  (\d[\d.]+)", _read(NVIDIA_DRIVER))
    if driver:
        facts.found["driver"] = driver[1]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    if not there:
        said = next((str(one.message).splitlines()[0] for one in told), "")
        facts.found["none because"] = said or (
            f"PyTorch sees no device (CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
            if torch.version.cuda
            else "this PyTorch is built for the CPU alone"
        )
        if driver:
            facts.warn(
                "there is an NVIDIA driver, but PyTorch cannot use its GPU: install a PyTorch with CUDA for it; "
                "all works on the CPU meanwhile"
            )
        return facts
    facts.found["cuDNN"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    for number in range(torch.cuda.device_count()):
        name = f"cuda:{number}"
        try:
            properties = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
            facts.found[name] = (
                f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
                f"{_gib(free)} of {_gib(total)} free"
            )
            _convolve(name)
        except Exception as error:
            facts.found[f"{name} error"] = _one_line(error)
            facts.fail(f"{name} does not compute: --device cpu does without it, CUDA_VISIBLE_DEVICES hides it")
    return facts


def _convolve(device: str) -> None:
    """A small convolution, which asks for all that a network does."""
    import torch

    images, kernels = torch.ones((1, 3, 8, 8), device=device), torch.ones((1, 3, 3, 3), device=device)
    torch.nn.functional.conv2d(images, kernels).sum().item()


def _triton() -> _Facts:
    import torch

    try:
        facts = _Facts({"triton": importlib.import_module("triton").__version__})
    except Exception as error:
        facts = _Facts({"triton": "not installed" if isinstance(error, ModuleNotFoundError) else _one_line(error)})
        if torch.cuda.is_available():
            facts.warn("flow on a GPU is several times as fast with it: pip install triton")
    return facts


def _decoders() -> _Facts:
    import av

    there = []
    for name in DECODERS:
        try:
            av.Codec(name, "r")
        except av.codec.codec.UnknownCodecError:
            continue
        there.append(name)
    missing = [name for name in DECODERS if name not in there]
    facts = _Facts({"there": there, "missing": missing or "none"})
    if missing:
        facts.warn("this FFmpeg lacks decoders: films that need them fail; pip install av brings one with all of them")
    # SVT-AV1 talks on stderr unless its environment forbids it.
    os.environ.setdefault("SVT_LOG", "0")
    for encoder, options in FILMS.items():
        try:
            wrong = _film_error(encoder, options)
        except av.codec.codec.UnknownCodecError:
            wrong = "not tried: no encoder"
        except Exception as error:
            wrong = _one_line(error)
        facts.found[f"film by {encoder}"] = wrong or "written and read"
        if wrong and not wrong.startswith("not tried"):
            facts.fail("a film just written cannot be read: install PyAV anew, pip install --force-reinstall av")
    return facts


def _film_error(encoder: str, options: dict[str, str]) -> str:
    """Write and read a tiny film in memory: what is wrong with it, or nothing."""
    import av
    import numpy as np

    memory = io.BytesIO()
    with av.open(memory, "w", format="matroska") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height = stream.width = FILM_SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for level in FILM_LEVELS:
            picture = np.full((FILM_SIDE, FILM_SIDE), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    memory.seek(0)
    with av.open(memory, "r") as read:
        levels = [float(frame.to_ndarray(format="gray").mean()) for frame in read.decode(video=0)]
    right = len(levels) == len(FILM_LEVELS) and np.allclose(levels, FILM_LEVELS, atol=8)
    return "" if right else f"frames of grey levels {FILM_LEVELS} come back as {levels}"


def _weights() -> _Facts:
    from tvnet_cli.network.cards import known_weights
    from tvnet_cli.network.weights import check_weights

    facts = _Facts()
    for name, path in known_weights().items():
        needed = name in DEFAULT_WEIGHTS.values()
        try:
            card = check_weights(path)
            facts.found[name] = f"{card.stream}, sha256 {card.sha256}, {path.parent}"
        except WeightsError as error:
            facts.found[name] = f"bad: {error}"
            again = "install tvnet anew" if needed else "import or fetch it anew, with --overwrite"
            (facts.fail if needed else facts.warn)(f"{name} is not what its card says: {again}")
    for stream, name in DEFAULT_WEIGHTS.items():
        if name not in facts.found:
            facts.found[name] = "missing"
            facts.fail(f"the {stream} weights that come with the program are missing: install tvnet anew")
    return facts


def _folder(folder: Path) -> _Facts:
    facts = _writing(folder)
    if facts.state == "failed":
        facts.advice = f"{facts.advice}; -o names an output in another folder, tvnet doctor FOLDER tries it"
    return facts


def _cache() -> _Facts:
    """Where imported and downloaded weights go, which not everyone has."""
    from tvnet_cli.network.cards import cache_folder

    there = next(place for place in (cache_folder(), *cache_folder().parents) if place.exists())
    facts = _writing(there)
    facts.found = {"cache": str(cache_folder()), **({} if cache_folder().exists() else {"tried in": str(there)})} | {
        name: value for name, value in facts.found.items() if name != "folder"
    }
    if facts.state != "ok":
        facts.state = "warning"
        facts.advice += "; TVNET_CACHE names another cache for weights that are imported or downloaded"
    return facts


def _writing(folder: Path) -> _Facts:
    """Write, sync, rename, open as HDF5 and lock, as the feature file asks for, in a folder of its own that goes."""
    facts = _Facts({"folder": str(folder.absolute()), "file system": _file_system(folder)})
    try:
        free = facts.found["free_bytes"] = shutil.disk_usage(folder).free
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tvnet-doctor-") as place:
            for step, work in {"written": _write_and_rename, "HDF5": _write_hdf5, "locks": _lock_twice}.items():
                facts.found[step] = "no"
                work(Path(place))
                facts.found[step] = "yes"
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
            error = no_room(folder / ".tvnet-doctor", error)
        facts.found["error"] = _one_line(error)
        facts.fail("nothing can be kept here" if facts.found.get("written") != "yes" else "feature files fail here")
    else:
        if free < ENOUGH_DISK:
            facts.warn(f"only {_gib(free)} are free: a video takes about 0.6 MB, twice that while a run is packed")
    return facts


def _write_and_rename(place: Path) -> None:
    new, path = place / "file.new", place / "file"
    with new.open("wb") as file:
        file.write(b"tvnet" * 1000)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    if path.read_bytes() != b"tvnet" * 1000:
        raise OSError(f"{path.parent} does not give back what was written")


def _write_hdf5(place: Path) -> None:
    import h5py
    import numpy as np

    path, values = place / "file.h5", np.arange(1000, dtype=np.float32)
    with h5py.File(path, "w") as file:
        file["values"] = values
    with h5py.File(path, "r") as file:
        if not np.array_equal(file["values"][:], values):
            raise OSError("HDF5 does not give back what was written")


def _lock_twice(place: Path) -> None:
    from tvnet_cli.features.lock import locked

    with locked(place / "features.h5"):
        try:
            with locked(place / "features.h5"):
                pass
        except FeatureFileError:
            return
    raise OSError("a second lock on a file is not refused, so two runs could write one feature file")


def _file_system(folder: Path) -> str:
    """The type of the file system below a folder, where the machine tells."""
    mounts = [line.split()[1:3] for line in _read(MOUNTS).splitlines() if len(line.split()) > 2]
    above = {place.encode().decode("unicode_escape"): kind for place, kind in mounts}
    real = folder.resolve()
    return next((above[str(place)] for place in (real, *real.parents) if str(place) in above), "unknown")


def _solver() -> _Facts:
    import torch

    from tvnet_cli.bench.pairs import drawn_pair
    from tvnet_cli.device import true_float32
    from tvnet_cli.flow.tvnet import TVNet

    pair = drawn_pair(*PAIR)
    frames = [torch.from_numpy(frame).float()[None, None] for frame in (pair.first, pair.second)]
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = ["cpu", *(f"cuda:{number}" for number in range(gpus))]
    facts = _Facts()
    with torch.inference_mode(), true_float32():
        reference = TVNet(solver="torch")(*frames)
        for device in devices:
            net = TVNet().to(device)
            solver = net.solver_in_use()
            try:
                found = net(*(frame.to(device) for frame in frames)).cpu()
            except Exception as error:
                facts.found[device] = f"{solver}: {_one_line(error)}"
                facts.fail(f"the solver breaks on {device}: --device names another device")
                continue
            difference = float((found - reference).abs().max())
            facts.found[device] = f"{solver}, at most {difference:.1g} px from the reference"
            if not difference < ALLOWED_DIFFERENCE:
                facts.fail(f"the flow on {device} is wrong: please report it, with this whole report")
    return facts


def _open_files() -> _Facts:
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows
        return _Facts({"limit": "unknown"})
    limit, most = (
        "none" if number == resource.RLIM_INFINITY else number for number in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    facts = _Facts({"limit": limit, "may be raised to": most})
    if isinstance(limit, int) and limit < ENOUGH_FILES:
        facts.warn(f"few files may be open at once: ulimit -n {ENOUGH_FILES} before the run, or a smaller -j")
    return facts


def _environment() -> _Facts:
    from tvnet_cli.network.cards import cache_folder

    facts = _Facts({"cache": str(cache_folder()), "text": f"{sys.getfilesystemencoding()}, {sys.stdout.encoding}"})
    facts.found |= {name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)}
    return facts


def _read(path: Path) -> str:
    """The text of a file of the system; empty where there is none."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TVNetError) else f"{type(error).__name__}: {text}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _as_words(name: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_as_words(name, item)}" for key, item in value.items())
    if name.endswith("_bytes") and isinstance(value, int):
        return _gib(value) if value >= GIB // 10 else f"{value >> 10} kB"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _without_home(value: Any) -> Any:
    """The same with ~ for the home folder, whose name may be that of a person."""
    if isinstance(value, dict):
        return {name: _without_home(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_home(item) for item in value]
    home = str(Path.home())
    if not isinstance(value, str) or home == "/":
        return value
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)

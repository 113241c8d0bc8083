"""Optical flow of a sequence, one straight line: frames -> pairs -> TVNet -> fields -> outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tvnet_cli.device import choose_device, num_workers, thread_pool, true_float32
from tvnet_cli.errors import FlowFileError, FlowValueError, InputChangedError, VideoReadError
from tvnet_cli.flow.accuracy import occlusion
from tvnet_cli.flow.colour import UNKNOWN
from tvnet_cli.flow.field import Arrays, FlowField
from tvnet_cli.flow.store import FlowStore
from tvnet_cli.flow.tvnet import WHITE, TVNet
from tvnet_cli.options import DEFAULT_PRESET, PRESETS, FieldOptions, FrameOptions, TVNetOptions, as_dict
from tvnet_cli.recipe import Recipe, software
from tvnet_cli.video.clips import clip_frames
from tvnet_cli.video.identity import identify_all
from tvnet_cli.video.sequence import FrameSequence, Picture

Pair = tuple[int, Picture, Picture]  # position, first and second frame

SAMPLED_FIELDS = 10  # evenly over the film, from which the scale of the colours is taken


class Output(Protocol):
    """Where fields go; a context manager. ``num_done`` fields are there from an earlier run and need no ``write``.

    An output that ends with ``InputChangedError`` keeps nothing that this run wrote.
    """

    path: Path
    num_done: int
    notes: tuple[str, ...]  # what people should know, after ``check``

    def check(self) -> None:
        """Refuse what this program did not make, or what cannot be resumed, before anything is computed."""
        ...

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def write(self, field: FlowField) -> None: ...


def write_flow(
    sequence: FrameSequence,
    tvnet: TVNet,
    outputs: Sequence[Output],
    options: FieldOptions,
    *,
    batch_size: int = 1,
    sampled: dict[int, Arrays] | None = None,
    every_field: bool = False,
    recipe: Recipe | None = None,
) -> Generator[FlowField, None, None]:
    """Compute the flow between each frame and the next, and write it.

    Parameters
    ----------
    sequence : FrameSequence
    tvnet : TVNet
        On the device that is to compute.
    outputs : sequence of Output
        Fields that all of them hold already are passed over.
    options : FieldOptions
    batch_size : int
        Pairs computed at once. Decides memory and speed, not results.
    sampled : dict of int to dict
        From ``sample_fields``; these are not computed again.
    every_field : bool
        Yield also the fields that all outputs hold already.
    recipe : dict, optional
        From ``flow_recipe``: however the run ends, the frames must still be those that it names.

    Yields
    ------
    FlowField
        In order, after it was written.

    Raises
    ------
    VideoReadError
        If a frame cannot be read. What was computed before it stays.
    InputChangedError
        If the files of the frames are not those that ``recipe`` names any more. Nothing of this run is kept.
    FlowFileError
        If an output cannot be gone on with.
    FlowValueError
        If the flow overflows. What was computed before it stays.
    """
    with ExitStack() as stack:
        for output in outputs:
            stack.enter_context(output)
        start = 0 if every_field else min((output.num_done for output in outputs), default=0)
        store = next((output for output in outputs if isinstance(output, FlowStore)), None)
        if store is not None:
            _check_times(store, sequence)
        if recipe is not None:
            stack.enter_context(_unchanged(sequence, recipe))
        for field in compute_fields(sequence, tvnet, options, start, batch_size, store, sampled or {}):
            for output in outputs:
                output.write(field)
            yield field


def flow_recipe(
    sequence: FrameSequence,
    frames: FrameOptions,
    fields: FieldOptions,
    tvnet: TVNet,
    weights: str | None,
    device: torch.device,
) -> Recipe:
    """All that decides the values of the fields, and the software and device that ran."""
    return {
        "input": _input(sequence),
        "frames": as_dict(frames),
        "fields": as_dict(fields),
        "tvnet": as_dict(tvnet.options),
        "weights": weights,
        "software": software(device),
    }


def _input(sequence: FrameSequence) -> Recipe:
    """Return what tells the files of a sequence from others under the same names."""
    try:
        found = identify_all(sequence.files)
    except OSError as error:
        raise VideoReadError(f"{error.filename or sequence.name}: cannot read it: {error.strerror}") from error
    return {
        "first": sequence.files[0].name,
        "files": len(sequence.files),
        "bytes": found.size,
        "sha256": found.sha256,
        "mtime_ns": found.mtime_ns,
    }


@contextmanager
def _unchanged(sequence: FrameSequence, recipe: Recipe) -> Iterator[None]:
    """Fail in the end, however that comes, if the files of the sequence are not those that the recipe names.

    A time alone is a change too, while the run is at work: nothing else is known of the middle of a large video.

    Raises
    ------
    InputChangedError
    """
    try:
        yield
    finally:
        try:
            found = _input(sequence)
        except VideoReadError:
            found = {}
        if found != recipe["input"]:
            raise InputChangedError(
                f"{sequence.name} changed while its flow was computed: nothing of this run is kept; give the command "
                "again once it does not change any more"
            )


def compute_fields(
    sequence: FrameSequence,
    tvnet: TVNet,
    options: FieldOptions,
    start: int = 0,
    batch_size: int = 1,
    store: FlowStore | None = None,
    sampled: Mapping[int, Arrays] = MappingProxyType({}),
) -> Iterator[FlowField]:
    """The fields of a sequence from position ``start`` on; those held by ``store`` or ``sampled`` are not computed.

    Batches are at work on all cores while the frames after them are read and the fields before them are used.
    """
    waiting: list[Pair] = []
    at_work: deque[tuple[list[Pair], Future[list[Arrays]]]] = deque()
    broken: VideoReadError | None = None
    held = store.num_done if store is not None and store.exact else 0
    with _solving(tvnet) as (pool, threads):

        def solve(pairs: list[Pair]) -> None:
            todo = [(first, second) for position, first, second in pairs if position not in sampled]
            at_work.append((pairs, pool.submit(solve_pairs, tvnet, todo, options)))

        def solved() -> Iterator[FlowField]:
            pairs, arrays = at_work.popleft()
            computed = iter(arrays.result())
            for position, first, second in pairs:
                if position in sampled:  # and checked
                    found = sampled[position]
                else:
                    found = next(computed)
                    _check_values(sequence, position, found)
                yield _field(sequence, position, first, second, found)

        try:
            for position, (first, second) in enumerate(pairwise(sequence.read(convert_from=start))):
                if first is None or second is None:
                    continue
                if store is not None and position < held:
                    yield _field(sequence, position, first, second, store.read(position))
                    continue
                waiting.append((position, first, second))
                if len(waiting) == batch_size or position in sampled:
                    solve(waiting)
                    waiting = []
                if len(at_work) > threads:
                    yield from solved()
        except VideoReadError as error:  # the pairs before it are whole
            broken = error
        if waiting:
            solve(waiting)
        while at_work:
            yield from solved()
    if broken is not None:
        raise broken


def sample_fields(sequence: FrameSequence, tvnet: TVNet, options: FieldOptions) -> dict[int, Arrays]:
    """The arrays of up to 10 fields that lie evenly over the sequence, by position.

    Known before the first field is, they give all pictures of a film one scale. A sequence that breaks gives those
    before the break; an error only if it breaks before its first field.
    """
    starts = np.unique(clip_frames(len(sequence.frame_index), SAMPLED_FIELDS, 2)[:, 0])
    wanted = np.unique(np.concatenate((starts, starts + 1)))
    pictures = zip(wanted.tolist(), sequence.read(wanted.tolist()), strict=False)
    at_work: dict[int, Future[list[Arrays]]] = {}
    with _solving(tvnet) as (pool, _):
        with suppress(VideoReadError):
            for (position, first), (_, second) in pairwise(pictures):
                if position in starts and first is not None and second is not None:
                    at_work[position] = pool.submit(solve_pairs, tvnet, [(first, second)], options)
        sampled = {position: future.result()[0] for position, future in at_work.items()}
    for position, arrays in sampled.items():
        _check_values(sequence, position, arrays)
    if not sampled:
        sampled[0] = next(compute_fields(sequence, tvnet, options)).arrays
    return sampled


@contextmanager
def _solving(tvnet: TVNet) -> Iterator[tuple[Executor, int]]:
    """Threads for ``solve_pairs`` and their number."""
    threads = num_workers(tvnet.u0.device)
    with true_float32(), thread_pool(threads) as pool:
        yield pool, threads


@torch.inference_mode()
def optical_flow(
    first: ArrayLike,
    second: ArrayLike,
    preset: str | TVNetOptions = DEFAULT_PRESET,
    device: str = "cpu",
    input_range: float = WHITE,
) -> NDArray[np.float32]:
    """Optical flow between two images.

    Parameters
    ----------
    first, second : array, (H, W, 3) RGB or (H, W) grey, any number type, 0..255
        Both sides at least 16 pixels. OpenCV reads pictures as BGR: turn them round, ``image[..., ::-1]``.
    preset : str or TVNetOptions
        ``tvnet-10``, ``tvnet-30``, ``tvnet-50``, ``tv-l1``, or numbers of your own.
    device : str
        ``cpu``, ``cuda``, ``cuda:i``, or ``auto``.
    input_range : float
        Level of white: 255, or 1.0 for images of 0..1.

    Returns
    -------
    ndarray, (2, H, W), float32, pixels
        x to the right, then y down: ``second`` at ``x + flow`` looks like ``first`` at ``x``.

    Raises
    ------
    ValueError
        If the images differ in shape, are not grey or RGB, or are too small; if they are images of Pillow in another
        mode than ``L`` or ``RGB``; if their levels are not 0..``input_range``, as ``TVNet.forward`` says; or if there
        is no such preset.
    DeviceError
        If the device is not there.

    Examples
    --------
    >>> image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    >>> optical_flow(image, image).shape
    (2, 48, 64)
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"no preset is called {preset!r}: {', '.join(PRESETS)}")
    frames = [_frame_of(image).to(choose_device(device)) for image in (first, second)]
    options = PRESETS[preset] if isinstance(preset, str) else preset
    tvnet = TVNet.from_options(options, input_range=input_range).float().to(frames[0].device)
    with true_float32():
        flow: NDArray[np.float32] = tvnet(*frames)[0].cpu().numpy()
    return flow


def _frame_of(image: ArrayLike) -> Tensor:
    """Return an image of any kind as a frame, (1, 3 or 1, H, W), uint8 or float32.

    Raises
    ------
    ValueError
        If it is not grey or RGB, or does not hold real numbers.
    """
    mode = getattr(image, "mode", None)  # of Pillow: the numbers of a palette look like grey levels
    if isinstance(mode, str) and mode not in ("L", "RGB"):
        raise ValueError(f'the image has the mode {mode!r}, which is not grey or RGB: take image.convert("RGB")')
    array = np.asarray(image)
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
        alpha = ": leave out the alpha channel, image[..., :3]" if array.ndim == 3 and array.shape[2] == 4 else ""
        raise ValueError(f"images must be (H, W, 3) or (H, W), not {array.shape}{alpha}")
    if array.dtype.kind not in "uif":
        raise ValueError(f"images must hold levels of 0..255, not {array.dtype}")
    channels = np.array(np.atleast_3d(array), np.uint8 if array.dtype == np.uint8 else np.float32)
    return torch.from_numpy(channels).movedim(-1, 0)[None]


@torch.inference_mode()
def solve_pairs(tvnet: TVNet, pairs: Sequence[tuple[Picture, Picture]], options: FieldOptions) -> list[Arrays]:
    """The flow of pairs of frames, and what ``options`` ask for beside it.

    Parameters
    ----------
    tvnet : TVNet
    pairs : sequence of (ndarray, ndarray), each (H, W, 3), uint8, RGB

    Returns
    -------
    list of dict of name to ndarray
        As in ``FlowField.arrays``.
    """
    if not pairs:
        return []
    first, second = (
        torch.from_numpy(np.stack(frames)).to(tvnet.u0.device).movedim(-1, 1) for frames in zip(*pairs, strict=True)
    )
    levels = tvnet.flow_scales(first, second)
    found = {"flow": levels[-1]}
    if options.scales:
        coarser = levels[-2::-1]
        found |= {f"flow_scale_{number}": level for number, level in enumerate(coarser, start=1)}
    if options.backward or options.occlusion:
        backward = tvnet(second, first)
        if options.backward:
            found["backward"] = backward
        if options.occlusion:
            found["occlusion"] = occlusion(levels[-1], backward).to(torch.uint8)
    arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
    return [{name: array[number] for name, array in arrays.items()} for number in range(len(pairs))]


def _field(sequence: FrameSequence, position: int, first: Picture, second: Picture, arrays: Arrays) -> FlowField:
    numbers, seconds = sequence.frame_index, sequence.pts_seconds
    return FlowField(
        position=position,
        frame_index=(int(numbers[position]), int(numbers[position + 1])),
        pts_seconds=(float(seconds[position]), float(seconds[position + 1])),
        first=first,
        second=second,
        arrays=arrays,
    )


def _check_values(sequence: FrameSequence, position: int, arrays: Arrays) -> None:
    """No flow is as long as what files of flow mark as unknown, nor is it NaN."""
    if not all((np.abs(array) <= UNKNOWN).all() for array in arrays.values()):
        first, second = sequence.frame_index[position : position + 2]
        raise FlowValueError(
            f"{sequence.name}: the flow from frame {first} to {second} overflows: "
            "the numbers of the weights or of the options are too extreme for the solver"
        )


def _check_times(store: FlowStore, sequence: FrameSequence) -> None:
    """The fields that are there must be of these frames."""
    times: NDArray[np.float64] = store.times()
    if not np.array_equal(times, sequence.pts_seconds[: len(times)]):
        sequence.count()  # as the run did that wrote them, when it met a difference
    if not np.array_equal(times, sequence.pts_seconds[: len(times)]):
        raise FlowFileError(
            f"{store.path} holds fields at other times than {sequence.name}: choose another output, or --overwrite"
        )

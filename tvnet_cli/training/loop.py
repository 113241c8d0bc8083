"""The loop of every training: steps that depend on their number alone, so that a run goes on exactly where it was."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from tvnet_cli.errors import DatasetError, OutputError, TrainingError
from tvnet_cli.interrupt import interruptible
from tvnet_cli.network.cards import MAX_WEIGHT_BYTES, read_whole
from tvnet_cli.network.pickles import require_harmless
from tvnet_cli.reading import read_text
from tvnet_cli.recipe import Recipe, first_difference
from tvnet_cli.writing import MARK, is_marked, require_replaceable, write_whole, writing

CHECKPOINT, LOG, WEIGHTS = "checkpoint.pt", "log.csv", "weights.safetensors"
MAX_LOG_BYTES = 1 << 30  # millions of steps
LOGGED = {"loss", "gradient_norm", "learning_rate"}  # columns of every log, behind the step
SECONDS_UNTIL_STOP = 0.5  # at most, after Ctrl-C while a batch is waited for

Batch = TypeVar("Batch")
Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long and how carefully a model is trained.

    Attributes
    ----------
    steps : int
        Updates in all.
    learning_rate : callable
        Step, from 0 on, to the factor on the learning rate of every parameter group.
    clip_norm : float
        Gradients whose L2 norm over all parameters is larger are shortened to it; 0: never.
    seed : int
        Of all random numbers drawn by torch inside a step.
    checkpoint_every, validate_every : int, steps
        0: only at the end.
    ahead : int
        Batches prepared in the background while a step runs; 0 where both need the same cores.
    """

    steps: int
    learning_rate: Callable[[int], float] = lambda step: 1.0
    clip_norm: float = 0.0
    seed: int = 0
    checkpoint_every: int = 100
    validate_every: int = 0
    ahead: int = 0


def fit(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[int], Batch],
    losses: Callable[[int, Batch], dict[str, Tensor]],
    pace: Pace,
    recipe: Recipe,
    *,
    validate: Callable[[], dict[str, float]] | None = None,
    report: Report = lambda step, values: None,
    overwrite: bool = False,
    abandon: Callable[[], None] = lambda: None,
) -> bool:
    """Train a model, or go on with a training that was stopped.

    A step draws its random numbers from the seed and its own number, and a checkpoint keeps all else, so a run
    that was killed and gone on with ends with the same weights, to the last bit, as one that never stopped. In a
    process group of torch.distributed gradients are averaged over the processes, each of which brings its own part
    of the batch; the first one writes.

    Parameters
    ----------
    folder : Path
        Of ``checkpoint.pt`` and ``log.csv``; made if it is not there.
    model : Module
        What checkpoints keep. Whether it is in training mode is left to ``losses``.
    optimizer : Optimizer
    batches : callable
        Step to batch. It must depend on nothing else, and is called from other threads.
    losses : callable
        Step and batch to named scalars: ``loss`` is minimised, the others are logged.
    pace : Pace
    recipe : dict
        All that decides the result. A folder with another one is refused.
    validate : callable
        Gives named numbers, which are logged; called in all processes.
    report : callable
        Called with the number of steps done and what was logged.
    overwrite : bool
        Begin anew, whatever the folder holds.
    abandon : callable
        Called when the run stops before its end: ends what ``batches`` and ``validate`` may be waiting for, such as a
        video whose decoding hangs.

    Returns
    -------
    bool
        Whether all steps are done. False: it was interrupted, and the checkpoint holds what was reached.

    Raises
    ------
    OutputError
        If the folder holds a log that no training made, and ``overwrite`` is false.
    TrainingError
        If the folder holds another training, or a loss, a gradient, a weight or what ``validate`` gives is no finite
        number; the last checkpoint stays.
    DiskFullError
        The last checkpoint stays.
    """
    if _is_first():
        require_training_folder(folder, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    done = 0
    if overwrite and _is_first():
        (folder / CHECKPOINT).unlink(missing_ok=True)
    _wait_for_all()
    if (folder / CHECKPOINT).exists():
        done = _restore(folder / CHECKPOINT, model, optimizer, recipe)
    _share_start(model)

    log, kept = _Log(folder / LOG, done), done
    with interruptible() as interrupted, _ahead(batches, pace.ahead, interrupted, abandon) as batch_of:
        for step in range(done, pace.steps):
            torch.manual_seed(_step_seed(pace.seed, step))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * pace.learning_rate(step)
            batch = batch_of(step)
            if batch is None:
                if step > kept:
                    _keep(folder / CHECKPOINT, model, optimizer, step, recipe)
                break
            values = _update(step, model, optimizer, losses(step, batch), pace.clip_norm)
            values["learning_rate"] = optimizer.param_groups[0]["lr"]
            done = step + 1
            if validate is not None and (
                done == pace.steps or (pace.validate_every and done % pace.validate_every == 0)
            ):
                validated = validate()
                _require_finite(done, validated)
                values |= validated
            log.add(done, values)
            stop = _any_process(interrupted.is_set())
            if stop or done == pace.steps or (pace.checkpoint_every and done % pace.checkpoint_every == 0):
                _keep(folder / CHECKPOINT, model, optimizer, done, recipe)
                kept = done
            report(done, values)
            if stop:
                break
    return done == pace.steps


def cosine(share: float, warm_up: float = 0.06) -> float:
    """Learning-rate factor at a share of the training: rises to 1 at first, then falls to 0 as a half cosine."""
    if share < warm_up:
        return (share + 0.01) / (warm_up + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up)))


def _update(
    step: int, model: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Tensor], clip_norm: float
) -> dict[str, float]:
    """One step of the optimiser; the losses and the norm of the gradient as numbers."""
    optimizer.zero_grad(set_to_none=True)
    values["loss"].backward()  # type: ignore[no-untyped-call]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with_gradient = [parameter for parameter in trained if parameter.grad is not None]
    _average([parameter.grad for parameter in with_gradient])
    norm = nn.utils.clip_grad_norm_(with_gradient, clip_norm or torch.inf)
    numbers = {name: float(value.detach()) for name, value in values.items()} | {"gradient_norm": float(norm)}
    _require_finite(step + 1, numbers)
    optimizer.step()
    _average([buffer for buffer in model.buffers() if buffer.is_floating_point()])  # statistics of batch normalisation
    if not torch.stack([tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers())]).all():
        raise _diverged(step + 1, "the weights are no finite numbers")
    return numbers


def _require_finite(done: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise _diverged(done, f"{name} is {value}")


def _diverged(done: int, what: str) -> TrainingError:
    return TrainingError(
        f"step {done}: {what}; the last checkpoint is kept: begin anew with a lower --learning-rate or a smaller "
        "--clip-norm"
    )


def require_training_folder(folder: Path, results: Sequence[str] = (), *, overwrite: bool) -> None:
    """Refuse a folder for a training in which files of others would be replaced.

    Files that this program writes hold its mark; a log, which has no room for one, is known by its columns. Those of
    version 0.1.0 have no mark, and are known by its checkpoint.

    Parameters
    ----------
    folder : Path
    results : sequence of str
        Names of files that are written beside the checkpoint and the log. The word of the card of weights is taken for
        the weights, and that of ``confusion.svg`` for ``classes.csv``.
    overwrite : bool
        Also replace files that this program did not write.

    Raises
    ------
    OutputError
        If a file is there that this program did not write, and ``overwrite`` is false; or if it is no folder.
    TrainingError
        If the log is not that of a training.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is no folder: choose another one for the training")
    checkpoint, log = folder / CHECKPOINT, folder / LOG
    resumes = checkpoint.exists() and not overwrite
    if resumes and log.exists():
        _read_log(log)
    elif not _is_log(log):
        require_replaceable(log, overwrite=overwrite)
    old = resumes and checkpoint.is_file() and not is_marked(checkpoint)
    for name in results:
        path = folder / name
        voucher = path.with_suffix(".toml") if path.suffix == ".safetensors" else folder / "confusion.svg"
        require_replaceable(path, overwrite=overwrite or old, voucher=voucher)


def _keep(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, done: int, recipe: Recipe) -> None:
    """Write the checkpoint in the place of the old one."""
    if _is_first():
        state = {"generator": MARK, "step": done, "recipe": recipe}
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        content = io.BytesIO()  # torch hides what a file on the disk says against it
        torch.save(state, content)
        write_whole(path, content.getbuffer(), sync=True)
    _wait_for_all()


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> int:
    if not path.is_file():
        raise TrainingError(f"cannot read the checkpoint {path}: it is no file")
    try:
        content = read_whole(path, MAX_WEIGHT_BYTES)
    except OSError as error:
        raise TrainingError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    require_harmless(content, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about what is refused anyway
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        step, difference = int(state["step"]), first_difference(state["recipe"], recipe)
        if not difference:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # torch raises whatever its parts do
        raise TrainingError(
            f"{path} is damaged, or no checkpoint of tvnet: choose another folder, or --overwrite to begin anew"
        ) from error
    if difference:
        raise TrainingError(
            f"{path.parent} holds a training made in another way: {difference}; choose another folder, or --overwrite"
        )
    return step


class _Log:
    """The CSV file of a run, one row a step; rows behind the checkpoint that is resumed from are dropped."""

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, str]] = []
        if done and path.exists():
            self.columns, rows = _read_log(path)
            self.rows = [row for row in rows if int(row["step"]) <= done]
        self.first = _is_first()
        if self.first:
            self._write_all()

    def add(self, step: int, values: dict[str, float]) -> None:
        row = {"step": str(step)} | {name: repr(value) for name, value in values.items()}
        self.rows.append(row)
        if not self.first:
            return
        if row.keys() <= set(self.columns):
            with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self.columns += [name for name in row if name not in self.columns]
            self._write_all()

    def _write_all(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue().encode(), sync=True)


def _is_log(path: Path) -> bool:
    try:
        _read_log(path)
    except TrainingError:
        return False
    return True


def _read_log(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the rows of a log; a last row that was written half is left out.

    Raises
    ------
    TrainingError
        If it is not the log of a training.
    """
    advice = "it is not the log of this training: move it away, or --overwrite to begin anew"
    try:
        reader = csv.DictReader(io.StringIO(read_text(path, "the log", MAX_LOG_BYTES), newline=""))
        columns = list(reader.fieldnames or [])
        if columns and (columns[0] != "step" or not set(columns) >= LOGGED):
            raise TrainingError(f"{path} has the columns {', '.join(columns)[:80]}: {advice}")
        rows: list[dict[str, str]] = []
        half = 0
        for row in reader:
            if half or None in row or not row["step"].isdecimal():
                raise TrainingError(f"{path}, line {half or reader.line_num}: {advice}")
            if None in row.values():
                half = reader.line_num
            else:
                rows.append(row)
    except (DatasetError, csv.Error) as error:
        reason = str(error) if isinstance(error, DatasetError) else f"cannot read the log {path}: {error}"
        raise TrainingError(f"{reason}; move it away, or --overwrite to begin anew") from error
    return columns, rows


@contextmanager
def _ahead(
    batches: Callable[[int], Batch], number: int, interrupted: Event, abandon: Callable[[], None]
) -> Iterator[Callable[[int], Batch | None]]:
    """Batches by step, so many of the next ones prepared in a thread of their own; None once interrupted meanwhile.

    In a process group a batch is waited for all the same: the others would wait for this process in their next step.
    """
    if not number:
        yield batches
        return
    pool = ThreadPoolExecutor(1)
    waiting: dict[int, Future[Batch]] = {}

    def batch_of(step: int) -> Batch | None:
        for later in range(step, step + number + 1):
            if later not in waiting:
                waiting[later] = pool.submit(batches, later)
        batch = waiting.pop(step)
        while not wait([batch], SECONDS_UNTIL_STOP).done:
            if interrupted.is_set() and not _in_group():
                return None
        return batch.result()

    stopped = True
    try:
        yield batch_of
        stopped = interrupted.is_set()
    finally:
        if stopped:  # an error, or Ctrl-C
            abandon()
        pool.shutdown(cancel_futures=True)


def _step_seed(seed: int, step: int) -> int:
    rank = distributed.get_rank() if _in_group() else 0
    return (seed * 1_000_003 + step) * 1_009 + rank


def _in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _is_first() -> bool:
    return not _in_group() or distributed.get_rank() == 0


def _wait_for_all() -> None:
    if _in_group():
        distributed.barrier()


def _share_start(model: nn.Module) -> None:
    """All processes begin with what the first one has."""
    if _in_group():
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, 0)


def _average(tensors: list[Tensor | None]) -> None:
    """Replace tensors by their mean over the processes."""
    if _in_group():
        for tensor in tensors:
            assert tensor is not None
            distributed.all_reduce(tensor)
            tensor /= distributed.get_world_size()


def _any_process(here: bool) -> bool:
    if not _in_group():
        return here
    anywhere = torch.tensor(float(here))
    distributed.all_reduce(anywhere, distributed.ReduceOp.MAX)
    return bool(anywhere)

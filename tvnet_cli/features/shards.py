"""One run of many that share the videos among themselves, each with a feature file of its own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

IN_A_NAME = re.compile(r"\.shard-(\d{4,})-of-(\d{4,})(?=\.|$)")


@dataclass(frozen=True)
class Shard:
    """The videos whose ids fall to run ``index`` of ``count``, whatever other videos there are.

    Examples
    --------
    >>> shards = [Shard(number, 3) for number in range(3)]
    >>> [[name for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4") if shard.holds(name)] for shard in shards]
    [['b.mp4', 'c.mp4'], ['a.mp4'], ['d.mp4']]
    >>> str(shards[2].output(Path("out/features.h5")))
    'out/features.shard-0002-of-0003.h5'
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise ValueError(f"there is no shard {self}: of n shards they are 0/n, 1/n, ... (n-1)/n")

    def __str__(self) -> str:
        """As ``--shard`` takes it."""
        return f"{self.index}/{self.count}"

    def holds(self, video_id: str) -> bool:
        """Whether a video is one of this shard."""
        first_bytes = hashlib.sha256(video_id.encode()).digest()[:8]
        return int.from_bytes(first_bytes, "big") % self.count == self.index

    def output(self, path: Path) -> Path:
        """The feature file of this shard, beside that of all; that one itself if there is one shard only."""
        if self.count == 1:
            return path
        return path.with_name(f"{path.stem}.shard-{self.index:04}-of-{self.count:04}{path.suffix}")


def parse_shard(text: str) -> Shard:
    """The shard ``i/n``.

    Raises
    ------
    ValueError
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise ValueError(f"a shard is given as i/n, such as 0/8 or 7/8, not as {text!r}")
    return Shard(int(match[1]), int(match[2]))


def shard_of_this_job(environment: Mapping[str, str]) -> tuple[Shard, str] | None:
    """The shard that a job scheduler's variables say, and which variable said so.

    The task of a SLURM array goes first, then ``RANK`` and ``WORLD_SIZE``, which torchrun sets and others do too.

    Raises
    ------
    ValueError
        If the variables make no sense together.
    """
    if "SLURM_ARRAY_TASK_ID" in environment:
        task = _number(environment, "SLURM_ARRAY_TASK_ID")
        first, last = (_number(environment, f"SLURM_ARRAY_TASK_{name}", default=task) for name in ("MIN", "MAX"))
        step = max(1, _number(environment, "SLURM_ARRAY_TASK_STEP", default=1))
        count = _number(environment, "SLURM_ARRAY_TASK_COUNT", default=(last - first) // step + 1)
        index, rest = divmod(task - first, step)
        if rest or not 0 <= index < count or (last - first) // step + 1 != count:
            raise ValueError(
                f"SLURM_ARRAY_TASK_ID={task} is of an array with gaps ({count} tasks from {first} to {last}): say "
                'which part of the videos it is, such as --shard "$SLURM_ARRAY_TASK_ID/8"'
            )
        return Shard(index, count), f"SLURM_ARRAY_TASK_ID={task}"
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
        return (Shard(rank, size), f"RANK={rank}") if size != 1 else None
    return None


def missing_shards(paths: Iterable[Path]) -> list[str]:
    """Shards that are not among feature files although, by their names, others of the same set are."""
    found: dict[int, set[int]] = {}
    for path in paths:
        match = IN_A_NAME.search(path.name)
        if match:
            found.setdefault(int(match[2]), set()).add(int(match[1]))
    return [
        f"{index}/{count}" for count, known in sorted(found.items()) for index in range(count) if index not in known
    ]


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or ("" if default is None else str(default))
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"{name} is {text!r}, no number: --shard i/n says which part of the videos is meant")
    return int(text)

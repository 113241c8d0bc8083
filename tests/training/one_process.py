"""One process of a training, for tests that kill it or start two: FILMS FOLDER OPTIONS [KILL_AT]."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tvnet_cli.options import ActionOptions, TVNetOptions
from tvnet_cli.training.actions import train_actions
from tvnet_cli.training.datasets import read_dataset
from tvnet_cli.training.processes import process_group, rank_and_world


def main(films: str, folder: str, options: str, *kill_at: str) -> None:
    def report(step: int, values: dict[str, float]) -> None:
        if kill_at and step == int(kill_at[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    with process_group(torch.device("cpu")) as device:
        result = train_actions(
            read_dataset(Path(films), validation_share=0.5),
            Path(folder),
            ActionOptions(**{key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(options).items()}),
            schedule=TVNetOptions(num_iterations=3),
            device=device,
            report=report,
        )
        assert result is not None
        torch.save(
            {"model": result.model.state_dict(), "confusion": result.confusion.tolist()},
            f"{folder}/{rank_and_world()[0]}.pt",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

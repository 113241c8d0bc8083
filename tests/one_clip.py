"""The program as it is, but with one clip a video in place of 25: a script for tests of everything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tvnet_cli.cli import main
from tvnet_cli.features import extract

whole = extract.extract_features


def one_clip(*arguments: Any, options: Any, **more: Any) -> Iterator[Any]:
    """As ``extract_features``."""
    return whole(*arguments, options=dataclasses.replace(options, num_clips=1), **more)


if __name__ == "__main__":
    extract.extract_features = one_clip
    main()

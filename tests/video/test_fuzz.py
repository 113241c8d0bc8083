from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from damage import damaged, whole_films
from films import write_film

from tvnet_cli.errors import REASONS, VideoReadError
from tvnet_cli.options import DecodeLimits, ExtractOptions
from tvnet_cli.video.reader import ClipReader

REAL_FILMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"
FEW = ExtractOptions(num_clips=3, short_side=64, crop_size=64)
LIMITS = DecodeLimits(timeout=300, memory=1024)
NEVER = {"unexpected", "timeout", "no_such_file", "not_a_file", "unreadable", "changed"}


@pytest.mark.parametrize("cases", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_film_ends_in_clips_or_a_reason_and_harms_no_neighbour(tmp_path, cases):
    """Real films take part in the large number, where there are some. What became of the films is printed."""
    films = whole_films(tmp_path, REAL_FILMS if cases > 200 and REAL_FILMS.is_dir() else None)
    good = write_film(tmp_path / "good.mkv", 20, options={"preset": "ultrafast"})

    def one(number: int) -> str:
        if number % 20 == 0:
            assert np.array_equal(clips.read(good).frames, expected.frames), number
            return "whole"
        copy = damaged(films[number % len(films)], number, tmp_path)
        try:
            found = clips.read(copy)
        except VideoReadError as error:
            found = error
        copy.unlink()
        if isinstance(found, VideoReadError):
            assert found.code in REASONS.keys() - NEVER, (number, found, found.__cause__)
            assert str(found).isprintable(), number
            return found.code
        assert found.num_frames > 0, number
        assert (np.diff(found.frame_index) >= 0).all(), number
        return "row with a note" if found.notes else "row"

    with ClipReader(FEW, LIMITS) as clips, ThreadPoolExecutor(2) as threads:
        expected = clips.read(good)
        outcomes = Counter(threads.map(one, range(cases)))
        assert np.array_equal(clips.read(good).frames, expected.frames)
    assert outcomes.total() == cases
    assert outcomes["whole"] == cases // 20
    assert len(outcomes) > 4, outcomes
    print(dict(outcomes.most_common()))

from __future__ import annotations

import numpy as np
import pytest
from films import write_film
from flow_pairs import write_pair

from tvnet_cli.errors import DatasetError
from tvnet_cli.training.drawn import drawn_pair
from tvnet_cli.training.pairs import KnownPair
from tvnet_cli.training.sources import DrawnPairs, FilmPairs, PairsOnDisk, open_source


def counting(number: int) -> np.ndarray:
    """A frame that shows its number as its level."""
    return np.full((64, 80), 20 + 6 * number, np.uint8)


def number_of(frame: np.ndarray) -> int:
    return round((float(np.median(frame)) - 20) / 6)


def same(one: KnownPair, other: KnownPair) -> bool:
    return all(np.array_equal(a, b, equal_nan=a.dtype == np.float32) for a, b in zip(one, other, strict=True))


def test_drawn_pairs_are_new_in_every_step():
    source = open_source([], seed=3, crop=32)
    assert isinstance(source, DrawnPairs)
    assert source.labelled
    pairs = [pair for step in (0, 1) for pair in source.pairs(step, 2, np.random.default_rng(0))]
    assert all(same(pair, drawn_pair(3, index, 32)) for index, pair in enumerate(pairs))


def test_pairs_on_disk_are_drawn_at_random(tmp_path):
    known = [drawn_pair(0, index, 40) for index in range(3)]
    for index, pair in enumerate(known):
        write_pair(tmp_path / str(index // 2) / str(index), pair)
    source = open_source([tmp_path / "0", tmp_path / "1"], seed=0, crop=32)
    assert isinstance(source, PairsOnDisk)
    assert source.labelled
    pairs = source.pairs(0, 30, np.random.default_rng(5))
    found = [next(index for index, pair in enumerate(known) if same(pair, given)) for given in pairs]
    assert set(found) == {0, 1, 2}
    again = source.pairs(9, 30, np.random.default_rng(5))
    assert all(same(a, b) for a, b in zip(pairs, again, strict=True))
    before = source.recipe
    (tmp_path / "1" / "2" / "frame10.png").write_bytes(b"")
    assert open_source([tmp_path / "0", tmp_path / "1"], seed=0, crop=32).recipe != before


def test_films_give_frames_that_follow_each_other_and_hold_out_their_ends(tmp_path):
    write_film(tmp_path / "a.mp4", 31, picture=counting)
    write_film(tmp_path / "b.mp4", 11, picture=counting)
    source = open_source([tmp_path], seed=0, crop=32)
    assert isinstance(source, FilmPairs)
    assert not source.labelled

    def numbers(pairs: list[KnownPair]) -> list[int]:
        for pair in pairs:
            assert pair.first.shape == (256, 320, 3)
            assert np.isnan(pair.truth).all()
            assert number_of(pair.second) == number_of(pair.first) + 1
        return [number_of(pair.first) for pair in pairs]

    trained = numbers(source.pairs(0, 150, np.random.default_rng(0)))
    assert set(trained) == set(range(27))
    assert numbers(list(source.held_out)) == [27, 28, 29, 9]


def test_films_that_cannot_be_read_are_left_out_by_name(tmp_path):
    write_film(tmp_path / "a.mp4", 4, picture=counting)
    (tmp_path / "b.mp4").write_text("no film")
    source = open_source([tmp_path], seed=0, crop=32)
    assert "1 films" in source.name
    assert "short side of 256 pixels: no crop is larger" in open_source([tmp_path], seed=0, crop=257).notes[-1]
    (note,) = source.notes
    assert note.startswith("left out: ")
    assert "b.mp4" in note
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(DatasetError, match=r"no film to train on; left out: .*b\.mp4"):
        open_source([tmp_path], seed=0, crop=32)


def test_pairs_and_films_are_not_mixed(tmp_path):
    folder = write_pair(tmp_path / "pairs", drawn_pair(0, 0, 32))
    film = write_film(tmp_path / "a.mp4", 4, picture=counting)
    with pytest.raises(DatasetError, match=r"pairs holds known flow, .*a\.mp4 does not"):
        open_source([folder, film], seed=0, crop=32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no videos in"):
        open_source([tmp_path / "empty"], seed=0, crop=32)

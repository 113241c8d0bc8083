from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from films import write_film
from PIL import Image

from tvnet_cli.errors import VideoReadError
from tvnet_cli.video.thumbnails import thumbnail


def test_a_thumbnail_is_the_middle_of_the_middle_frame(tmp_path):
    def picture(number: int) -> np.ndarray:
        grey = np.full((128, 256), 20 * number, np.uint8)
        grey[:, :56], grey[:, -56:] = 255, 255  # beside the middle square
        return grey

    film = write_film(tmp_path / "a.mp4", 9, picture=picture)
    with Image.open(BytesIO(thumbnail(film))) as found:
        assert (found.format, found.size) == ("JPEG", (160, 160))
        pixels = np.asarray(found.convert("L"))
    assert np.abs(pixels[:, 16:-16].astype(int) - 80).max() < 12


def test_a_film_that_cannot_be_read_has_none(tmp_path):
    (tmp_path / "a.mp4").write_text("no film")
    with pytest.raises(VideoReadError, match="cannot open"):
        thumbnail(tmp_path / "a.mp4")

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from films import write_film
from servers import FilmServer, film_server

from tvnet_cli.cli import main
from tvnet_cli.features import extract
from tvnet_cli.features.extract import extract_features
from tvnet_cli.network.weights import load_models
from tvnet_cli.options import ExtractOptions
from tvnet_cli.video.files import find_videos

pytest.importorskip("fsspec", reason="needs tvnet[remote]")
pytest.importorskip("aiohttp", reason="needs tvnet[remote]")

SIGNATURE = "X-Amz-Signature=5ec4e7"
TWO_CLIPS = ExtractOptions(num_clips=2)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "a.mp4", 30)
    write_film(folder / "b.mkv", 20)
    return folder


@pytest.fixture(scope="module")
def server(films) -> Iterator[FilmServer]:
    with film_server(films) as running:
        yield running


def content(path: Path) -> dict[str, np.ndarray]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        found["recipe"] = file.attrs["recipe"]
    return found


def test_films_on_the_web_give_the_rows_of_files_and_their_secrets_are_told_to_nobody(
    films, server, tmp_path, monkeypatch
):
    models = load_models(["untrained"], ("flow",))
    list(extract_features(find_videos([films]), tmp_path / "local.h5", models, options=TWO_CLIPS))

    def fewer(*arguments, options: ExtractOptions, **more):
        return extract_features(*arguments, options=dataclasses.replace(options, num_clips=2), **more)

    monkeypatch.setattr(extract, "extract_features", fewer)
    urls = [f"{server.url}/{name}?{SIGNATURE}" for name in ("a.mp4", "b.mkv", "none.mp4")]
    (tmp_path / "list.txt").write_text("\n".join(urls[1:]))
    arguments = [urls[0], "--from-file", tmp_path / "list.txt", "-o", tmp_path / "web.h5", "--weights", "untrained"]
    result = CliRunner().invoke(main, ["features", *map(str, arguments), "--json", "-vv"])
    assert result.exit_code == 1
    assert "none.mp4: no such file" in result.stderr
    local, web = content(tmp_path / "local.h5"), content(tmp_path / "web.h5")
    assert web["video_id"].tolist() == [b"a.mp4", b"b.mkv"]
    for name in local:
        # A server tells no hash of the content, and checksums cover what it tells.
        if name not in ("recipe", "checksum") and not name.startswith(("failures", "source_")):
            assert np.array_equal(local[name], web[name]), name
    for told in (result.stdout, result.stderr, (tmp_path / "web.h5").read_bytes().decode("latin-1")):
        assert "5ec4e7" not in told

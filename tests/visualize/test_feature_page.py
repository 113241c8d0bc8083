from __future__ import annotations

import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
from browser import Browser, chromium, needs_chromium
from click.testing import CliRunner, Result
from feature_files import damage
from films import write_film
from pair_files import class_features, write_features
from PIL import Image

from tvnet_cli.cli import main
from tvnet_cli.errors import DatasetError
from tvnet_cli.features.store import FeatureStore
from tvnet_cli.visualize.feature_page import feature_page

CLASSES = ("clap", "hug", "kick", "wave")
VIDEOS = [f"{CLASSES[number // 6]}/{number:02d}.mp4" for number in range(24)]
LAYERS = {
    "flow/global_pool": class_features(24, 40, strength=0.8),
    "flow/inception_5b_output": class_features(24, 54, strength=0.3, seed=1).reshape(24, 6, 3, 3),
    "rgb/global_pool": class_features(24, 30, strength=0.1, seed=2),
}
# Text that ends elements, attributes and strings, if it is ever taken for more than text.
HOSTILE = [
    "</script><script>window.broken = 1</script>.mp4",
    "<img src=x onerror='window.broken = 1'>.mp4",
    "\"'`${window.broken = 1}&lt;&amp;.mp4",
    "bytes \\xff\\u003c\\.mp4",
    "lines\u2028\u2029\n.mp4",
    "<!-- <script> 映画 🎬.mp4",
]


def visualize_features(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["visualize", "features", *map(str, arguments)])


class Page(HTMLParser):
    """The data of a page, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.data: dict = {}
        self.title, self.num_scripts = "", 0
        self._tag, self._own = "", {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._tag, self._own = tag, dict(attributes)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        self.num_scripts += tag == "script"

    def handle_data(self, data):
        if self._own.get("id") == "data":
            self.data = json.loads(data)
        if self._tag == "title":
            self.title += data

    def handle_endtag(self, tag):
        self._tag, self._own = "", {}


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return write_features(tmp_path_factory.mktemp("features") / "f.h5", VIDEOS, LAYERS)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """The films of two classes; one of them is broken."""
    folder = tmp_path_factory.mktemp("films")
    for video in VIDEOS[:12]:
        (folder / video).parent.mkdir(exist_ok=True)
        write_film(folder / video, 3)
    (folder / VIDEOS[5]).write_text("no film")
    return folder


@pytest.fixture(scope="module")
def page(features, films) -> Path:
    """A page as the command makes it."""
    result = visualize_features(features, "--videos", films, "--neighbours", 5)
    assert result.exit_code == 0, result.output
    return features.with_suffix(".html")


def test_the_page_needs_nothing_else(page):
    read = Page(page.read_text("utf-8"))
    assert read.addresses == ["data:,"]
    assert read.num_scripts == 2
    assert read.title == "f.h5 - tvnet"
    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)\w+\.", page.read_text("utf-8"))


def test_the_page_holds_what_was_computed(page):
    data = Page(page.read_text("utf-8")).data
    assert (data["file"], data["numInFile"], data["videos"]) == ("f.h5", 24, VIDEOS)
    assert (data["kind"], data["groups"]) == ("folder", list(CLASSES))
    assert data["groupOf"] == [number // 6 for number in range(24)]
    assert [layer["name"] for layer in data["layers"]] == list(LAYERS)
    for layer, values in zip(data["layers"], LAYERS.values(), strict=True):
        rows = values.reshape(24, -1)
        assert layer["numValues"] == rows.shape[1]
        similarity = rows @ rows.T
        np.fill_diagonal(similarity, -1)
        assert layer["neighbours"] == np.argsort(-similarity, axis=1)[:, :5].tolist()
        np.testing.assert_allclose(layer["similarities"], -np.sort(-similarity, axis=1)[:, :5], atol=1e-4)
        for name in ("pca", "tsne"):
            points = np.array(layer[name])
            assert points.shape == (24, 2)
            assert np.abs(points).max() == 1
        for name in ("folder", "likeness"):
            matrix = layer["matrices"][name]
            with Image.open(BytesIO(b64decode(matrix["png"]))) as picture:
                assert (picture.mode, picture.size) == ("L", (24, 24))
                shown = matrix["low"] + (matrix["high"] - matrix["low"]) * np.asarray(picture) / 255
            off = ~np.eye(24, dtype=bool)
            wanted = similarity[matrix["order"]][:, matrix["order"]]
            np.testing.assert_allclose(shown[off], wanted[off], atol=(matrix["high"] - matrix["low"]) / 500)


def test_films_are_shown_and_what_is_missing_is_counted(page, features, films):
    data = Page(page.read_text("utf-8")).data
    assert [bool(picture) for picture in data["thumbnails"]] == [number < 12 and number != 5 for number in range(24)]
    with Image.open(BytesIO(b64decode(data["thumbnails"][0]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (160, 160))
    gone, broken = data["notes"]
    assert gone == f"12 of 24 films are not in {films}, and have no thumbnail; such as kick/12.mp4"
    assert broken.startswith(
        f"1 of 24 films cannot be read, and have no thumbnail; such as {films / VIDEOS[5]}: cannot open: "
    )
    result = visualize_features(features, "--videos", films, "-o", page.with_name("again.html"))
    assert f"note {gone}\n" in result.stderr
    assert "24 videos, 3 layers: " in result.stderr
    assert result.stdout == ""


def test_a_folder_without_films_is_a_note(features, tmp_path):
    (tmp_path / "empty").mkdir()
    made = feature_page(features, layers=["rgb/global_pool"], films=[tmp_path / "empty"])
    assert made.num_layers == 1
    assert made.notes[0].startswith(f"no thumbnails: no videos in {tmp_path / 'empty'}")
    with pytest.raises(DatasetError, match="no such folder of films"):
        feature_page(features, films=[tmp_path / "gone"])


def test_films_that_lie_elsewhere_are_found_by_their_name(films, tmp_path):
    write_features(tmp_path / "f.h5", ["set/clap/00.mp4", "hug/07.mp4"], {"flow/global_pool": np.eye(2)})
    data = Page(feature_page(tmp_path / "f.h5", films=[films]).html).data
    assert all(data["thumbnails"])
    assert data["notes"] == ["no t-SNE: it takes at least 10 videos"]


def test_labels_colour_the_points(features, tmp_path):
    rows = [f"{video},{'even' if number % 2 == 0 else 'odd'}" for number, video in enumerate(VIDEOS[1:], 1)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    data = Page(feature_page(features, layers=["flow/global_pool"], labels=tmp_path / "labels.csv").html).data
    assert (data["kind"], data["groups"], data["groupOf"][:3]) == ("label", ["even", "odd"], [-1, 1, 0])
    assert data["notes"] == [f"1 of 24 videos have no label in {tmp_path / 'labels.csv'}"]


def test_many_videos_are_thinned_out(features):
    made = feature_page(features, layers=["flow/global_pool"], max_videos=12)
    data = Page(made.html).data
    assert data["videos"] == VIDEOS[::2]
    assert data["numInFile"] == 24
    assert made.notes == ("shows 12 of 24 videos, evenly spaced by name: --max-videos changes it",)
    similarity = LAYERS["flow/global_pool"][::2] @ LAYERS["flow/global_pool"][::2].T
    assert data["layers"][0]["similarities"][0][0] == pytest.approx(np.sort(similarity[0])[-2], abs=1e-4)


def test_a_page_repeats(features):
    assert feature_page(features).html == feature_page(features).html


def test_it_takes_what_a_feature_store_wrote(tmp_path):
    with FeatureStore(tmp_path / "features.h5", {}) as store:
        for number in range(2):
            store.add(f"{number}.mp4", {"flow/global_pool": np.eye(2, 8, dtype=np.float32)[number], "num_frames": 5})
    result = visualize_features(tmp_path / "features.h5")
    assert result.exit_code == 0
    assert Page((tmp_path / "features.html").read_text("utf-8")).data["videos"] == ["0.mp4", "1.mp4"]


def test_what_cannot_be_shown_is_one_clear_line(features, tmp_path):
    one = write_features(tmp_path / "one.h5", ["a.mp4"], {"flow/global_pool": np.ones((1, 4))})
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file.attrs["format"], file.attrs["format_version"], file.attrs["recipe"] = "tvnet-features", 1, "{}"
        file.create_dataset("video_id", (0,), h5py.string_dtype())
        file.create_dataset("flow/global_pool", (0, 1024), "f4")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    bare = write_features(tmp_path / "bare.h5", ["a.mp4", "b.mp4"], {})
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "cut.h5").write_bytes(features.read_bytes()[:3000])
    (tmp_path / "labels.csv").write_text("video,label\nx,y\n")
    cases = [
        ([one], "one.h5 holds one video: a map needs at least two"),
        ([tmp_path / "none.h5"], "none.h5 holds no videos"),
        ([tmp_path / "other.h5"], "other.h5 is an HDF5 file, but not of tvnet features"),
        ([tmp_path / "text.h5"], "text.h5 is not a readable feature file"),
        ([tmp_path / "cut.h5"], "cut.h5 is not a readable feature file"),
        ([tmp_path / "gone.h5"], "no such feature file: "),
        ([tmp_path, "-o", tmp_path / "p.html"], "is a folder: a file of tvnet features is needed"),
        ([bare], "bare.h5 holds no features"),
        ([features, "--layer", "fc"], "no features are called fc; there are flow/global_pool, "),
        ([features, "--labels", tmp_path / "labels.csv"], "labels.csv names x and others, but none of the 24 videos"),
        ([features, "--videos", tmp_path / "gone"], "no such folder of films: "),
    ]
    for arguments, message in cases:
        result = visualize_features(*arguments)
        assert result.exit_code == 1, (arguments, result.output)
        assert result.stderr.startswith("Error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.html"))


def test_wrong_usage_does_not_harm_the_feature_file(features, tmp_path):
    before = features.read_bytes()
    for output, message in [
        (features, "should end in .html"),
        (tmp_path / "gone" / "p.html", "no such folder"),
        (tmp_path, "should end in .html"),
    ]:
        result = visualize_features(features, "-o", output)
        assert result.exit_code == 2
        assert message in result.stderr
    assert features.read_bytes() == before


def test_a_page_does_not_replace_its_feature_file(features, tmp_path):
    path = tmp_path / "f.html"
    path.write_bytes(features.read_bytes())
    result = visualize_features(path)
    assert result.exit_code == 2
    assert "f.html is the feature file: choose another output" in result.stderr
    assert path.read_bytes() == features.read_bytes()


def test_a_page_that_may_not_be_written_stops_before_the_work(features, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    result = visualize_features(features, "-o", tmp_path / "p.html")
    assert result.exit_code == 2
    assert "p.html cannot be written: permission denied" in result.stderr


def test_damage_that_shows_late_is_one_clear_line(tmp_path):
    path = write_features(tmp_path / "f.h5", VIDEOS, {})
    with h5py.File(path, "a") as file:
        file.create_dataset("flow/global_pool", data=LAYERS["flow/global_pool"], fletcher32=True, chunks=(24, 40))
        start = file["flow/global_pool"].id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    whole[start + 100 : start + 110] = bytes(10)
    path.write_bytes(whole)
    result = visualize_features(path)
    assert result.exit_code == 1
    assert f"{path} is not a readable feature file: " in result.stderr.splitlines()[-1]


def test_names_are_text_in_the_page(tmp_path):
    path = write_features(tmp_path / "<b>&f.h5", HOSTILE, {"flow/global_pool": class_features(6, 20)})
    (tmp_path / "labels.csv").write_text("video,label\n" + f'"{HOSTILE[0]}",</script><b>\n', "utf-8")
    read = Page(feature_page(path, labels=tmp_path / "labels.csv").html)
    assert read.num_scripts == 2
    assert read.addresses == ["data:,"]
    assert read.title == "<b>&f.h5 - tvnet"
    assert read.data["videos"] == HOSTILE
    assert read.data["groups"] == ["</script><b>"]


# In a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def shown(browser, page) -> Browser:
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page)
    return browser


def layer_of(page: Path, number: int = 0) -> dict:
    return Page(page.read_text("utf-8")).data["layers"][number]


def neighbours(browser: Browser) -> list[int]:
    return browser.value("[...document.querySelectorAll('#neighbours button')].map(one => Number(one.dataset.video))")


def text(browser: Browser, selector: str) -> str:
    return browser.value(f"document.querySelector({json.dumps(selector)}).innerText")


@needs_chromium
def test_a_browser_shows_the_points_without_errors(shown, page):
    boxes = shown.value(
        """(() => {
            const map = document.querySelector("#map").getBoundingClientRect();
            return [...document.querySelectorAll("#map circle.point")].map((one) => {
                const box = one.getBoundingClientRect();
                const inside = box.left >= map.left && box.right <= map.right && box.top >= map.top
                    && box.bottom <= map.bottom;
                return [box.x + box.width / 2, box.y + box.height / 2, box.width, getComputedStyle(one).fill, inside,
                    Number(one.dataset.video)];
            });
        })()"""
    )
    boxes.sort(key=lambda box: box[5])
    assert [box[5] for box in boxes] == list(range(24))
    assert all(inside and width > 4 for *_, width, _, inside, _ in boxes)
    assert len({colour for *_, colour, _, _ in boxes}) == 4
    # They lie as the principal components say, y upwards.
    points, wanted = np.array([box[:2] for box in boxes]), np.array(layer_of(page)["pca"]) * [1, -1]
    for axis in range(2):
        assert np.corrcoef(points[:, axis], wanted[:, axis])[0, 1] > 0.9999
    assert text(shown, "#title") == "f.h5"
    assert text(shown, "#summary") == "24 videos, 3 layers"
    assert len(shown.value("[...document.querySelectorAll('#notes li')].map(one => one.innerText)")) == 2
    assert not shown.value("[...document.querySelectorAll('#neighbours li')].length")
    assert shown.errors == []
    assert all(address.startswith(("data:", page.as_uri())) for address in shown.requests)


@needs_chromium
def test_a_click_shows_the_neighbours_and_their_pictures(shown, page):
    for video in (3, 14):
        shown.click(f"#video-{video}")
        assert text(shown, "#chosen-name") == VIDEOS[video]
        assert neighbours(shown) == layer_of(page)["neighbours"][video]
        values = shown.value("[...document.querySelectorAll('#neighbours .value')].map(one => Number(one.innerText))")
        np.testing.assert_allclose(values, layer_of(page)["similarities"][video], atol=6e-4)
        pictured = shown.value(
            "[...document.querySelectorAll('#neighbours button')].map(one => one.querySelector('img')?.naturalWidth)"
        )
        assert pictured == [160 if other < 12 and other != 5 else None for other in neighbours(shown)]
        assert shown.value("document.querySelectorAll('#edges line').length") == 5
    first = neighbours(shown)[0]
    shown.click("#neighbours button")
    assert text(shown, "#chosen-name") == VIDEOS[first]
    assert shown.errors == []


@needs_chromium
def test_layers_and_maps_can_be_chosen(shown, page):
    shown.click("#video-3")
    before = shown.value("document.querySelector('#video-3').getAttribute('cx')")
    shown.click("#maps input[value=tsne]")
    assert shown.value("document.querySelector('#video-3').getAttribute('cx')") != before
    assert "t-SNE" in text(shown, "#caption")
    shown.value("document.querySelector('#layer').focus()")
    shown.press("ArrowDown")
    assert neighbours(shown) == layer_of(page, 1)["neighbours"][3]
    table = shown.value("[...document.querySelectorAll('#layers tr')].map(one => one.innerText.split('\\t'))")
    assert [row[0] for row in table] == list(LAYERS)
    assert [row[2].strip() for row in table] == [
        f"{100 * layer_of(page, number)['agreement']:.0f} %" for number in range(3)
    ]
    assert shown.errors == []


@needs_chromium
def test_the_map_is_for_keyboards_too(shown):
    shown.value("document.querySelector('#map').focus()")
    shown.press("ArrowRight")
    first = text(shown, "#chosen-name")
    seen = {first}
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        shown.press(key)
        seen.add(text(shown, "#chosen-name"))
    assert len(seen) >= 3
    shown.press("Escape")
    assert shown.value("document.querySelector('#chosen').hidden")
    assert shown.errors == []


@needs_chromium
def test_the_map_is_dragged_and_enlarged(shown):
    x, y = shown.place("#video-3")
    shown.drag(x, y, x - 60, y + 40)
    assert shown.place("#video-3") == pytest.approx((x - 60, y + 40), abs=1)
    assert shown.value("document.querySelector('#chosen').hidden"), "a drag is no click"
    shown.point(x + 100, y)
    assert shown.place("#video-3") == pytest.approx((x - 60, y + 40), abs=1)
    shown.click("#zoom-fit")
    assert shown.value("[state.zoom, state.x, state.y]") == [1, 0, 0]
    spread = "Math.abs(place(3)[0] - place(4)[0])"
    before = shown.value(spread)
    shown.click("#zoom-in")
    assert shown.value(spread) == pytest.approx(1.5 * before)
    assert shown.errors == []


@needs_chromium
def test_names_are_found(shown):
    shown.value("document.querySelector('#search').focus()")
    shown.type("KICK/1")
    assert text(shown, "#found") == "6 of 24"
    bright = "[...document.querySelectorAll('circle.point:not(.dim)')].map(one => Number(one.dataset.video)).sort()"
    assert shown.value(bright) == [12, 13, 14, 15, 16, 17]
    shown.press("Enter")
    shown.press("Enter")
    assert text(shown, "#chosen-name") == "kick/13.mp4"
    assert shown.errors == []


@needs_chromium
def test_a_group_can_be_shown_alone(shown):
    shown.click("#legend button:nth-child(2)")
    assert text(shown, "#legend button[aria-pressed=true]") == "hug 6"
    assert shown.value("document.querySelectorAll('circle.point:not(.dim)').length") == 6


@needs_chromium
def test_the_matrix_names_its_cells(shown, page):
    matrix = layer_of(page)["matrices"]["folder"]
    shown.value("document.querySelector('#matrix').scrollIntoView({block: 'center'})")
    left, top, side = shown.value(
        "(({x, y, width}) => [x, y, width])(document.querySelector('#matrix').getBoundingClientRect())"
    )
    row, column, strip = 4, 20, 12
    cell = (side - strip) / 24
    shown.point(left + strip + (column + 0.5) * cell, top + strip + (row + 0.5) * cell)
    said = shown.wait_for("document.querySelector('#cell').innerText")
    videos = [matrix["order"][place] for place in (row, column)]
    assert [VIDEOS[video] for video in videos] == re.findall(r"\w+/\d\d\.mp4", said)
    wanted = LAYERS["flow/global_pool"][videos[0]] @ LAYERS["flow/global_pool"][videos[1]]
    assert float(said.split()[0]) == pytest.approx(wanted, abs=0.006)
    # Its colours: violet for the least similar, yellow for the most.
    with Image.open(BytesIO(shown.screenshot())) as picture:
        window = np.asarray(picture.convert("RGB")).astype(int)
    levels = np.asarray(Image.open(BytesIO(b64decode(matrix["png"]))))
    off = np.where(np.eye(24, dtype=bool), 128, levels)
    for place, colour in ((off.argmin(), (0x44, 0x01, 0x54)), (off.argmax(), (0xFD, 0xE7, 0x25))):
        y, x = np.unravel_index(place, off.shape)
        pixel = window[int(top + strip + (y + 0.5) * cell), int(left + strip + (x + 0.5) * cell)]
        assert np.abs(pixel - colour).max() < 12
    assert shown.errors == []


@needs_chromium
def test_hostile_names_stay_text_in_a_browser(browser, tmp_path):
    path = write_features(tmp_path / "f.h5", HOSTILE, {"flow/global_pool": class_features(6, 20)})
    (tmp_path / "labels.csv").write_text("video,label\n" + f'"{HOSTILE[0]}",<b>x</b>\n', "utf-8")
    assert visualize_features(path, "--labels", tmp_path / "labels.csv").exit_code == 0
    browser.errors.clear()
    browser.open(path.with_suffix(".html"))
    for number, name in enumerate(HOSTILE):
        browser.click(f"#video-{number}")
        assert browser.value("document.querySelector('#chosen-name').textContent") == name
    assert browser.value("window.broken") is None
    assert "<b>x</b>" in text(browser, "#legend")
    assert browser.errors == []


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_light_or_dark_as_the_reader_likes(browser, page, scheme):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page, width=420, height=900)
    ground, ink = (
        sum(map(int, re.findall(r"\d+", browser.value(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("backgroundColor", "color")
    )
    assert abs(ground - ink) > 450
    assert (ground > ink) == (scheme == "light")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth"), "a telephone need not scroll aside"
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_a_full_disk_leaves_the_page_that_was_there(features, small_disk):
    output = small_disk / "old.html"
    output.write_bytes(b"old made by tvnet")
    (small_disk / "fill").write_bytes(bytes(2040 << 10))
    result = visualize_features(features, "-o", output)
    assert result.exit_code == 1
    assert f"Error: cannot write {output}: the disk at {small_disk} is full" in result.stderr
    assert output.read_bytes() == b"old made by tvnet"


def test_a_page_of_others_is_replaced_on_request_alone(features, tmp_path):
    page = tmp_path / "p.html"
    page.write_text("my homepage")
    refused = visualize_features(features, "-o", page)
    assert refused.exit_code == 2
    assert (
        "p.html exists, and nothing in it says that tvnet made it: choose another output, or --overwrite"
        in refused.stderr
    )
    for more in (["--overwrite"], []):
        assert visualize_features(features, "-o", page, *more).exit_code == 0
    assert "my homepage" not in page.read_text()


def test_a_damaged_row_is_one_line_with_the_file_and_the_video(tmp_path):
    with FeatureStore(tmp_path / "f.h5", {}) as store:
        for video, values in zip(VIDEOS, LAYERS["flow/global_pool"], strict=True):
            store.add(video, {"flow/global_pool": values})
    damage(tmp_path / "f.h5", "flow/global_pool", 3)
    result = visualize_features(tmp_path / "f.h5", "-o", tmp_path / "p.html", "-q")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {tmp_path / 'f.h5'} is damaged (the row of {VIDEOS[3]} differs from its")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "p.html").exists()

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from made_up_model import CLASSES, make_model

from tvnet_cli import TVNet, optical_flow
from tvnet_cli.errors import UnitError, WeightsError
from tvnet_cli.flow.colour import colour_scale, flow_to_colour
from tvnet_cli.network.cards import RGBInput
from tvnet_cli.network.stack import stack_flow
from tvnet_cli.network.weights import StreamModel, is_trained, untrained_model
from tvnet_cli.options import PRESETS, DrawOptions, Octave
from tvnet_cli.visualize import figures
from tvnet_cli.visualize.figures import FilmFigure, scale_rows
from tvnet_cli.visualize.moments import Moment

SHORT = DrawOptions(octaves=(Octave(steps=1, blur=(1, 1), rate=(10, 10)),), leak=0.01)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> StreamModel:
    """With kernels of TVNet that are not the untrained ones."""
    model = make_model()
    model.tvnet.gradient_kernels.data *= 0.9
    return model


def moment(height: int = 256, width: int = 300, seconds: float = 0.5) -> Moment:
    y, x = np.mgrid[:height, :width].astype(float)
    frames = []
    for number in range(6):
        wave = 128 + 50 * np.sin((x - number) / 5) * np.cos(y / 7) + 40 * np.sin((x - number + 2 * y) / 17)
        frames.append(np.repeat(wave.astype(np.uint8)[..., None], 3, axis=2))
    return Moment(seconds, tuple(frames), 2)


def test_a_row_is_frame_flow_and_drawn_units(model):
    figure = FilmFigure(model, ["frame", "tv-l1", "untrained", "trained", "global_pool", "fc"], SHORT, CPU)
    moments, steps = [moment(), moment(seconds=1.25)], []
    units = figure.most_active(moments)
    assert figure.num_steps(units) == 2  # both moments look alike
    rows = figure.rows(moments, units, steps.append)
    assert sum(steps) == 2
    assert [row.title for row in rows] == ["0.50 s", "1.25 s"]
    assert figure.titles[:2] == ["Frame", "TV-L1"]
    assert figure.titles[4:] == ["", "DeepDraw\nglobal_pool", "DeepDraw\nfc"]

    frame, tvl1, untrained, trained, wheel, pool, classes = rows[0].panels
    first, second = moments[0].frames[2:4]
    assert np.array_equal(frame.picture, first)
    assert frame.box == (38, 16, 224, 224)
    flows = [optical_flow(first, second, PRESETS["tv-l1"]), optical_flow(first, second, model.tvnet.options)]
    with torch.no_grad():
        pair = (torch.from_numpy(one).movedim(-1, 0)[None] for one in (first, second))
        flows.append(model.tvnet(*pair)[0].numpy())
    scale = colour_scale(flows)
    for panel, flow in zip((tvl1, untrained, trained), flows, strict=True):
        assert np.array_equal(panel.picture, flow_to_colour(flow, scale))
    assert wheel.caption == f"{scale:.3g} px"

    # The units are those that tvnet features would see as the most active ones.
    frames = torch.from_numpy(np.stack(moments[0].frames)[:, 16:240, 38:262]).movedim(-1, 1)
    with torch.no_grad():
        stack = stack_flow(model.tvnet(frames[:-1], frames[1:]), 6.375, 20.0)
        strongest = int(model.network.features(stack)["global_pool"][0].argmax())
        named = CLASSES[int(model.network(stack)[0].argmax())]
    assert (pool.caption, classes.caption) == (f"unit {strongest}", named)
    assert pool.picture.shape == (224, 224)


def test_the_network_sees_the_middle_of_the_frames(model, monkeypatch):
    seen: list[torch.Tensor] = []

    def flow_stacks(frames: torch.Tensor, model: StreamModel) -> torch.Tensor:
        seen.append(frames)
        return torch.zeros(1, 10, 224, 224)

    monkeypatch.setattr(figures, "flow_stacks", flow_stacks)
    one = moment()
    FilmFigure(model, ["fc"], SHORT, CPU).most_active([one])
    assert np.array_equal(seen[0][0].movedim(1, -1), np.stack(one.frames)[:, 16:240, 38:262])


def test_columns_may_be_few_and_other_layers(model):
    figure = FilmFigure(model, ["inception_4e_output", "frame"], SHORT, CPU)
    (row,) = figure.rows([moment()], figure.most_active([moment()]), lambda steps: None)
    assert figure.titles == ["DeepDraw\ninception_4e_output", "Frame"]
    assert row.panels[0].caption.startswith("unit ")
    assert len(row.panels) == 2

    flow_only = FilmFigure(model, ["frame", "trained"], SHORT, CPU)
    (row,) = flow_only.rows([moment()], flow_only.most_active([moment()]), lambda steps: None)
    assert len(row.panels) == 3
    assert row.panels[0].box is None


def test_what_weights_do_not_hold_is_refused(model):
    with pytest.raises(WeightsError, match="mine holds no trained TVNet"):
        FilmFigure(make_model(), ["trained"], SHORT, CPU)
    with pytest.raises(UnitError, match="untrained has no class head"):
        FilmFigure(untrained_model("flow"), ["untrained", "fc"], SHORT, CPU)
    with pytest.raises(UnitError, match="no layer is called 'flow'"):
        FilmFigure(model, ["frame", "flow"], SHORT, CPU)
    with pytest.raises(WeightsError, match="for the rgb stream, and the figure is of flow"):
        FilmFigure(make_model(3, input=RGBInput((104, 117, 123), "BGR"), stream="rgb"), ["frame"], SHORT, CPU)


def test_trained_kernels_are_told_from_untrained_ones():
    assert not is_trained(TVNet())
    assert not is_trained(TVNet(u0_size=(20, 30)))
    trained = TVNet()
    trained.divergence_kernels.data[0, 0, 7] += 1e-3
    assert is_trained(trained)


def test_scales_are_shown_coarse_to_fine_in_pixels_of_the_finest():
    tvnet = TVNet.from_options(dataclasses.replace(PRESETS["tv-l1"], num_scales=3, zoom_factor=0.5, num_warps=2))
    (row,) = scale_rows(moment(128, 160), tvnet)
    captions = [panel.caption for panel in row.panels]
    assert captions[:5] == ["first frame", "second frame", "40 x 32", "80 x 64", "160 x 128"]
    assert captions[5].endswith(" px")
    with torch.no_grad():
        pair = (torch.from_numpy(frame).movedim(-1, 0)[None] for frame in moment(128, 160).frames[2:4])
        levels = [level[0].numpy() for level in tvnet.flow_scales(*pair)]
    scale = colour_scale(levels[-1:])
    for panel, level, larger in zip(row.panels[2:], levels, (4, 2, 1), strict=False):
        assert np.array_equal(panel.picture, flow_to_colour(level * larger, scale))


def test_many_scales_take_more_rows():
    tvnet = TVNet.from_options(dataclasses.replace(PRESETS["tv-l1"], num_warps=1, num_iterations=2))
    rows = scale_rows(moment(128, 160), tvnet)
    assert len(rows) == 2
    assert all(len(row.panels) <= 6 for row in rows)

"""The figures of the supplement of TVNet for a film of one's own: what it sees and what it learned, and its scales.

Fan et al., End-to-End Learning of Motion Representation for Video Understanding, CVPR 2018, supplementary material,
Figures 2 and 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from tvnet_cli.device import true_float32
from tvnet_cli.errors import WeightsError
from tvnet_cli.features.extractor import flow_stacks
from tvnet_cli.flow.colour import colour_scale, flow_to_colour
from tvnet_cli.flow.compute import solve_pairs
from tvnet_cli.flow.field import scales_of
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network.weights import StreamModel, is_trained
from tvnet_cli.options import FLOW_COLUMNS, PRESETS, DrawOptions, ExtractOptions, FieldOptions
from tvnet_cli.video.decode import center_crop
from tvnet_cli.video.sequence import Picture
from tvnet_cli.visualize.deepdraw import draw_units, unit_values
from tvnet_cli.visualize.moments import Moment
from tvnet_cli.visualize.pictures import canvas_pictures, stretched
from tvnet_cli.visualize.sheet import Panel, Row, legend
from tvnet_cli.visualize.units import NetworkLayer

TITLES = {"frame": "Frame", "tv-l1": "TV-L1", "untrained": "TVNet, untrained", "trained": "TVNet, trained"}
CROP = ExtractOptions.crop_size
IN_A_ROW = 6  # panels of scales
T = TypeVar("T")


class FilmFigure:
    """Moments of a film as rows: the frame, its flow by TV-L1 and by TVNet, and what the units ask for that it excites.

    Parameters
    ----------
    model : StreamModel
        Stays as it is, but for the device of its TVNet.
    columns : sequence of str
        ``frame``, ``tv-l1``, ``untrained`` and ``trained`` TVNet, and layers of the network, of which the most active
        unit is drawn.
    options : DrawOptions
    device : torch.device

    Raises
    ------
    WeightsError
        If the weights are not of flow, or hold no trained TVNet where its column is wanted.
    UnitError
        If a column is no layer.
    """

    def __init__(self, model: StreamModel, columns: Sequence[str], options: DrawOptions, device: torch.device) -> None:
        if model.tvnet is None:
            raise WeightsError(f"{model.name} is for the {model.card.stream} stream, and the figure is of flow")
        if "trained" in columns and not is_trained(model.tvnet):
            raise WeightsError(f"{model.name} holds no trained TVNet: choose other weights, or --columns without it")
        self.columns, self.options, self.device = columns, options, device
        solvers = {
            "tv-l1": TVNet.from_options(PRESETS["tv-l1"]),
            "untrained": TVNet.from_options(model.tvnet.options),
            "trained": model.tvnet,
        }
        self._solvers = {name: solver.to(device) for name, solver in solvers.items() if name in columns}
        self._layers = {
            name: NetworkLayer(model, name, options.leak, device) for name in columns if name not in FLOW_COLUMNS
        }
        self._model = dataclasses.replace(model, tvnet=model.tvnet.to(device))

    @property
    def titles(self) -> list[str]:
        """Of the panels of a row."""
        return self._with_legend([TITLES.get(name, f"DeepDraw\n{name}") for name in self.columns], "")

    @torch.inference_mode()
    def most_active(self, moments: Sequence[Moment]) -> dict[str, list[int]]:
        """The most active unit of each layer at each moment, on what ``tvnet features`` makes of its clip."""
        crops = np.stack([[center_crop(frame, CROP) for frame in moment.frames] for moment in moments])
        frames = torch.from_numpy(crops).to(self.device).movedim(-1, -3)
        with true_float32():
            stacks = flow_stacks(frames, self._model)
            values = {name: unit_values(layer.of_input(stacks)) for name, layer in self._layers.items()}
        return {name: of_layer.argmax(1).tolist() for name, of_layer in values.items()}

    def num_steps(self, units: dict[str, list[int]]) -> int:
        """Steps of gradient ascent that ``rows`` takes for these units."""
        return self.options.num_steps * sum(len(set(of_layer)) for of_layer in units.values())

    def rows(
        self, moments: Sequence[Moment], units: dict[str, list[int]], progress: Callable[[int], None]
    ) -> list[Row]:
        """A row for each moment, with ``units`` from ``most_active`` and ``progress`` as for ``draw_units``."""
        drawn = {name: self._draw(layer, units[name], progress) for name, layer in self._layers.items()}
        rows = []
        for number, moment in enumerate(moments):
            pair = [(moment.first, moment.second)]
            flows = {name: solve_pairs(tvnet, pair, FieldOptions())[0]["flow"] for name, tvnet in self._solvers.items()}
            scale = colour_scale(list(flows.values())) if flows else 0.0
            panels = {name: Panel(flow_to_colour(flow, scale)) for name, flow in flows.items()}
            panels["frame"] = Panel(moment.first, box=_crop_box(moment.first) if self._layers else None)
            panels |= {name: drawn[name][units[name][number]] for name in drawn}
            row = self._with_legend([panels[name] for name in self.columns], legend(scale))
            rows.append(Row(row, f"{moment.seconds:.2f} s"))
        return rows

    def _draw(self, layer: NetworkLayer, units: Sequence[int], progress: Callable[[int], None]) -> dict[int, Panel]:
        """Each unit once, in grey, with all the contrast that there is room for."""
        panels = {}
        wanted = list(dict.fromkeys(units))
        for drawing in draw_units(layer, wanted, layer.space(self.options), self.options, self.device, progress):
            caption = layer.title(drawing.unit) + (" (dead)" if drawing.dead else "")
            panels[drawing.unit] = Panel(stretched(canvas_pictures(drawing.canvas, layer.how)["mean"]), caption)
        return panels

    def _with_legend(self, panels: Sequence[T], added: T) -> list[T]:
        """With what belongs to the legend behind the last column of flow."""
        last = max((number for number, name in enumerate(self.columns) if name in self._solvers), default=None)
        return list(panels) if last is None else [*panels[: last + 1], added, *panels[last + 1 :]]


def scale_rows(moment: Moment, tvnet: TVNet) -> list[Row]:
    """A pair of frames and its flow on every scale of the pyramid, coarse to fine, in pixels of the finest.

    Parameters
    ----------
    moment : Moment
    tvnet : TVNet

    Returns
    -------
    list of Row
    """
    (arrays,) = solve_pairs(tvnet, [(moment.first, moment.second)], FieldOptions(scales=True))
    width = moment.first.shape[1]
    levels = [level * np.float32(width / level.shape[2]) for level in scales_of(arrays)]
    scale = colour_scale(levels[-1:])
    panels = [Panel(moment.first, "first frame"), Panel(moment.second, "second frame")]
    panels += [Panel(flow_to_colour(level, scale), f"{level.shape[2]} x {level.shape[1]}") for level in levels]
    panels.append(legend(scale))
    return [Row(panels[start : start + IN_A_ROW]) for start in range(0, len(panels), IN_A_ROW)]


def _crop_box(frame: Picture) -> tuple[int, int, int, int]:
    """The part of a frame that the network sees."""
    height, width = frame.shape[:2]
    return (width - CROP) // 2, (height - CROP) // 2, CROP, CROP

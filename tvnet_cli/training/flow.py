"""`tvnet train flow`: the kernels of TVNet learn from known flow, or from films by the flow loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tvnet_cli.device import true_float32
from tvnet_cli.flow import accuracy
from tvnet_cli.flow.colour import flow_to_colour, longest
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network.cards import TVNET_ALONE, FrameInput, WeightCard
from tvnet_cli.network.weights import TVNET_PREFIX, write_weights
from tvnet_cli.options import FlowTrainingOptions, TVNetOptions, as_dict
from tvnet_cli.recipe import software
from tvnet_cli.training.drawn import drawn_pair
from tvnet_cli.training.loop import Pace, Report, cosine, fit, require_training_folder
from tvnet_cli.training.losses import endpoint_error, flow_loss
from tvnet_cli.training.pairs import KnownPair, PairFiles, read_pair, stack
from tvnet_cli.training.sources import PairSource
from tvnet_cli.video.sequence import Picture
from tvnet_cli.visualize.pictures import as_png
from tvnet_cli.writing import MARK, write_whole

WEIGHTS, PICTURE = "tvnet.safetensors", "flow.png"
RESULTS = ("tvnet.toml", WEIGHTS, PICTURE)
NUM_DRAWN, DRAWN_SIZE = 32, 256  # pairs and pixels of their sides, on which every training is tested
MOST_SHOWN = 12  # single pairs in a table
DRAWN_SEED = 1_000_000  # added to the seed of the training: other scenes

Batch = tuple[Tensor, Tensor, Tensor]  # frames (B, 3, H, W) twice, uint8, and the flow (B, 2, H, W), NaN if not known


class FlowModel(nn.Module):
    """A TVNet whose tau, lambda and theta can be trained as well, by their logarithms: so they stay positive.

    Parameters
    ----------
    solver : TVNetOptions
        The schedule.
    train_numbers : bool
        Also train tau, lambda and theta.
    """

    def __init__(self, solver: TVNetOptions, train_numbers: bool) -> None:
        super().__init__()
        self.tvnet = TVNet.from_options(solver)
        self.train_numbers = train_numbers
        self.log_numbers = nn.Parameter(torch.tensor([solver.tau, solver.lambda_, solver.theta]).log())

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """As ``TVNet``."""
        if self.train_numbers:
            self.tvnet.tau, self.tvnet.lambda_, self.tvnet.theta = self.log_numbers.exp()
        flow: Tensor = self.tvnet(first, second)
        return flow

    def trained(self) -> TVNet:
        """The TVNet as it is now, its numbers in its options."""
        options = self.tvnet.options
        if self.train_numbers:
            tau, lambda_, theta = self.log_numbers.detach().exp().tolist()
            options = dataclasses.replace(options, tau=tau, lambda_=lambda_, theta=theta)
        net = TVNet.from_options(options)
        net.load_state_dict(self.tvnet.state_dict())
        return net.to(self.log_numbers.device).eval()


@dataclass(frozen=True)
class Comparison:
    """A mean over pairs that were not trained on, before the training and after it.

    Attributes
    ----------
    name : str
    pairs : int
    unit : str
        ``px`` for the endpoint error, nothing for the flow loss.
    before, after : float
    """

    name: str
    pairs: int
    unit: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """Of the mean, as a share of what it was."""
        return self.after / self.before - 1 if self.before else 0.0


def train_flow(
    folder: Path,
    source: PairSource,
    solver: TVNetOptions,
    options: FlowTrainingOptions,
    *,
    device: torch.device | str = "cpu",
    report: Report = lambda step, values: None,
    overwrite: bool = False,
    abandon: Callable[[], None] = lambda: None,
) -> TVNet | None:
    """Train the kernels of a TVNet on pairs; what was stopped is gone on with.

    Where the flow of the pairs is known, by the endpoint error, else by the flow loss, with Adam. The authors trained
    kernels and start field on 8 pairs of Middlebury, 2000 steps of 32 at a constant rate of 0.005.

    Parameters
    ----------
    folder : Path
        Of the checkpoint and the log.
    source : PairSource
    solver : TVNetOptions
        The schedule; its tau, lambda and theta are where those begin.
    options : FlowTrainingOptions
    device : torch.device or str
    report : callable
        See ``tvnet_cli.training.loop.fit``.
    overwrite : bool
        Begin anew.
    abandon : callable
        Ends what ``source`` may be waiting for; see ``tvnet_cli.training.loop.fit``.

    Returns
    -------
    TVNet or None
        On the CPU; None if it was interrupted.

    Raises
    ------
    TrainingError
        See ``tvnet_cli.training.loop.fit``.
    """
    require_training_folder(folder, RESULTS, overwrite=overwrite)
    device = torch.device(device)
    model = FlowModel(solver, options.train_numbers).to(device)
    trained = [model.tvnet.gradient_kernels, model.tvnet.divergence_kernels]
    trained += [model.tvnet.u0] if options.train_u0 else []
    trained += [model.log_numbers] if options.train_numbers else []
    optimizer = torch.optim.Adam(trained, options.learning_rate)
    tests = drawn_tests(options.seed)

    def batches(step: int) -> Batch:
        random = np.random.default_rng((options.seed, step))
        pairs = source.pairs(step, options.batch_size, random)
        first, second, truth = (torch.from_numpy(a) for a in stack(pairs, options.crop, random, options.mirror))
        return first.movedim(-1, 1).to(device), second.movedim(-1, 1).to(device), truth.to(device)

    def losses(step: int, batch: Batch) -> dict[str, Tensor]:
        first, second, truth = batch
        flow = model(first, second)
        if source.labelled:
            return {"loss": endpoint_error(flow, truth, truth.isfinite().all(1))}
        return {"loss": flow_loss(first, second, flow, options.data_weight)}

    pace = Pace(
        steps=options.steps,
        learning_rate=lambda step: cosine(step / options.steps),
        clip_norm=options.clip_norm,
        seed=options.seed,
        checkpoint_every=50,
        validate_every=options.validate_every,
        ahead=1,
    )
    recipe = {"training": asdict(options), "tvnet": as_dict(solver), "source": source.recipe}
    with true_float32():
        done = fit(
            folder,
            model,
            optimizer,
            batches,
            losses,
            pace,
            recipe,
            validate=lambda: {"validation_error": _mean_error(model.trained(), tests)},
            report=report,
            overwrite=overwrite,
            abandon=abandon,
        )
    return model.trained().cpu() if done else None


def drawn_tests(seed: int) -> list[KnownPair]:
    """The drawn pairs on which every training is tested: of a seed that no training draws from."""
    return [drawn_pair(DRAWN_SEED + seed, number, DRAWN_SIZE) for number in range(NUM_DRAWN)]


def compare(
    trained: TVNet,
    solver: TVNetOptions,
    source: PairSource,
    options: FlowTrainingOptions,
    validation: Sequence[tuple[str, PairFiles]] = (),
) -> list[Comparison]:
    """How much better the trained solver does than the untrained one, on pairs that it has not seen.

    Parameters
    ----------
    trained : TVNet
    solver : TVNetOptions
        Of the untrained one.
    source : PairSource
        What is held out of films is compared by the flow loss.
    options : FlowTrainingOptions
    validation : sequence of (str, PairFiles)
        More pairs with known flow, with their names.

    Returns
    -------
    list of Comparison
        Over the drawn pairs, over the ends of films, over each pair of ``validation``, and over all of those.

    Raises
    ------
    DatasetError
        If nothing is known of the flow of a pair.
    """
    nets = TVNet.from_options(solver), trained
    drawn = drawn_tests(options.seed)
    with true_float32():
        rows = [Comparison("drawn pairs", len(drawn), "px", *(_mean_error(net, drawn) for net in nets))]
        if source.held_out:
            losses = (_mean_flow_loss(net, source.held_out, options.data_weight) for net in nets)
            rows.append(Comparison("ends of films, flow loss", len(source.held_out), "", *losses))
        known = []
        for name, files in validation:
            pair = [read_pair(files)]
            known.append(Comparison(name, 1, "px", *(_mean_error(net, pair) for net in nets)))
    if len(known) > 1:
        means = (float(np.mean([getattr(row, when) for row in known])) for when in ("before", "after"))
        known.append(Comparison("mean of them", len(known), "px", *means))
    return rows + known


def as_text(comparisons: Sequence[Comparison], folder: Path) -> str:
    """The comparisons as a table, and where the results are; of many pairs only their mean."""
    single = [row for row in comparisons if row.pairs == 1]
    shown = [row for row in comparisons if row.pairs > 1 or len(single) <= MOST_SHOWN]
    width = max(len(row.name) for row in shown)
    lines = [f"{'':{width}}  pairs  untrained  trained"]
    lines += [
        f"{row.name:{width}}  {row.pairs:5d}  {row.before:9.3f}  {row.after:7.3f}  {row.change:+.1%}" for row in shown
    ]
    return "\n".join([*lines, f"mean endpoint error in pixels; wrote {folder / WEIGHTS}, {folder / PICTURE}"])


def write_result(
    folder: Path,
    trained: TVNet,
    solver: TVNetOptions,
    source: PairSource,
    options: FlowTrainingOptions,
    comparisons: Sequence[Comparison],
    validation: Sequence[tuple[str, PairFiles]] = (),
    device: torch.device | str = "cpu",
    *,
    overwrite: bool = False,
) -> None:
    """Write the weights, which ``tvnet flow --weights`` takes, and a picture.

    The picture shows a frame, its true flow if that is known, and the flow before and after the training, of the
    first pair of ``validation``, or of what was held out of films, or of the drawn pairs.

    Raises
    ------
    OutputError
        As ``require_training_folder``.
    WeightsError
        If they cannot be written.
    """
    require_training_folder(folder, RESULTS, overwrite=overwrite)
    numbers = {row.name: {"pairs": row.pairs, "before": row.before, "after": row.after} for row in comparisons}
    how = {"loss": "endpoint error" if source.labelled else "flow loss"}
    card = WeightCard(
        architecture=TVNET_ALONE,
        stream="flow",
        source="tvnet train flow",
        licence="none stated: trained by the user",
        training_data=source.name,
        input=FrameInput(),
        numbers=numbers,
        training={"generator": MARK} | how | asdict(options) | software(torch.device(device)),
        tvnet=trained.options,
    )
    tensors = {TVNET_PREFIX + name: tensor for name, tensor in trained.state_dict().items()}
    write_weights(folder / WEIGHTS, tensors, card, overwrite=True)
    pair = read_pair(validation[0][1]) if validation else [*source.held_out, drawn_tests(options.seed)[0]][0]
    flows = [solve(net, pair) for net in (TVNet.from_options(solver), trained)]
    if np.isfinite(pair.truth).any():
        flows.insert(0, pair.truth)
    scale = max(longest(flows[0]), 1.0)
    tiles = [pair.first, *(flow_to_colour(flow, scale) for flow in flows)]
    write_whole(folder / PICTURE, as_png(np.concatenate(tiles, 1)))


@torch.inference_mode()
def solve(net: TVNet, pair: KnownPair) -> NDArray[np.float32]:
    """The flow of one pair, (2, H, W), pixels."""
    first, second = _frames(net, pair)
    flow: NDArray[np.float32] = net(first, second)[0].cpu().numpy()
    return flow


def _mean_error(net: TVNet, pairs: Iterable[KnownPair]) -> float:
    """Mean endpoint error, each pair counted alike."""
    return float(np.mean([accuracy.endpoint_error(solve(net, pair), pair.truth) for pair in pairs]))


@torch.inference_mode()
def _mean_flow_loss(net: TVNet, pairs: Iterable[KnownPair], data_weight: float) -> float:
    losses = []
    for pair in pairs:
        first, second = _frames(net, pair)
        losses.append(float(flow_loss(first, second, net(first, second), data_weight)))
    return float(np.mean(losses))


def _frames(net: TVNet, pair: KnownPair) -> tuple[Tensor, Tensor]:
    def batch(frame: Picture) -> Tensor:
        return torch.from_numpy(frame.copy()).movedim(-1, 0)[None].to(net.u0.device)

    return batch(pair.first), batch(pair.second)

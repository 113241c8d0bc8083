"""TVNet and BN-Inception trained together, end to end, to tell the actions in videos apart."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tvnet_cli.device import thread_pool, true_float32
from tvnet_cli.errors import TrainingError, WeightsError
from tvnet_cli.flow.tvnet import TVNet, pyramid_sizes
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.stack import prepare_rgb, stack_flow
from tvnet_cli.network.cards import FlowInput, RGBInput, WeightCard
from tvnet_cli.network.weights import TVNET_PREFIX, load_weights, untrained_model, write_weights
from tvnet_cli.options import ActionOptions, TVNetOptions, as_dict
from tvnet_cli.recipe import Recipe, software
from tvnet_cli.training.clips import ActionBatch, TrainingClips, refuse_unreadable, validation_clips
from tvnet_cli.training.confusion import accuracy
from tvnet_cli.training.datasets import ActionDataset, LabelledVideo
from tvnet_cli.training.loop import Pace, Report, fit
from tvnet_cli.training.losses import flow_loss
from tvnet_cli.training.processes import add_over_processes, process_group, rank_and_world

FIRST_LAYER = "conv1_7x7_s2"
CLIPS_AT_ONCE = 5  # in validation
VIDEOS_AHEAD = 2  # read for each thread, while others are worked on
CLASSIFIER_SPREAD = 0.001  # standard deviation of its first weights, as in the published models

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


class ActionNetwork(nn.Module):
    """Frames of a video to scores of its classes.

    Parameters
    ----------
    tvnet : TVNet or None
        None: the RGB stream.
    network : BNInception
        With a classifier.
    how : FlowInput or RGBInput
        How flow or frames become its input.
    options : ActionOptions
    """

    def __init__(
        self, tvnet: TVNet | None, network: BNInception, how: FlowInput | RGBInput, options: ActionOptions
    ) -> None:
        super().__init__()
        self.tvnet, self.network = tvnet, network
        self.how, self.options = how, options
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if tvnet is not None:
            tvnet.requires_grad_(options.tvnet_learning_rate > 0)
        for normalisation in self._frozen():
            normalisation.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        """The batch normalisations that keep the statistics and the weights that they have."""
        names = {"full": [], "frozen": [""], "partial": [f"{FIRST_LAYER}_bn"]}[self.options.batch_norm]
        return [
            module
            for name, module in self.network.named_children()
            if isinstance(module, nn.BatchNorm2d) and names and name not in names
        ]

    def train(self, mode: bool = True) -> ActionNetwork:
        """Training mode for all but the frozen batch normalisations."""
        super().train(mode)
        for normalisation in self._frozen():
            normalisation.eval()
        return self

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores before softmax, the mean over the snippets of a video, and the flow loss.

        Parameters
        ----------
        frames : Tensor, (B, snippets, frames, 3, H, W), uint8 or float, RGB, 0..255

        Returns
        -------
        scores : Tensor, (B, classes), float32
        flow_loss : Tensor, ()
            0 for RGB.
        """
        snippets = frames.flatten(0, 1).float()
        bent = snippets.new_zeros(())
        if isinstance(self.how, FlowInput):
            assert self.tvnet is not None
            first, second = snippets[:, :-1].flatten(0, 1), snippets[:, 1:].flatten(0, 1)
            flow = self.tvnet(first, second)
            bent = flow_loss(first, second, flow)
            stack = stack_flow(
                flow, self.how.scale, self.how.clip_pixels, self.how.order, fields=snippets.shape[1] - 1
            )
        else:
            stack = prepare_rgb(snippets[:, snippets.shape[1] // 2], self.how.mean, self.how.order)
        with torch.autocast(stack.device.type, torch.bfloat16, enabled=self.options.dtype == "bfloat16"):
            pooled = self.network.features(stack.contiguous(memory_format=torch.channels_last))["global_pool"]
            assert self.network.fc is not None
            scores: Tensor = self.network.fc(F.dropout(pooled, self.options.dropout, self.training))
        return scores.float().unflatten(0, frames.shape[:2]).mean(1), bent


def new_model(
    num_classes: int, options: ActionOptions, schedule: TVNetOptions, weights: str | None = None
) -> tuple[ActionNetwork, str | None]:
    """A model to be trained, and the sha256 of the weights that it starts from.

    Parameters
    ----------
    num_classes : int
    options : ActionOptions
    schedule : TVNetOptions
        Of TVNet, where the weights bring none.
    weights : str, optional
        Name or file. Weights of an RGB network serve the flow stream too: each of its first filters is the mean of
        theirs over red, green and blue. The classifier always begins anew. Without weights all begins with random
        numbers of Kaiming's variance.

    Raises
    ------
    WeightsError
        If the weights are of the flow stream and RGB is trained.
    """
    start = load_weights(weights) if weights else untrained_model(options.stream, options.seed)
    if options.stream == "rgb" and start.card.stream == "flow":
        raise WeightsError(f"{weights} is for the flow stream, and cannot start an RGB network")
    tvnet, network, how = start.tvnet, start.network, start.card.input
    if options.stream == "flow" and start.card.stream == "rgb":
        fresh = untrained_model("flow")
        how, network = fresh.card.input, _for_flow(network, fresh.network)
    if options.stream == "flow" and (tvnet is None or not weights):
        coarsest = pyramid_sizes(
            options.size, options.size, schedule.num_scales, schedule.zoom_factor, schedule.coarsest_side
        )[-1]
        tvnet = TVNet.from_options(schedule, u0_size=coarsest)
    network.fc = nn.Linear(1024, num_classes)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        network.fc.weight.normal_(0, CLASSIFIER_SPREAD, generator=generator)
        network.fc.bias.zero_()
    return ActionNetwork(tvnet, network, how, options), start.card.sha256 if weights else None


def _for_flow(rgb: BNInception, flow: BNInception) -> BNInception:
    """The weights of an RGB network in a flow network, as Temporal Segment Networks start it; no rescaling by 3/10."""
    state = {key: tensor for key, tensor in rgb.state_dict().items() if not key.startswith("fc.")}
    first = state[f"{FIRST_LAYER}.weight"]
    state[f"{FIRST_LAYER}.weight"] = first.mean(1, keepdim=True).repeat(1, flow.in_channels, 1, 1)
    flow.load_state_dict(state)
    return flow


def parameter_groups(model: ActionNetwork) -> list[dict[str, Any]]:
    """All parameters that are trained, with their learning rates; the first group has the base rate."""
    options = model.options
    weights, first, biases, first_biases, norms = [[] for _ in range(5)]  # type: list[list[nn.Parameter]]
    for name, module in model.network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            norms += [module.weight, module.bias]
        else:
            of_first = name == FIRST_LAYER
            (first if of_first else weights).append(module.weight)  # type: ignore[arg-type]
            (first_biases if of_first else biases).append(module.bias)  # type: ignore[arg-type]
    rate, decay = options.learning_rate, options.weight_decay
    groups = [
        (weights, rate, decay),
        (first, rate * options.first_layer_factor, decay),
        (biases, rate * options.bias_factor, 0.0),
        (first_biases, rate * options.first_layer_factor * options.bias_factor, 0.0),
        (norms, rate, 0.0),
        # Decay would pull the kernels away from the differences that they are.
        (list(model.tvnet.parameters()) if model.tvnet is not None else [], options.tvnet_learning_rate, 0.0),
    ]
    trained = [([one for one in parameters if one.requires_grad], rate, decay) for parameters, rate, decay in groups]
    return [{"params": found, "lr": rate, "weight_decay": decay} for found, rate, decay in trained if found]


@dataclass(frozen=True)
class ActionResult:
    """What a training ended with.

    Attributes
    ----------
    model : ActionNetwork
        In evaluation mode, on its device.
    confusion : ndarray, (classes, classes), int64
        Validation videos by class and answer.
    """

    model: ActionNetwork = field(repr=False)
    confusion: NDArray[np.int64] = field(repr=False)


def train_actions(
    dataset: ActionDataset,
    folder: Path,
    options: ActionOptions,
    *,
    schedule: TVNetOptions | None = None,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    jobs: int = 1,
    overwrite: bool = False,
    report: Report = lambda step, values: None,
) -> ActionResult | None:
    """Train on a data set, or go on with a training that was stopped.

    Parameters
    ----------
    dataset : ActionDataset
    folder : Path
        Of the checkpoint and the log; see ``tvnet_cli.training.loop.fit``.
    options : ActionOptions
    schedule : TVNetOptions, optional
        Of TVNet, by default TVNet-50.
    weights : str, optional
        To begin with; see ``new_model``.
    device : torch.device or str
    jobs : int
        Threads that read videos.
    overwrite : bool
        Begin anew, whatever the folder holds.
    report : callable
        Called with the number of iterations done and what was logged.

    Returns
    -------
    ActionResult or None
        None: it was interrupted, and the checkpoint holds what was reached.

    Raises
    ------
    TrainingError
        If the folder holds another training, if a loss or gradient is no finite number, or if the batch cannot be
        shared equally by the processes of a group.
    DatasetError, VideoReadError, WeightsError
    """
    rank, world = rank_and_world()
    if options.batch_size % world:
        raise TrainingError(f"a batch of {options.batch_size} cannot be shared equally by {world} processes")
    model, sha256 = new_model(len(dataset.classes), options, schedule or TVNetOptions(), weights)
    model.to(device)
    optimizer = torch.optim.SGD(parameter_groups(model), options.learning_rate, options.momentum)
    recipe: Recipe = {
        "options": as_dict(options),
        "tvnet": as_dict(model.tvnet.options) if model.tvnet is not None else None,
        "weights": sha256,
        "classes": list(dataset.classes),
        "videos": _sha256(dataset),
        "processes": world,
        "software": software(torch.device(device)),
    }
    last: list[NDArray[np.int64]] = []

    def losses(step: int, batch: ActionBatch) -> dict[str, Tensor]:
        model.train()
        labels = batch.labels.to(device)
        scores, bent = model(batch.frames.to(device))
        classes = F.cross_entropy(scores, labels)
        return {
            "loss": classes + options.flow_weight * bent,
            "classification": classes,
            "flow": bent,
            "accuracy": (scores.argmax(1) == labels).float().mean(),
        }

    def validate() -> dict[str, float]:
        confusion, loss = _validate(model, dataset.validation, device, pool)
        last.append(confusion)
        return {"validation_accuracy": accuracy(confusion), "validation_loss": loss}

    def rate(step: int) -> float:
        return float(0.1 ** bisect_right(options.milestones, step))

    pace = Pace(
        steps=options.num_iterations,
        learning_rate=rate,
        clip_norm=options.clip_norm,
        seed=options.seed,
        checkpoint_every=options.checkpoint_every,
        validate_every=options.validate_every,
        ahead=2,
    )
    with thread_pool(jobs) as pool, true_float32():
        refuse_unreadable([*dataset.train, *dataset.validation], pool)
        clips = TrainingClips(dataset.train, options, pool, rank, world)
        validation = validate if dataset.validation else None
        if not fit(
            folder, model, optimizer, clips, losses, pace, recipe, validate=validation, report=report, overwrite=overwrite
        ):
            return None
        if not last:  # the run was complete before
            validate()
    return ActionResult(model.eval(), last[-1])


@torch.no_grad()
def _validate(
    model: ActionNetwork, videos: tuple[LabelledVideo, ...], device: torch.device | str, pool: Executor
) -> tuple[NDArray[np.int64], float]:
    """The confusion of classes and the mean loss over the videos, each process having its part of them."""
    model.eval()
    rank, world = rank_and_world()
    own = videos[rank::world]
    classes = model.network.fc.out_features  # type: ignore[union-attr]
    counts, loss = torch.zeros(classes, classes, dtype=torch.int64), torch.zeros((), dtype=torch.float64)
    clips_of = _ahead(pool, lambda video: validation_clips(video, model.options), own)
    for video, clips in zip(own, clips_of, strict=True):
        parts = [model(part.to(device))[0] for part in torch.split(clips, CLIPS_AT_ONCE)]
        scores = torch.cat(parts).mean(0).cpu()
        counts[video.label, int(scores.argmax())] += 1
        loss += F.cross_entropy(scores[None], torch.tensor([video.label]))
    add_over_processes(counts)
    add_over_processes(loss)
    return counts.numpy(), float(loss) / max(1, len(videos))


def _ahead(pool: Executor, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in order, few of them waiting, so that memory stays small."""
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > VIDEOS_AHEAD * getattr(pool, "_max_workers", 1):
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


def _sha256(dataset: ActionDataset) -> str:
    """Of the names, labels and parts of all videos."""
    parts = [[(video.video_id, video.label) for video in part] for part in (dataset.train, dataset.validation)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

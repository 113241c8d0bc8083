"""`tvnet train motion`: TVNet and BN-Inception learn to tell drawn motions apart. Needs no data but seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tvnet_cli.device import thread_pool, true_float32
from tvnet_cli.errors import TrainingError, WeightsError
from tvnet_cli.flow.tvnet import TVNet
from tvnet_cli.network.bn_inception import BNInception
from tvnet_cli.network.cards import FlowInput, RGBInput, WeightCard
from tvnet_cli.network.stack import frame_pairs, prepare_rgb, stack_flow
from tvnet_cli.network.weights import load_weights, tensors_to_keep, untrained_model, write_weights
from tvnet_cli.options import PretrainOptions, Stage, TVNetOptions
from tvnet_cli.recipe import Recipe, software
from tvnet_cli.training.confusion import CONFUSION, accuracy, write_confusion
from tvnet_cli.training.loop import WEIGHTS, Pace, Report, cosine, fit, require_training_folder
from tvnet_cli.training.losses import flow_loss
from tvnet_cli.training.motion import CLASS_NAMES, CLIP_LENGTH, motion_clip
from tvnet_cli.writing import MARK

NUM_DIRECTIONS = 8  # of the histograms of flow
STILL = 0.5  # network units, 0.08 pixels: where hardly anything moves, the directions of noise are not asked for
VALIDATION_CLIPS = 4  # of each class
CHECKPOINT_EVERY = 50  # steps
RESULTS = ("weights.toml", WEIGHTS, *CONFUSION)
PIECE = 4  # clips drawn at once by one thread

# Network inputs (B, 10 or 3, H, W), or frames (B, 6, 3, H, W) where TVNet is trained; and labels (B,).
Batch = tuple[Tensor, Tensor]


class MotionModel(nn.Module):
    """BN-Inception and a classifier of motions; for flow TVNet, and a head that reads off where which direction moves.

    Parameters
    ----------
    labels : sequence of int
        The classes of ``tvnet_cli.training.motion.CLASSES`` to tell apart.
    options : PretrainOptions
    """

    def __init__(self, labels: Sequence[int], options: PretrainOptions) -> None:
        super().__init__()
        start = untrained_model(options.stream, options.seed)
        assert isinstance(start.card.input, (FlowInput, RGBInput))
        self.input = start.card.input
        self.options = options
        self.tvnet = TVNet() if options.stream == "flow" else None
        self.network = start.network
        self.network.fc = nn.Linear(1024, len(labels))
        self.directions = nn.Conv2d(1024, NUM_DIRECTIONS, 1) if options.stream == "flow" else None
        generator = torch.Generator().manual_seed(options.seed)
        with torch.no_grad():
            for head in (self.network.fc, self.directions):
                if head is None:
                    continue
                head.weight.normal_(0, 0.01, generator=generator)
                assert head.bias is not None
                head.bias.zero_()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def begin_with(self, name: str) -> str:
        """Take network and TVNet from weights of the same classes and input; their sha256.

        Raises
        ------
        WeightsError
        """
        start = load_weights(name)
        if start.card.stream != self.options.stream:
            raise WeightsError(f"{name} is for the {start.card.stream} stream, and {self.options.stream} is trained")
        if start.card.input != self.input:
            raise WeightsError(f"{name} expects its input scaled in another way: [input] of its card is not that here")
        if self.tvnet and (start.tvnet is None or start.tvnet.options != self.tvnet.options):
            raise WeightsError(f"{name} is not for the flow of TVNet-50")
        try:
            self.network.load_state_dict(start.network.state_dict())
            if self.tvnet and start.tvnet:
                self.tvnet.load_state_dict(start.tvnet.state_dict())
        except RuntimeError as error:
            raise WeightsError(f"{name} is not of these classes: {str(error).splitlines()[-1].strip()}") from error
        return start.card.sha256

    def inputs(self, frames: Tensor) -> Tensor:
        """Clips (B, 6, 3, H, W), 0..255, as the input of the network, (B, 10 or 3, H, W)."""
        if isinstance(self.input, RGBInput):
            return prepare_rgb(frames[:, CLIP_LENGTH // 2].float(), self.input.mean, self.input.order)
        assert self.tvnet is not None
        return self.stacks(self.tvnet(*frame_pairs(frames)))

    def stacks(self, flow: Tensor) -> Tensor:
        """The flow of the pairs of clips, (B * 5, 2, H, W), pixels, as the input of the network, (B, 10, H, W)."""
        assert isinstance(self.input, FlowInput)
        return stack_flow(flow, self.input.scale, self.input.clip_pixels, self.input.order, fields=CLIP_LENGTH - 1)

    def losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What is minimised, as ``loss``, and its parts."""
        options = self.options
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            layers = self.network.features(inputs.contiguous(memory_format=torch.channels_last))
            pooled = F.dropout(layers["global_pool"], options.dropout, self.training)
            assert self.network.fc is not None
            scores = self.network.fc(pooled).float()
            found = self.directions(layers["inception_5b_output"]).float() if self.directions is not None else None
        classification = F.cross_entropy(scores, labels, label_smoothing=options.label_smoothing)
        parts = {
            "classification": classification.detach(),
            "accuracy": (scores.argmax(1) == labels).float().mean(),
        }
        if found is None:
            return {"loss": classification, **parts}
        directions = F.mse_loss(found, directions_of_flow(inputs, found.shape[-2:]))
        return {
            "loss": classification + options.direction_weight * directions,
            **parts,
            "directions": directions.detach(),
        }


def directions_of_flow(stacks: Tensor, size: Sequence[int]) -> Tensor:
    """How much moves in each of 8 directions in each cell of a grid: soft histograms of optical flow.

    Parameters
    ----------
    stacks : Tensor, (B, 10, H, W)
        ``x0 y0 x1 y1 ...``
    size : (int, int)
        Cells down and across.

    Returns
    -------
    Tensor, (B, 8, *size), float32
        Square roots of the mean over fields and pixels of the part of the flow along each direction, where it is
        positive; mean square about 1 over a clip in which something moves, and say where and whither, not how
        fast.
    """
    with torch.no_grad():
        angle = torch.arange(NUM_DIRECTIONS, device=stacks.device) * (2 * torch.pi / NUM_DIRECTIONS)
        x, y = stacks[:, 0::2].float(), stacks[:, 1::2].float()
        along = [F.relu(torch.cos(a) * x + torch.sin(a) * y).mean(1) for a in angle]
        energy = F.adaptive_avg_pool2d(torch.stack(along, 1), (int(size[0]), int(size[1])))
        return (energy / (energy.mean((1, 2, 3), keepdim=True) + STILL)).sqrt()


@dataclass(frozen=True)
class MotionResult:
    """What a training ended with.

    Attributes
    ----------
    model : MotionModel
        In evaluation mode, on its device.
    recipe : dict
        All that decided the result.
    confusion : ndarray, (classes, classes), int64
        Clips of another seed by class and answer.
    """

    model: MotionModel = field(repr=False)
    recipe: Recipe = field(repr=False)
    confusion: NDArray[np.int64] = field(repr=False)

    def summary(self, folder: Path) -> dict[str, object]:
        """The result as plain values, ready for JSON; the accuracy is a share."""
        return {
            "clips": self.model.options.num_clips,
            "validation_accuracy": accuracy(self.confusion),
            "validation_clips": int(self.confusion.sum()),
            "weights": str(folder / WEIGHTS),
        }

    def headline(self, folder: Path) -> str:
        """The result in one line."""
        share = 100 * accuracy(self.confusion)
        return f"{share:.1f} % of {self.confusion.sum()} unseen clips told right; weights in {folder / WEIGHTS}"


def train_motion(
    folder: Path,
    options: PretrainOptions,
    *,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    report: Report = lambda step, values: None,
    overwrite: bool = False,
) -> MotionResult | None:
    """Train on drawn motion; what was stopped is gone on with.

    Parameters
    ----------
    folder : Path
        Of the checkpoint and the log.
    options : PretrainOptions
    weights : str, optional
        Name or file of weights to begin with, network and TVNet; else the network begins with random numbers.
    device : torch.device or str
    report : callable
        See ``tvnet_cli.training.loop.fit``.
    overwrite : bool
        Begin anew.

    Returns
    -------
    MotionResult or None
        None if it was interrupted.

    Raises
    ------
    TrainingError
        If the folder holds another training, a loss is no finite number, or fewer than two classes are left.
    WeightsError
        If the weights cannot be read or are of other classes.
    """
    require_training_folder(folder, RESULTS, overwrite=overwrite)
    device = torch.device(device)
    labels = classes_without(options.held_out)
    if len(labels) < 2:
        raise TrainingError(f"without {', '.join(options.held_out)} {len(labels)} classes are left: 2 are needed")
    others = [number for number in range(len(CLASS_NAMES)) if number not in labels]
    model = MotionModel(labels, options)
    recipe = {"motion": asdict(options), "classes": [CLASS_NAMES[label] for label in labels]}
    if weights:
        recipe["weights"] = model.begin_with(weights)
    model.to(device)
    optimizer = torch.optim.AdamW(_groups(model, options), options.learning_rate)
    course = _Course(options.stages)
    confusions: list[NDArray[np.int64]] = []

    def batches(step: int) -> Batch:
        stage, first = course.at(step)
        numbers = range(first, first + stage.batch_size)
        return _drawn(model, numbers, options.seed, stage.size, labels, pool, as_frames=stage.train_flow)

    def losses(step: int, batch: Batch) -> dict[str, Tensor]:
        inputs, known = batch
        model.train()
        if not course.at(step)[0].train_flow:
            return model.losses(inputs, known)
        assert model.tvnet is not None
        first, second = frame_pairs(inputs.float())
        flow = model.tvnet(first, second)
        values = model.losses(model.stacks(flow), known)
        unsupervised = flow_loss(first, second, flow)
        return {**values, "loss": values["loss"] + options.flow_weight * unsupervised, "flow": unsupervised.detach()}

    def validate() -> dict[str, float]:
        scores, known = _seen(model, labels, pool, lambda network, inputs: network(inputs))
        counts = torch.zeros(len(labels), len(labels), dtype=torch.int64)
        counts.index_put_((known, scores.argmax(1)), torch.ones_like(known), accumulate=True)
        confusions.append(counts.numpy())
        loss = F.cross_entropy(scores, known)
        values = {"validation_accuracy": accuracy(confusions[-1]), "validation_loss": float(loss)}
        if others:
            values["validation_held_out"] = _nearest_neighbours_alike(model, others, pool)
        return values

    pace = Pace(
        steps=options.num_steps,
        learning_rate=lambda step: cosine(course.share(step)),
        clip_norm=options.clip_norm,
        seed=options.seed,
        checkpoint_every=CHECKPOINT_EVERY,
        validate_every=options.validate_every,
        ahead=0 if device.type == "cpu" else 2,
    )
    with true_float32(), thread_pool(torch.get_num_threads()) as pool:
        done = fit(
            folder,
            model,
            optimizer,
            batches,
            losses,
            pace,
            recipe,
            validate=validate,
            report=report,
            overwrite=overwrite,
        )
        if done and not confusions:  # all was done before
            validate()
    return MotionResult(model.eval(), recipe, confusions[-1]) if done else None


def classes_without(held_out: str | tuple[str, ...]) -> list[int]:
    """The numbers of the classes whose names do not begin so.

    Raises
    ------
    ValueError
        If no class begins so.
    """
    for begun in (held_out,) if isinstance(held_out, str) else held_out:
        if not any(name.startswith(begun) for name in CLASS_NAMES):
            families = dict.fromkeys(name.partition("/")[0] for name in CLASS_NAMES)
            raise ValueError(f"no class begins with {begun!r}: there are {', '.join(families)}")
    return [number for number, name in enumerate(CLASS_NAMES) if not name.startswith(held_out)]


class _Course:
    """Where a training is, by its step."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = [stage for stage in stages for _ in range(stage.steps)]
        self._clips = list(itertools.accumulate((stage.batch_size for stage in self._stages), initial=0))
        self._pixels = list(itertools.accumulate((s.batch_size * s.size**2 for s in self._stages), initial=0))

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and the number of clips drawn before it."""
        return self._stages[step], self._clips[step]

    def share(self, step: int) -> float:
        """Of all pixels, those seen before the step."""
        return self._pixels[step] / self._pixels[-1]


def _drawn(
    model: MotionModel,
    numbers: range,
    seed: int,
    size: int,
    labels: Sequence[int],
    pool: Executor,
    as_frames: bool = False,
) -> Batch:
    """The clips of these numbers and classes, on the device of the model, as its input unless flow is to be trained."""
    device = next(model.parameters()).device

    @torch.no_grad()
    def piece(numbers: range) -> Batch:
        clips = [motion_clip(seed, number, size, labels=labels) for number in numbers]
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips])).to(device).movedim(-1, -3)
        known = torch.tensor([labels.index(clip.label) for clip in clips], device=device)
        return frames if as_frames else model.inputs(frames), known

    pieces = [numbers[start : start + PIECE] for start in range(0, len(numbers), PIECE)]
    inputs, known = zip(*pool.map(piece, pieces), strict=True)
    return torch.cat(inputs), torch.cat(known)


@torch.no_grad()
def _seen(
    model: MotionModel, labels: Sequence[int], pool: Executor, look: Callable[[BNInception, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What the network says of clips of another seed, at the size of the last stage, and their classes."""
    model.eval()
    options, clips = model.options, range(VALIDATION_CLIPS * len(labels))
    said, known = [], []
    for first in range(0, len(clips), 8 * PIECE):
        numbers = clips[first : first + 8 * PIECE]
        inputs, classes = _drawn(model, numbers, options.seed + 1, options.stages[-1].size, labels, pool)
        said.append(look(model.network, inputs.contiguous(memory_format=torch.channels_last)).cpu())
        known.append(classes.cpu())
    return torch.cat(said), torch.cat(known)


def _nearest_neighbours_alike(model: MotionModel, labels: Sequence[int], pool: Executor) -> float:
    """Share of clips whose nearest neighbour is of their class, by the cosine of inception_5b_output."""
    maps, known = _seen(model, labels, pool, lambda net, inputs: net.features(inputs)["inception_5b_output"].flatten(1))
    unit = F.normalize(maps)
    nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    return float((known[nearest] == known).float().mean())


def write_motion_result(folder: Path, result: MotionResult, *, overwrite: bool = False) -> None:
    """Write ``weights.safetensors``, in half precision, with its card, ``classes.csv`` and ``confusion.svg``.

    Raises
    ------
    OutputError
        As ``require_training_folder``.
    WeightsError
        If they cannot be written.
    """
    require_training_folder(folder, RESULTS, overwrite=overwrite)
    model, confusion, classes = result.model, result.confusion, result.recipe["classes"]
    card = WeightCard(
        stream=model.options.stream,
        source="trained with tvnet train motion",
        licence="MIT",
        training_data="drawn motion (tvnet_cli/training/motion.py): no film, no picture, nothing but a seed",
        input=model.input,
        numbers={"validation_accuracy": accuracy(confusion), "validation_clips": int(confusion.sum())},
        training={
            "generator": MARK,
            "command": "tvnet train motion",
            **({"began_with": result.recipe["weights"]} if "weights" in result.recipe else {}),
            **asdict(model.options),
            "stages": [str(stage) for stage in model.options.stages],
            "held_out": list(model.options.held_out),
            "classes": classes,
            **software(next(model.parameters()).device),
        },
        tvnet=model.tvnet.options if model.tvnet else TVNetOptions(),
    )
    tensors = tensors_to_keep(model.network, model.tvnet)
    kept = {key: _halved(tensor) for key, tensor in tensors.items()}
    write_weights(folder / WEIGHTS, kept, card, overwrite=True)
    write_confusion(folder, confusion, classes)


def _halved(tensor: Tensor) -> Tensor:
    """In half precision, unless that would overflow, as with statistics of single frames; vectors take no room."""
    half = tensor.contiguous().half()
    return half if tensor.dim() > 1 and half.isfinite().all() else tensor


def _groups(model: MotionModel, options: PretrainOptions) -> list[dict[str, object]]:
    """Matrices with weight decay, vectors without, the solver at its own pace."""
    matrices = [p for name, p in model.named_parameters() if p.dim() > 1 and not name.startswith("tvnet.")]
    vectors = [p for name, p in model.named_parameters() if p.dim() <= 1]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if model.tvnet:
        groups.append({"params": list(model.tvnet.parameters()), "weight_decay": 0.0, "lr": options.flow_learning_rate})
    return groups

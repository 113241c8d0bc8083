"""The loop: exact resume, honest stops, and logs that say what happened."""

from __future__ import annotations

import csv
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tvnet_cli.errors import DiskFullError, OutputError, TrainingError, WeightsError
from tvnet_cli.network import pickles
from tvnet_cli.training.loop import Pace, cosine, fit


def train(
    folder: Path,
    steps: int = 8,
    *,
    recipe=None,
    rate: float = 0.05,
    ahead: int = 0,
    seen=None,
    before_batch=lambda step: None,
    **arguments,
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), rate)

    def batches(step: int) -> torch.Tensor:
        before_batch(step)
        return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))

    def losses(step: int, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if seen is not None:
            seen.append(step)
        loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
        return {"loss": loss, "double": 2 * loss.detach()}

    pace = Pace(steps=steps, checkpoint_every=3, ahead=ahead, clip_norm=1.0, learning_rate=lambda step: 1 / (1 + step))
    done = fit(folder, model, optimizer, batches, losses, pace, recipe or {"kind": 1}, **arguments)
    return done, model.state_dict(), optimizer.state_dict()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(one, other) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_the_same_seed_gives_the_same_curve_and_weights(tmp_path):
    _, first, _ = train(tmp_path / "a")
    _, second, _ = train(tmp_path / "b", ahead=2)
    assert same(first, second)
    assert (tmp_path / "a/log.csv").read_bytes() == (tmp_path / "b/log.csv").read_bytes()
    losses = [float(row["loss"]) for row in rows(tmp_path / "a")]
    assert losses[-1] < losses[0]
    assert [float(row["double"]) for row in rows(tmp_path / "a")] == pytest.approx([2 * loss for loss in losses])


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, stopped_after):
    _, whole, whole_optimizer = train(tmp_path / "whole")

    def stop(step, values):
        if step == stopped_after:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "cut", report=stop)
    seen: list[int] = []
    done, model, optimizer = train(tmp_path / "cut", seen=seen)
    assert done
    assert seen[0] == stopped_after // 3 * 3  # from the last checkpoint
    assert same(whole, model)
    for mine, theirs in zip(optimizer["state"].values(), whole_optimizer["state"].values(), strict=True):
        assert same(mine, theirs)
    assert (tmp_path / "whole/log.csv").read_bytes() == (tmp_path / "cut/log.csv").read_bytes()


def test_a_run_that_is_done_does_nothing_more(tmp_path):
    _, model, _ = train(tmp_path)
    seen: list[int] = []
    done, again, _ = train(tmp_path, seen=seen)
    assert done
    assert not seen
    assert same(model, again)


def test_ctrl_c_finishes_the_step_and_keeps_it(tmp_path):
    _, whole, _ = train(tmp_path / "whole")

    def interrupt(step, values):
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    done, _, _ = train(tmp_path / "cut", report=interrupt)
    assert not done
    assert len(rows(tmp_path / "cut")) in (4, 5)
    seen: list[int] = []
    done, model, _ = train(tmp_path / "cut", seen=seen)
    assert done
    assert seen[0] in (4, 5)
    assert same(whole, model)


def test_ctrl_c_while_a_batch_hangs_keeps_the_steps_that_are_done(tmp_path):
    _, whole, _ = train(tmp_path / "whole")
    released = threading.Event()
    waits = lambda step: step < 5 or released.wait(60)  # noqa: E731
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    done, _, _ = train(tmp_path / "cut", ahead=1, before_batch=waits, abandon=released.set)
    interrupt.join()
    assert not done
    assert len(rows(tmp_path / "cut")) == 5
    seen: list[int] = []
    done, model, _ = train(tmp_path / "cut", seen=seen)
    assert (done, seen[0]) == (True, 5)
    assert same(whole, model)


def test_an_error_ends_what_the_next_batch_waits_for(tmp_path):
    released = threading.Event()

    def before_batch(step: int) -> None:
        if step == 2:
            raise TrainingError("no such batch")
        if step == 3:
            released.wait(60)

    with pytest.raises(TrainingError, match="no such batch"):
        train(tmp_path, ahead=2, before_batch=before_batch, abandon=released.set)
    assert released.is_set()


def test_kill_9_at_any_time_loses_no_checkpoint(tmp_path):
    """A process is killed while it writes checkpoint after checkpoint; what is there can always be gone on with."""
    code = """
        import sys; sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        from test_loop import train
        train(Path(sys.argv[1]), steps=10_000, report=lambda step, values: step == 20 and print("on", flush=True))
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.kill()
    reached = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert reached >= 18
    done, model, _ = train(tmp_path, steps=reached + 4)
    _, whole, _ = train(tmp_path / "whole", steps=reached + 4)
    assert done
    assert same(whole, model)


def test_another_recipe_is_refused_until_told_to_begin_anew(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match=r"kind was 1, now 2.*--overwrite"):
        train(tmp_path, recipe={"kind": 2})
    done, _, _ = train(tmp_path, recipe={"kind": 2}, overwrite=True)
    assert done
    assert len(rows(tmp_path)) == 8


def test_a_loss_that_is_no_number_stops_with_its_step_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(TrainingError, match=r"step \d+: (loss|gradient_norm|double) is (nan|inf)"):
        train(tmp_path, rate=1e30, steps=20)
    (tmp_path / "checkpoint.pt").unlink(missing_ok=True)


def test_weights_that_are_no_numbers_stop_at_their_step_and_are_not_kept(tmp_path):
    with pytest.raises(TrainingError, match=r"step 1: the weights are no finite numbers; the last.*--learning-rate"):
        train(tmp_path, rate=float("inf"), steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_validation_that_is_no_number_stops_with_its_step_and_keeps_the_checkpoint(tmp_path, number):
    with pytest.raises(TrainingError, match=r"step 8: validation_loss is (nan|inf); the last checkpoint is kept"):
        train(tmp_path, validate=lambda: {"validation_loss": number})
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6


def other_content(path: Path, content: object) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, float):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * content)])
    elif callable(content):
        torch.save(content(torch.load(path, weights_only=True)), path)
    else:
        torch.save(content, path)


BAD_CHECKPOINTS = {
    "empty": b"",
    "no archive": b"PK nothing",
    "cut": 0.5,
    "a list": [1, 2],
    "another pickle": pickle.dumps({"step": Path("x")}),
    "weights alone": {"conv.weight": torch.ones(3)},
    "another model": lambda state: state | {"model": {"0.weight": torch.ones(3)}},
    "no optimiser": lambda state: state | {"optimizer": {}},
}


@pytest.mark.parametrize("content", BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_a_damaged_checkpoint_is_said_in_one_plain_line(tmp_path, content):
    train(tmp_path)
    other_content(tmp_path / "checkpoint.pt", content)
    with pytest.raises(TrainingError) as caught:
        train(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'checkpoint.pt'} is damaged, or no checkpoint of tvnet: choose another folder, or --overwrite "
        "to begin anew"
    )
    assert train(tmp_path, overwrite=True)[0]


@pytest.mark.parametrize("name", ["checkpoint.pt", "log.csv"])
def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path, name, no_room_for):
    train(tmp_path, steps=3)
    (tmp_path / "log.csv").unlink()
    no_room_for(name)
    with pytest.raises(DiskFullError, match=rf"cannot write .*{name}: the disk at .* is full: No space left on device"):
        train(tmp_path, steps=6)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint.pt", "log.csv"}


@pytest.mark.parametrize("text", ["my notes", "step,loss\n1,0.5\n"])
def test_a_log_that_no_training_made_is_replaced_on_request_alone(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(OutputError, match=r"log.csv exists, and nothing in it says that tvnet made it.*--overwrite"):
        train(tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == [text]
    assert train(tmp_path, overwrite=True)[0]
    assert len(rows(tmp_path)) == 8


LOGS_OF_OTHERS = {
    "other columns": ("epoch,accuracy\n1,0.5\n", "log.csv has the columns epoch, accuracy: "),
    "other columns behind the step": ("step,loss\n1,0.5\n", "log.csv has the columns step, loss: "),
    "a row of text": ("step,loss,gradient_norm,learning_rate\nx,1,2,3\n", "log.csv, line 2: "),
    "a row too long": ("step,loss,gradient_norm,learning_rate\n1,1,2,3,4\n", "log.csv, line 2: "),
    "a row too short": ("step,loss,gradient_norm,learning_rate\n1,1\n2,1,2,3\n", "log.csv, line 2: "),
    "utf-16": ("step,loss\n".encode("utf-16"), "log.csv: it is UTF-16 text"),
}


@pytest.mark.parametrize("log", LOGS_OF_OTHERS)
def test_a_log_of_others_beside_the_checkpoint_is_one_line(tmp_path, log):
    content, message = LOGS_OF_OTHERS[log]
    train(tmp_path, steps=3)
    (tmp_path / "log.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrainingError) as caught:
        train(tmp_path, steps=6)
    assert message in str(caught.value)
    assert str(caught.value).endswith("move it away, or --overwrite to begin anew")
    assert train(tmp_path, steps=6, overwrite=True)[0]


def test_a_row_that_was_written_half_is_dropped(tmp_path):
    train(tmp_path, steps=3)
    whole = (tmp_path / "log.csv").read_bytes()
    (tmp_path / "log.csv").write_bytes(whole + b"4,0.5")
    train(tmp_path, steps=3)
    assert (tmp_path / "log.csv").read_bytes() == whole


@pytest.mark.parametrize("at", [0, 1])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path, at):
    """With another recipe too."""

    def kill(step, values):
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, report=kill, validate=None if at else partial(kill, 0, {}), steps=8 if at else 1)
    assert train(tmp_path, recipe={"kind": 2})[0]
    assert len(rows(tmp_path)) == 8


def test_a_training_of_version_0_1_0_is_resumed(tmp_path):
    """Its checkpoint has no mark."""
    _, whole, _ = train(tmp_path / "whole")
    train(tmp_path, steps=3)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["generator"]
    torch.save(state, tmp_path / "checkpoint.pt")
    _, model, _ = train(tmp_path)
    assert same(whole, model)


def test_validation_comes_when_asked_and_at_the_end(tmp_path):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pace = Pace(steps=5, validate_every=2)
    one = torch.ones(1, 1)
    fit(
        tmp_path,
        model,
        optimizer,
        lambda step: one,
        lambda step, batch: {"loss": model(batch).square().mean()},
        pace,
        {},
        validate=lambda: {"validation_accuracy": 0.5},
    )
    assert [bool(row["validation_accuracy"]) for row in rows(tmp_path)] == [False, True, False, True, True]


def test_cosine_rises_and_falls_to_nothing():
    values = [cosine(share) for share in (0, 0.03, 0.06, 0.53, 1)]
    assert 0 < values[0] < values[1] < values[2]
    assert values[2:] == pytest.approx([1, 0.5, 0])


def test_a_checkpoint_made_to_hang_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "SECONDS", 1)
    # A pair of a pair of a pair ..., as the key of a dict: its hash takes 2^60 steps.
    pairs = b"\x80\x02K\x01K\x02\x86q\x01" + b"h\x01h\x01\x86q\x01" * 60
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as file:
        for name, content in (("data.pkl", pairs + b"}h\x01K\x00s."), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", content)
    with pytest.raises(WeightsError, match=r"cannot read .*checkpoint\.pt: it took longer than 1 s"):
        train(tmp_path)


def test_a_checkpoint_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match=r"cannot read the checkpoint .*checkpoint\.pt: it is no file"):
        train(tmp_path)

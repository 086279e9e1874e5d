"""Event files hold the points of the log, each once, however a run came to its end."""

import signal
from pathlib import Path

import pytest

pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'fcifar[tensorboard]'")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from fcifar.export import tensorboard
from fcifar.recipes.trials import make_trials
from fcifar.train import loop, metrics_log, sweep
from fcifar.train.config import CheckpointConfig, RunConfig
from fcifar.train.events import Noted, ignore

Points = dict[str, list[tuple[int, float]]]


def seen(run: Path) -> Points:
    """What TensorBoard shows of a run."""
    events = EventAccumulator(str(run / tensorboard.FOLDER)).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def logged(run: Path) -> Points:
    found: Points = {}
    for record in metrics_log.read(run):
        for name in ("loss", "accuracy"):
            points = found.setdefault(f"{name}/{record['split']}", [])
            points.append((record["step"], pytest.approx(record[name], rel=1e-6)))
    return found


def stopping_at(step: int):
    asked = iter(range(step))
    return lambda: signal.SIGTERM if next(asked, None) is None else None


def test_a_run(config: RunConfig, dataset, tmp_path: Path) -> None:
    recipe, run = config.recipe.replace(valid_fraction=0.2, tta="mirror"), tmp_path / "run"
    config = config.replace(recipe=recipe)
    events = []
    with tensorboard.writing(run, events.append) as observe:
        loop.train(run, config, dataset, observe=observe)
    assert events, "whoever watched goes on watching"
    assert seen(run) == logged(run)
    assert {tag.partition("/")[2] for tag in seen(run)} == {"train", "valid", "test", "test-mirror"}
    texts = EventAccumulator(str(run / tensorboard.FOLDER)).Reload()
    (seed,) = texts.Tensors("seed/text_summary")[0].tensor_proto.string_val
    (shown,) = texts.Tensors("recipe/text_summary")[0].tensor_proto.string_val
    assert seed == b"5"
    assert b'"batch_size": 5' in shown


def test_an_interrupted_run_has_each_point_once(config: RunConfig, dataset, tmp_path: Path) -> None:
    """Though the log is cut back behind what the first sitting wrote."""
    run = tmp_path / "run"
    config = config.replace(checkpoint=CheckpointConfig(checkpoint_every="1000"))
    first = loop.train(run, config, dataset, stop=stopping_at(3))
    with tensorboard.writing(run, ignore) as observe:  # what it would have gone on to write
        loop.train(run, config, dataset, resume=True, observe=observe, stop=stopping_at(9))
    assert isinstance(first, loop.Interrupted)
    later = max(step for step, _ in seen(run)["loss/train"])
    for path in run.glob("checkpoint-*"):
        path.unlink()  # so that it starts again from its beginning
    with tensorboard.writing(run, ignore) as observe:
        loop.train(run, config, dataset, resume=True, observe=observe)
    assert seen(run) == logged(run)
    assert max(step for step, _ in seen(run)["loss/train"]) > later
    assert len(list((run / tensorboard.FOLDER).iterdir())) == 1


def test_a_run_that_had_ended_is_written_afterwards(
    config: RunConfig, dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    loop.train(run, config, dataset)
    assert not tensorboard.is_begun(run)
    with tensorboard.writing(run, ignore):
        pass
    assert tensorboard.is_begun(run)
    assert seen(run) == logged(run)


@pytest.mark.parametrize("together", [1, 64])
def test_a_group(
    together: int,
    config: RunConfig,
    dataset,
    recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose runs tell in turn, step by step; also with fewer files open than there are runs."""
    monkeypatch.setattr(tensorboard, "_OPEN", together)
    path = tmp_path / "group"
    trials = make_trials(recipe.replace(epochs=1), {}, [3, 4])
    asked = sweep.Sweep(trials, "vmap", config.replace(recipe=trials[0].recipe, seed=3))
    with tensorboard.writing(path, ignore) as observe:
        sweep.train(path, asked, dataset, observe=observe)
    for name in ("seed3", "seed4"):
        assert seen(path / name) == logged(path / name)
    assert tensorboard.is_begun(path)


def test_a_disk_that_refuses_does_not_end_the_run(
    config: RunConfig, dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", refuse)
    events = []
    with tensorboard.writing(tmp_path / "run", events.append) as observe:
        result = loop.train(tmp_path / "run", config, dataset, observe=observe)
    assert result["steps"] == 27
    notes = [event.text for event in events if isinstance(event, Noted)]
    assert notes == ["no more is written for TensorBoard: No space left on device"]

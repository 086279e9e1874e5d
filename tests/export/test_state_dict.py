"""Every state_dict in a checkpoint is found, and nothing but tensors is ever read."""

import argparse
import contextlib
import fractions
import pickle
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fcifar import tree
from fcifar.errors import ExternalError, UsageError
from fcifar.export import state_dict


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 3))


def written(values: object, path: Path) -> Path:
    torch.save(values, path)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        state_dict.read(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert message.isprintable(), "it is one line and steers no terminal"
    assert "weights_only" not in message, "nobody is told to load it with code in it"
    return message


@pytest.mark.parametrize(
    ("wrap", "keys"),
    [
        (lambda n: n.state_dict(), [""]),
        (lambda n: dict(n.named_parameters()) | dict(n.named_buffers()), [""]),
        (lambda n: {"state_dict": n.state_dict(), "epoch": 3}, ["state_dict"]),
        (lambda n: {"net": n.state_dict(), "acc": 93.1, "epoch": 200}, ["net"]),
        (
            lambda n: {
                "model_state_dict": n.state_dict(),
                "optimizer_state_dict": torch.optim.AdamW(n.parameters()).state_dict(),
            },
            ["model_state_dict"],
        ),
        (lambda n: {"model": nn.DataParallel(n).state_dict(), "args": ["--lr"]}, ["model"]),
        (lambda n: {"state_dict": {"model": n.state_dict()}}, ["state_dict.model"]),
        (lambda n: {"ema": n.state_dict(), "model": n.state_dict()}, ["model", "ema"]),
        (lambda n: {"a": {"b": n.state_dict()}, "c": n.state_dict()}, ["c", "a.b"]),
        (lambda n: {"epoch": torch.tensor(3), "weights": n.state_dict()}, ["weights"]),
    ],
)
def test_what_people_save(wrap, keys: list[str], tmp_path: Path) -> None:
    """Each with its names and values as they are: see ``test_fitting`` for what they are of."""
    module = net()
    nn.init.normal_(module[0].weight)
    found = state_dict.read(written(wrap(module), tmp_path / "net.pth"))
    assert [each.key for each in found] == keys
    for each in found:
        names = [name.removeprefix("module.") for name in each.tensors]
        assert names == list(module.state_dict()) or set(names) == set(module.state_dict())
        for name, value in module.state_dict().items():
            tensor = each.tensors.get(name, each.tensors.get(f"module.{name}"))
            torch.testing.assert_close(tensor, value, rtol=0, atol=0)
            assert not tensor.requires_grad


def test_a_checkpoint_of_itself_over_and_over_is_read_once(tmp_path: Path) -> None:
    wide: dict = {"weights": net().state_dict()}
    for _ in range(5):
        wide = {f"entry{i}": wide for i in range(100)} | {"weights": wide.get("weights", wide)}
    found = state_dict.find(wide, "net.pth")
    assert [each.key for each in found] == ["weights"]


def test_the_old_form_and_safetensors(tmp_path: Path) -> None:
    values = {"a.weight": torch.randn(2, 3)}
    torch.save(values, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(values, tmp_path / "new.SafeTensors")
    for name in ("old.pt", "new.SafeTensors"):
        (found,) = state_dict.read(tmp_path / name)
        torch.testing.assert_close(found.tensors, values, rtol=0, atol=0)
        assert found.key == ""


def test_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return ran.touch, ()

    message = refused(written({"weight": Evil()}, tmp_path / "evil.pth"))
    assert "save net.state_dict()" in message
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "evil.pt")
    assert not ran.exists()


def test_settings_and_numpy_numbers_beside_a_state_dict_are_left_out(tmp_path: Path) -> None:
    """What argparse gave, the best accuracy as numpy's mean gave it, a history, a path."""
    module = net()
    beside = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), nested=argparse.Namespace(a=1)),
        "config": types.SimpleNamespace(width=3),
        "best_acc": np.float64(0.93),
        "epoch": np.int64(3),
        "history": [np.float32(1.5), np.arange(3.0)],
        np.str_("dtype"): np.dtype("float32"),
    }
    path = written({"state_dict": module.state_dict(), **beside}, tmp_path / "net.pth")
    before = set(torch.serialization.get_safe_globals())
    found = state_dict._read_pickled(path)["state_dict"]
    assert tree.equal(dict(found), dict(module.state_dict()))
    assert state_dict.read(path)
    assert set(torch.serialization.get_safe_globals()) == before, "nothing is allowed afterwards"


def test_what_cannot_be_left_out_is_named_with_what_to_save(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    values = {"state_dict": net().state_dict(), "schedule": fractions.Fraction(1, 3)}
    message = refused(written(values, path))
    assert "holds fractions.Fraction, " in message
    assert "torch.save(net.state_dict(), 'net.pth')" in message
    mixed = {**net().state_dict(), "best_acc": np.float64(0.9)}
    assert "its entry 'best_acc' is a scalar" in refused(written(mixed, path))


def test_what_is_no_state_dict_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    assert "torch.nn.modules.container.Sequential" in refused(written(net(), path))
    assert "holds a list" in refused(written([1], path))
    assert "holds a Tensor" in refused(written(torch.ones(2), path))
    assert "an empty dict" in refused(written({}, path))
    assert "entry 'epoch' is a int" in refused(written({"epoch": 1, "w": torch.ones(1)}, path))
    assert "entry 3 is a Tensor" in refused(written({3: torch.ones(1)}, path))
    sparse = {"w": torch.eye(3).to_sparse()}
    assert "'w' as a tensor of another kind" in refused(written(sparse, path))
    without_end: dict = {}
    without_end["model"] = without_end
    assert "entry 'model' is a dict" in refused(written(without_end, path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(path))
    assert "TorchScript" in refused(path)
    for data in (b"", b"x", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00."):
        path.write_bytes(data)
        assert "torch.save did not write it" in refused(path)
    (tmp_path / "a.safetensors").write_bytes(b"hello")
    assert "as a safetensors file" in refused(tmp_path / "a.safetensors")


def test_a_file_that_was_cut_off_is_damaged(tmp_path: Path) -> None:
    whole = written({"w": torch.zeros(100_000)}, tmp_path / "net.pth").read_bytes()
    for length in (1, 100, 20_000, 65_600, len(whole) - 100, len(whole) - 1):
        (tmp_path / "net.pth").write_bytes(whole[:length])
        assert "or it is damaged; give a state_dict" in refused(tmp_path / "net.pth")


def test_an_archive_that_grows_is_refused(tmp_path: Path) -> None:
    path = written({"w": torch.zeros(100_000)}, tmp_path / "net.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    refused(packed)


@given(data=st.data(), old=st.booleans())
def test_any_damage_is_refused_or_gives_tensors(
    data: st.DataObject, old: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    values = {"w": torch.ones(2), "b": torch.zeros(1, dtype=torch.float64)}
    torch.save(values, path, _use_new_zipfile_serialization=not old)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    with contextlib.suppress(UsageError, ExternalError):
        for found in state_dict.read(path):
            assert all(isinstance(value, torch.Tensor) for value in found.tensors.values())

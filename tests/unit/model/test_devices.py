import pytest
import torch

from virnucpro.errors import InputError
from virnucpro.model.devices import device_name, select_device, select_dtype


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def one_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)


@pytest.mark.fault(19)
def test_only_auto_falls_back_to_the_cpu(no_cuda):
    device, reason = select_device("auto")
    assert device.type == "cpu"
    assert reason
    for name in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match="CUDA is not available"):
            select_device(name)


def test_auto_takes_cuda_where_it_is(one_cuda):
    assert select_device("auto")[0] == torch.device("cuda", 0)


@pytest.mark.fault(19)
def test_device_that_is_not_there_is_an_error(one_cuda):
    assert select_device("cuda:0")[0].index == 0
    with pytest.raises(InputError, match="not there"):
        select_device("cuda:1")


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:2", 2)])
def test_chosen_device_becomes_the_current_one(one_cuda, monkeypatch, name, index):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert select_device(name)[0] == torch.device("cuda", index)
    assert current == [index]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu:0", "cuda:-1"])
def test_unknown_device_names_are_refused(one_cuda, name):
    with pytest.raises(InputError, match="unknown device"):
        select_device(name)


def test_default_dtype_depends_on_the_device():
    assert select_dtype("auto", torch.device("cpu"))[0] == torch.float32
    assert select_dtype("auto", torch.device("cuda"))[0] == torch.float16
    assert select_dtype("bfloat16", torch.device("cpu"))[0] == torch.bfloat16
    with pytest.raises(InputError, match="unknown dtype"):
        select_dtype("half", torch.device("cpu"))


def test_cpu_is_called_cpu():
    assert device_name(torch.device("cpu")) == "cpu"

import pytest
import torch

from virnucpro.errors import InputError
from virnucpro.model import devices
from virnucpro.model.devices import device_name, select_device, select_dtype
from virnucpro.model.kernels import reference

GPU = torch.device("cuda", 0)

SMI = """#!/bin/sh
case "$1" in
-L) echo 'GPU 0: Tesla V100-SXM2-16GB (UUID: GPU-0123)' ;;
*) echo '{driver}' ;;
esac
"""


@pytest.fixture(autouse=True)
def driver(tmp_path, monkeypatch):
    """Nothing is visible; give a function that makes nvidia-smi list a GPU with this driver."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA", "ROCR", "HIP"):
        monkeypatch.delenv(f"{name}_VISIBLE_DEVICES", raising=False)

    def install(version):
        program = tmp_path / "nvidia-smi"
        program.write_text(SMI.format(driver=version))
        program.chmod(0o755)

    return install


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def one_cuda(monkeypatch):
    for module in (torch.cuda, torch.xpu, torch.mps):
        monkeypatch.setattr(module, "is_available", lambda: True)
        monkeypatch.setattr(module, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.xpu, "set_device", lambda _: None)
    monkeypatch.setattr(devices, "_run_a_kernel", lambda _: None)


@pytest.mark.fault(19)
def test_only_auto_falls_back_to_the_cpu(no_cuda):
    device, reason = select_device("auto")
    assert device.type == "cpu"
    assert reason == "no GPU is visible"
    for name in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match="CUDA is not available"):
            select_device(name)
    for name in ("mps", "xpu", "xpu:1"):
        with pytest.raises(InputError, match=rf"'{name}' was asked for, but .* is not available"):
            select_device(name)


@pytest.mark.fault(56)
@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("470.82.01", "update the driver to 525 or newer"),
        ("550.54.15", "--index-url https://download.pytorch.org/whl/cu126;"),
        ("580.65.06", "--index-url https://download.pytorch.org/whl/cu130;"),
        ("no answer", "apptainer --nv"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_an_error_with_the_remedy(
    no_cuda, driver, monkeypatch, name, version, remedy
):
    def init():
        raise RuntimeError("The driver is too old (found version 11040).\nMore of it")

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    driver(version)
    with pytest.raises(InputError) as error:
        select_device(name)
    known = "unknown" if version == "no answer" else version
    assert error.value.message == (
        "a GPU is visible, but torch cannot use it: The driver is too old (found version 11040) "
        f"(GPU GPU-0123 (Tesla V100-SXM2-16GB), driver {known}; torch {torch.__version__}, "
        "built for CUDA 13.0)"
    )
    assert remedy in error.value.hint
    assert error.value.hint.endswith("to compute on the CPU, say `device: cpu`")
    assert select_device("cpu") == (torch.device("cpu"), "asked for")


@pytest.mark.fault(56)
def test_a_gpu_that_only_the_scheduler_shows_counts(no_cuda, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InputError, match=r"GPU 3, driver unknown; .* built for CPUs alone"):
        select_device("auto")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert select_device("auto")[0].type == "cpu"  # hidden by who wants that
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "1")
    with pytest.raises(InputError, match=r"GPU 1; torch") as error:
        select_device("auto")
    assert "whl/rocm" in error.value.hint


@pytest.mark.fault(56)
@pytest.mark.parametrize(
    ("capability", "wheels"), [((7, 0), "whl/cu126;"), ((12, 0), "whl/cu130;")]
)
def test_a_card_without_code_in_this_build_shows_at_the_first_kernel(
    one_cuda, driver, monkeypatch, capability, wheels
):
    def run(device):
        raise RuntimeError("CUDA error: no kernel image is available for execution\nCompile with")

    monkeypatch.setattr(devices, "_run_a_kernel", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Imaginary 1")
    driver("580.65.06")
    for name in ("auto", "cuda:0"):
        with pytest.raises(InputError) as error:
            select_device(name)
        assert "no kernel image is available for execution (GPU cuda:0 (Imaginary 1, compute " in (
            error.value.message
        )
        assert wheels in error.value.hint
    with pytest.raises(InputError, match="xpu:0 does not compute: CUDA error: no kernel image"):
        select_device("xpu")


def test_a_device_that_is_full_is_not_called_unusable(one_cuda, monkeypatch):
    def run(device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(devices, "_run_a_kernel", run)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        select_device("auto")


def test_auto_takes_cuda_where_it_is(one_cuda):
    assert select_device("auto")[0] == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "index"), [("mps", 0), ("xpu", 0), ("xpu:0", 0), ("cuda", 0), ("cuda:0", 0)]
)
def test_devices_by_name(one_cuda, name, index):
    kind = name.partition(":")[0]
    assert select_device(name) == (torch.device(kind, index), "asked for")


@pytest.mark.fault(19)
def test_device_that_is_not_there_is_an_error(one_cuda):
    for name in ("cuda:1", "xpu:1"):
        with pytest.raises(InputError, match="not there"):
            select_device(name)


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:2", 2)])
def test_chosen_device_becomes_the_current_one(one_cuda, monkeypatch, name, index):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert select_device(name)[0] == torch.device("cuda", index)
    assert current == [torch.device("cuda", index).index]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu:0", "cuda:-1", "mps:0", "xpu:y"])
def test_unknown_device_names_are_refused(one_cuda, name):
    with pytest.raises(InputError, match="unknown device"):
        select_device(name)


def test_default_dtype_depends_on_the_device():
    assert select_dtype("auto", torch.device("cpu"))[0] == torch.float32
    assert select_dtype("auto", torch.device("cuda"))[0] == torch.float16
    assert select_dtype("bfloat16", torch.device("cpu"))[0] == torch.bfloat16
    with pytest.raises(InputError, match="unknown dtype"):
        select_dtype("half", torch.device("cpu"))


def test_cpu_is_called_cpu_and_nothing_else_is(monkeypatch):
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda _: "Intel Imaginary")
    names = [device_name(torch.device(kind)) for kind in ("cpu", "mps", "xpu")]
    assert names == ["cpu", "mps", "Intel Imaginary"]


@pytest.fixture
def float8_gpu(monkeypatch):
    """Give a function that makes the CPU pass for a GPU with this float8 product."""

    def install(product):
        monkeypatch.setattr(devices, "float8_product", product)
        monkeypatch.setattr(devices, "device_name", lambda _: "Imaginary 1")
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_: tensor)

    return install


@pytest.mark.parametrize("right", [True, False])
def test_float8_is_tried(float8_gpu, right):
    def product(rows, weight):
        found = reference.float8_product(rows, weight)
        return found if right else torch.ones_like(found)

    float8_gpu(product)
    if right:
        assert select_dtype("float8", GPU) == (torch.float8_e4m3fn, "asked for")
        return
    with pytest.raises(InputError, match=r"float8 cannot run on Imaginary 1: .* is wrong there"):
        select_dtype("float8", GPU)


@pytest.mark.fault(57)
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, NotImplementedError])
def test_float8_that_torch_refuses_is_refused_with_its_reason(float8_gpu, kind):
    def product(rows, weight):
        raise kind("_scaled_mm: row-wise scales need 9.0\nException raised from")

    float8_gpu(product)
    with pytest.raises(InputError) as error:
        select_dtype("float8", GPU)
    assert error.value.message == (
        "dtype float8 cannot run on Imaginary 1: _scaled_mm: row-wise scales need 9.0"
    )
    assert "`auto` is float16" in error.value.hint

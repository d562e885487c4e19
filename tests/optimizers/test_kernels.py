"""The compiled loops: exact, the same for any number of threads, in torch's own pool of them."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_tfopt.native.build import find_compiler, library
from hf_tfopt.optimizers import kernels
from hf_tfopt.optimizers.lamb import Lamb
from tests.optimizers.test_lamb import set_gradients

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_our_loops_do_not_depend_on_threads(num_threads: int) -> None:
    """Shared tensors of many blocks, one that ends inside a block, and small ones."""
    before, sizes = torch.get_num_threads(), (400_001, 3, 32_768, 32_769, 900_000)

    def trained(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(size)) for size in sizes]
        optimizer = Lamb(parameters, lr=0.1, weight_decay=0.1)
        for _ in range(2):
            set_gradients(parameters)
            optimizer.step()
        assert [state["trust_ratio"] for state in optimizer.state.values()] != [1.0] * len(sizes)
        return [parameter.detach() for parameter in parameters]

    try:
        for found, expected in zip(trained(num_threads), trained(1), strict=True):
            assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("sizes", [(1,), (3, 0, 4097), (2_400_001, 262_144, 5)])
def test_the_sum_of_squares_is_exact(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    print("seed 0")
    tensors = [torch.randn(size) for size in sizes]
    exact = sum(tensor.double().square().sum().item() for tensor in tensors)
    before, found = torch.get_num_threads(), set[float | None]()
    try:
        for num_threads in (1, 2, 3, 7):
            torch.set_num_threads(num_threads)
            found.add(kernels.sum_of_squares(tensors))
    finally:
        torch.set_num_threads(before)
    # fp32 sums of up to 8,192 numbers, in many parts each: a rounding of 6e-8 or two
    assert list(found) == [pytest.approx(exact, rel=2e-7)]  # the same for any number of threads


def test_our_loops_take_plain_tensors_only_and_tell_autograd() -> None:
    class Other(torch.Tensor):
        pass

    weight = nn.Parameter(torch.randn(4, 6))
    assert kernels.takes(weight) and kernels.takes(weight.detach())
    others = [weight.bfloat16(), weight.t(), weight.detach().to_sparse(), weight.to("meta")]
    for other in (*others, weight.detach().as_subclass(Other)):
        assert not kernels.takes(other)
    loss = weight.square().sum()
    weight.grad = torch.ones_like(weight)
    Lamb([weight], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere torch's threads are not GNU OpenMP's"
)
def test_torch_has_a_pool_of_threads_for_our_loops() -> None:
    """If this fails, the loops run in threads of their own, beside torch's that spin."""
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    assert all(hasattr(ctypes.CDLL(None), name) for name in names)


ALONE = """
import ctypes, sys
import numpy as np

loops = ctypes.CDLL(sys.argv[1])
loops.tfopt_sum_of_squares.restype = ctypes.c_double
x = np.arange(1_000_000, dtype=np.float32)
place, size = ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(x.size)
only = (ctypes.byref(place), ctypes.byref(size), ctypes.c_int64(1))
for threads in (1, 2, 5, -2):
    print(loops.tfopt_sum_of_squares(*only, -threads))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_without_that_pool_the_loops_have_threads_of_their_own() -> None:
    """In a process without torch, and with a number of threads as a forked process gives it."""
    loops = library("optimizers")
    assert loops is not None
    path = Path(loops._name)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(path)], capture_output=True, text=True, check=True
    )
    exact = sum(number**2 for number in range(1_000_000))
    found = [float(line) for line in done.stdout.split()]
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(exact, rel=2e-7)

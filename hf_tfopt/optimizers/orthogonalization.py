"""Newton-Schulz: from a matrix to the nearest semi-orthogonal one, by multiplications only."""

from functools import cache

import torch
from torch import Tensor

# a, b, c of Jordan et al.: the steepest slope at 0 that keeps singular values within about 0.7-1.2
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Closer to square, iterating on the Gram matrix takes more multiplications: with r the ratio of the
# sides, 5 iterations cost 5 (1 + 2r) products of two squares of the shorter side, or 11 + 6r.
SMALLEST_LONG_RATIO = 2.0


@torch.no_grad()
def newton_schulz(
    gradient: Tensor, num_steps: int = 5, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Move a matrix close to the nearest semi-orthogonal one, U Vᵀ of its U S Vᵀ.

    Equal, within rounding, to `X = gradient / ‖gradient‖` (Frobenius) and `num_steps` times
    `A = X Xᵀ; X = a X + (b A + c A²) X`, on the transpose where there are more rows than columns.
    Where one side is longer, only A, of the shorter side, is iterated, A ← Q A Q with Q = a I + b A
    + c A², and X is multiplied by the product of two Q at a time (in float32, of three).

    Args:
        gradient: [rows, columns], or [matrices, rows, columns].
        num_steps: iterations, above 0.
        dtype: of the multiplications; float16 rounds 8 times finer than bfloat16.

    Returns:
        The same shape in `dtype`, with singular values about 0.7-1.2 where they were
        not far below 1e-3 of the largest.

    Raises:
        ValueError: the gradient is neither a matrix nor a batch of them.

    Paper: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks,
        https://kellerjordan.github.io/posts/muon/. Differs: the norm is taken in fp32. And Zhang et
        al. 2026, Gram Newton-Schulz, https://tridao.me/blog/2026/gram-newton-schulz/. Differs:
        bfloat16 by default, and a restart every two iterations, not once.
    """
    if gradient.ndim not in (2, 3):
        raise ValueError(
            f"Muon needs whole matrices, got a tensor of shape {list(gradient.shape)}; an engine "
            "that flattens parameters (DeepSpeed ZeRO) cannot be used with it"
        )
    matrix = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    matrix = (matrix / norm.clamp(min=1e-7)).to(dtype)
    short, long = sorted(matrix.shape[-2:])
    run = _run_length(num_steps, dtype) if long > SMALLEST_LONG_RATIO * short else 1
    for start in range(0, num_steps, run):
        matrix = _iterate(matrix, min(run, num_steps - start))
    return matrix


def _run_length(num_steps: int, dtype: torch.dtype) -> int:
    """How many iterations go on one Gram matrix before it is formed anew.

    Rounding makes its small eigenvalues negative, and each iteration on it alone multiplies that
    error by a² = 12: in half precision, three can give singular values of 1e5. Two stay below 1.27,
    but for one matrix in 100,000; past 1.264 further iterations enlarge them, so none may follow.
    """
    if dtype in (torch.float32, torch.float64):
        return 3
    return 2 if num_steps <= 5 else 1


def _iterate(matrix: Tensor, num_steps: int) -> Tensor:
    """Iterate on the Gram matrix of the shorter side, and multiply `matrix` once, at the end."""
    a, b, c = COEFFICIENTS
    add_product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    # never by way of matrix.mT: additions to a transposed result are several times slower
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    gram = matrix.mT @ matrix if is_tall else matrix @ matrix.mT
    product = None
    for step in range(num_steps):
        factor = add_product(gram, gram, gram, beta=b, alpha=c)  # Q without its a I
        if num_steps == 1:
            sides = (matrix, factor) if is_tall else (factor, matrix)
            return add_product(matrix, *sides, beta=a)
        if step < num_steps - 1:
            gram = add_product(gram, factor, gram, beta=a)
            gram = add_product(gram, gram, factor, beta=a)
        if product is None:
            product = factor
            product.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            product = add_product(product, factor, product, beta=a)
    assert product is not None
    return matrix @ product if is_tall else product @ matrix


@cache
def fast_dtype(device_type: str) -> torch.dtype:
    """Bfloat16 where the hardware multiplies it, else float32.

    On a CPU without the instructions, torch multiplies bf16 matrices 40 times slower than fp32.
    """
    if device_type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device_type == "cpu":
        is_fast = torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    else:
        is_fast = device_type == "xpu"
    return torch.bfloat16 if is_fast else torch.float32

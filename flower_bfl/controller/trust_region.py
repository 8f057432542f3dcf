"""A natural-gradient step within a trust region, (35)-(38): TRPO, Schulman et al. 2015."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """The x with H·x = target, for H positive definite and given by its product with a vector."""
    x, residual = torch.zeros_like(target), target.clone()
    direction, size = residual.clone(), residual @ residual
    for _ in range(iterations):
        if size < tolerance:
            break
        image = product(direction)
        length = size / (direction @ image)
        x, residual = x + length * direction, residual - length * image
        size, before = residual @ residual, size
        direction = residual + size / before * direction
    return x


def fisher_product(
    distance: Tensor, parameters: Sequence[Tensor], damping: float = 0.01
) -> Callable[[Tensor], Tensor]:
    """The map v ↦ (H + damping)·v; H is the Hessian of `distance`, a KL divergence from where it is 0."""
    slope = _flat(torch.autograd.grad(distance, parameters, create_graph=True, allow_unused=True), parameters)

    def product(vector: Tensor) -> Tensor:
        bent = torch.autograd.grad(slope @ vector, parameters, retain_graph=True, allow_unused=True)
        return _flat(bent, parameters) + damping * vector

    return product


def trust_region_step(
    parameters: Sequence[Tensor],
    before: Tensor,
    surrogate: Callable[[], Tensor],
    distance: Callable[[], Tensor],
    max_distance: float,
    step_scale: float = 1.0,
) -> float:
    """Change parameters to raise the surrogate (35), by (38) and a backtracking line search; returns the KL.

    before: what to raise, as it is now, with its graph; surrogate: the same for other parameters; distance:
    the mean KL divergence from the policy as it is now, which must be 0 before the step. A step is taken if
    the surrogate rises by at least a tenth of what its gradient promises (Armijo's condition) and the
    divergence is not above 1.5 times its limit; else seven tenths of it are tried, up to twenty times. If
    none will do, parameters stay as they are: 0.
    """
    gradient = _flat(torch.autograd.grad(before, parameters, allow_unused=True), parameters)
    product = fisher_product(distance(), parameters)
    direction = conjugate_gradient(product, gradient)
    curvature = direction @ gradient  # = direction·H·direction: what is left is orthogonal to the direction
    start = nn.utils.parameters_to_vector(parameters).detach().clone()
    step = direction * torch.sqrt(2 * max_distance / curvature)
    promised, share = float(gradient @ step), step_scale
    if not math.isfinite(promised) or promised <= 0:
        return 0.0
    with torch.no_grad():
        for _ in range(20):
            nn.utils.vector_to_parameters(start + share * step, parameters)
            gained, apart = float(surrogate() - before), float(distance())
            if gained >= 0.1 * share * promised and apart <= 1.5 * max_distance:
                return apart
            share *= 0.7
        nn.utils.vector_to_parameters(start, parameters)
    return 0.0


def _flat(gradients: Iterable[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])

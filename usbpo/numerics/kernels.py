"""What the Triton kernels of model and agent share: a step of Adam."""

import triton
import triton.language as tl

BETA_1, BETA_2, EPSILON = tl.constexpr(0.9), tl.constexpr(0.999), tl.constexpr(1e-8)


@triton.jit
def adam(params, first, second, places, mask, gradient, powers, RATE: tl.constexpr):
    """Adam's step for the parameters in these places; what they are after it."""
    m = tl.load(first + places, mask=mask, other=0.0)
    m += (gradient - m) * (1.0 - BETA_1)
    v = tl.load(second + places, mask=mask, other=0.0)
    v = v * BETA_2 + gradient * gradient * (1.0 - BETA_2)
    correction_1 = (1.0 - tl.load(powers)).to(tl.float32)
    correction_2 = tl.sqrt((1.0 - tl.load(powers + 1)).to(tl.float32))
    p = tl.load(params + places, mask=mask, other=0.0)
    p -= RATE / correction_1 * m / (tl.sqrt(v) / correction_2 + EPSILON)
    tl.store(first + places, m, mask=mask)
    tl.store(second + places, v, mask=mask)
    tl.store(params + places, p, mask=mask)
    return p

"""The steps of the policy's update on a GPU: the last kernel of each kind of network, as `usbpo.agent.kernels` says.

A weight's gradient is never written: each program holds a tile of the weights over all rows and takes Adam's step with
it. Names and layout are those of `usbpo.agent.kernels`, which makes what is read here.
"""

import triton
import triton.language as tl

from usbpo.numerics.kernels import adam


@triton.jit
def _follow(targets, places, mask, new, POLYAK: tl.constexpr):
    """Polyak's step of the targets towards the new parameters."""
    old = tl.load(targets + places, mask=mask, other=0.0)
    tl.store(targets + places, old + POLYAK * (new - old), mask=mask)


@triton.jit
def _matrix(
    tile, below, stride, flow, IN,
    R: tl.constexpr, H: tl.constexpr, TI: tl.constexpr, TO: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a hidden layer's weight gradient, the columns' bias gradient, and the tile's rows and columns."""
    inputs = tile // (H // TO) * TI + tl.arange(0, TI)
    columns = tile % (H // TO) * TO + tl.arange(0, TO)
    total, of_bias = tl.zeros((TI, TO), tl.float32), tl.zeros((K, TO), tl.float32)
    for start in range(0, R, K):
        rows = start + tl.arange(0, K)
        x = tl.load(below + rows[None, :] * stride + inputs[:, None], mask=inputs[:, None] < IN, other=0.0)
        g = tl.load(flow + rows[:, None] * H + columns[None, :])
        total = tl.dot(x, g, total, input_precision=PRECISION)
        of_bias += g
    return total, tl.sum(of_bias, axis=0), inputs, columns


@triton.jit
def _step_values(
    tile, top, of_values, params, averages, squares, powers, followers, WL: tl.constexpr, BL: tl.constexpr,
    R: tl.constexpr, RATE: tl.constexpr, POLYAK: tl.constexpr, H: tl.constexpr, TO: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The steps of TO weights of a critic's last layer, and of its bias."""
    columns = tile * TO + tl.arange(0, TO)
    total, of_bias = tl.zeros((K, TO), tl.float32), tl.zeros((K,), tl.float32)
    for start in range(0, R, K):
        rows = start + tl.arange(0, K)
        of_value = tl.load(of_values + rows)
        total += tl.load(top + rows[:, None] * H + columns[None, :]) * of_value[:, None]
        of_bias += of_value
    gradient = tl.sum(total, axis=0)
    weights = adam(params, averages, squares, WL + columns, columns >= 0, gradient, powers, RATE)
    _follow(followers, WL + columns, columns >= 0, weights, POLYAK)
    if tile == 0:
        one = tl.arange(0, 16)
        of_one = tl.sum(of_bias, axis=0) + tl.zeros((16,), tl.float32)
        bias = adam(params, averages, squares, BL + one, one < 1, of_one, powers, RATE)
        _follow(followers, BL + one, one < 1, bias, POLYAK)


@triton.jit
def step_critics(
    batch, hidden, flows, of_values, critics, targets, first, second, powers,
    W0: tl.constexpr, B0: tl.constexpr, W1: tl.constexpr, B1: tl.constexpr, HOP: tl.constexpr,
    WL: tl.constexpr, BL: tl.constexpr,
    SIZE: tl.constexpr, IN: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr,
    RATE: tl.constexpr, POLYAK: tl.constexpr, T0: tl.constexpr, T1: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, TI: tl.constexpr, TO: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adam's step of both critics, Polyak's of their targets. Grid: (T0 + (L − 1) T1 + H / TO, 2).

    The first T0 programs have the first layer's tiles, T1 each the other hidden layers', the rest the last layer's.
    """
    tile, which = tl.program_id(0), tl.program_id(1)
    params, averages, squares = critics + which * SIZE, first + which * SIZE, second + which * SIZE
    followers = targets + which * SIZE
    own, own_flows = hidden + which * R * H, flows + which * R * H
    if tile < T0 + (L - 1) * T1:
        if tile < T0:
            place, below, stride, flow, fan_in, weight, bias = tile, batch, WIDTH, own_flows, IN, W0, B0
        else:
            layer = (tile - T0) // T1
            place, below, stride, fan_in = (tile - T0) % T1, own + layer * 4 * R * H, H, H
            flow, weight, bias = own_flows + (layer + 1) * 2 * R * H, W1 + layer * HOP, B1 + layer * HOP
        gradient, of_bias, inputs, columns = _matrix(place, below, stride, flow, fan_in, R, H, TI, TO, K, PRECISION)
        places = weight + inputs[:, None] * H + columns[None, :]
        mask = (inputs < fan_in)[:, None] & (columns >= 0)[None, :]
        new = adam(params, averages, squares, places, mask, gradient, powers, RATE)
        _follow(followers, places, mask, new, POLYAK)
        if place < H // TO:
            shift = adam(params, averages, squares, bias + columns, columns >= 0, of_bias, powers, RATE)
            _follow(followers, bias + columns, columns >= 0, shift, POLYAK)
    else:
        top, last = own + (L - 1) * 4 * R * H, tile - T0 - (L - 1) * T1
        _step_values(
            last, top, of_values + which * R, params, averages, squares, powers, followers,
            WL, BL, R, RATE, POLYAK, H, TO, K,
        )  # fmt: skip


@triton.jit
def _step_head(
    tile, top, of_head, actor, first, second, powers, WL: tl.constexpr, BL: tl.constexpr,
    HEADS: tl.constexpr, HP: tl.constexpr, R: tl.constexpr, RATE: tl.constexpr,
    H: tl.constexpr, TO: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The steps of TO columns of the actor's last layer, and of its biases."""
    heads, columns = tl.arange(0, HP), tile * TO + tl.arange(0, TO)
    total, of_bias = tl.zeros((HP, TO), tl.float32), tl.zeros((HP, K), tl.float32)
    for start in range(0, R, K):
        rows = start + tl.arange(0, K)
        g = tl.load(of_head + heads[:, None] * R + rows[None, :], mask=(heads < HEADS)[:, None], other=0.0)
        h = tl.load(top + rows[:, None] * H + columns[None, :])
        total = tl.dot(g, h, total, input_precision=PRECISION)
        of_bias += g
    mask = (heads < HEADS)[:, None] & (columns >= 0)[None, :]
    adam(actor, first, second, WL + heads[:, None] * H + columns[None, :], mask, total, powers, RATE)
    if tile == 0:
        adam(actor, first, second, BL + heads, heads < HEADS, tl.sum(of_bias, axis=1), powers, RATE)


@triton.jit
def _step_temperature(
    log_densities, entropy, log_alpha, first, second, powers,
    R: tl.constexpr, RATE: tl.constexpr, TARGET_ENTROPY: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The policy's entropy, and the step of the temperature."""
    total = tl.zeros((K,), tl.float32)
    for start in range(0, R, K):
        total += tl.load(log_densities + start + tl.arange(0, K))
    found = -tl.sum(total, axis=0) / R
    tl.store(entropy, found)
    one = tl.arange(0, 16)
    gradient = found - TARGET_ENTROPY + tl.zeros((16,), tl.float32)
    adam(log_alpha, first, second, one, one < 1, gradient, powers, RATE)


@triton.jit
def step_actor(
    batch, hidden, flows, of_head, log_densities, entropy,
    actor, first, second, log_alpha, first_alpha, second_alpha, powers,
    W0: tl.constexpr, B0: tl.constexpr, W1: tl.constexpr, B1: tl.constexpr, HOP: tl.constexpr,
    WL: tl.constexpr, BL: tl.constexpr,
    OBS: tl.constexpr, HEADS: tl.constexpr, HP: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr,
    RATE: tl.constexpr, TARGET_ENTROPY: tl.constexpr, T0: tl.constexpr, T1: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, TI: tl.constexpr, TO: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adam's step of the actor, as `step_critics`, and of the temperature. Grid: (T0 + (L − 1) T1 + H / TO + 1,)."""
    tile = tl.program_id(0)
    if tile < T0 + (L - 1) * T1:
        if tile < T0:
            place, below, stride, flow, fan_in, weight, bias = tile, batch, WIDTH, flows, OBS, W0, B0
        else:
            layer = (tile - T0) // T1
            place, below, stride, fan_in = (tile - T0) % T1, hidden + layer * 2 * R * H, H, H
            flow, weight, bias = flows + (layer + 1) * R * H, W1 + layer * HOP, B1 + layer * HOP
        gradient, of_bias, inputs, columns = _matrix(place, below, stride, flow, fan_in, R, H, TI, TO, K, PRECISION)
        places = weight + inputs[:, None] * H + columns[None, :]
        mask = (inputs < fan_in)[:, None] & (columns >= 0)[None, :]
        adam(actor, first, second, places, mask, gradient, powers, RATE)
        if place < H // TO:
            adam(actor, first, second, bias + columns, columns >= 0, of_bias, powers, RATE)
    elif tile < T0 + (L - 1) * T1 + H // TO:
        top, last = hidden + (L - 1) * 2 * R * H, tile - T0 - (L - 1) * T1
        _step_head(
            last, top, of_head, actor, first, second, powers, WL, BL, HEADS, HP, R, RATE, H, TO, K, PRECISION
        )  # fmt: skip
    else:
        _step_temperature(
            log_densities, entropy, log_alpha, first_alpha, second_alpha, powers, R, RATE, TARGET_ENTROPY, K
        )  # fmt: skip

"""A minibatch of phase 1 as two Triton kernels, which `usbpo.model.fused` launches one after the other.

As in `usbpo.agent.kernels`, a program of the first takes M rows of one member through all layers and back, activations
go through memory, and a program of the second holds a tile of a member's weights over all rows and takes Adam's step
with it. Networks lie in flat buffers, one member behind the other, SIZE numbers each.

L hidden layers have H units each, padded to HP; D is obs_dim + 1, padded to DP; IN is obs_dim + act_dim. A minibatch
has R places for rows; where the row's number is −1 there is none, and what it adds is zero. So a smaller minibatch
needs no kernels of its own.
"""

import triton
import triton.language as tl

from usbpo.numerics.kernels import adam


@triton.jit
def _layer(
    x_rows, weight, bias, before, after,
    IN: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write z = x W + b to before (M, H) and SiLU(z) to after; x_rows (M, 1) are pointers to rows of x."""
    rows, columns = tl.arange(0, M)[:, None], tl.arange(0, HP)[None, :]
    total = tl.zeros((M, HP), tl.float32)
    for start in range(0, IN, K):
        inner = start + tl.arange(0, K)
        x = tl.load(x_rows + inner[None, :], mask=inner[None, :] < IN, other=0.0)
        w = tl.load(weight + inner[:, None] * H + columns, mask=(inner[:, None] < IN) & (columns < H), other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    total += tl.load(bias + columns, mask=columns < H, other=0.0)
    places, mask = rows * H + columns, (rows >= 0) & (columns < H)
    tl.store(before + places, total, mask=mask)
    tl.store(after + places, total * tl.sigmoid(total), mask=mask)
    tl.debug_barrier()


@triton.jit
def _through_silu(flowing, before, out, H: tl.constexpr, HP: tl.constexpr, M: tl.constexpr):
    """Write the gradient in z from that in SiLU(z)."""
    rows, columns = tl.arange(0, M)[:, None], tl.arange(0, HP)[None, :]
    places, mask = rows * H + columns, (rows >= 0) & (columns < H)
    z = tl.load(before + places, mask=mask, other=0.0)
    gate = tl.sigmoid(z)
    tl.store(out + places, flowing * gate * (1.0 + z * (1.0 - gate)), mask=mask)
    tl.debug_barrier()


@triton.jit
def _softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def differentiate(
    inputs, targets, chosen, share, networks, bounds, step, powers, betas, before, after, deltas, of_outputs, of_bounds,
    W0: tl.constexpr, B0: tl.constexpr, W1: tl.constexpr, B1: tl.constexpr, HOP: tl.constexpr,
    WL: tl.constexpr, BL: tl.constexpr, SIZE: tl.constexpr, MEMBERS: tl.constexpr,
    IN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, R: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, M: tl.constexpr, K: tl.constexpr, K0: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the likelihood before each SiLU, in the outputs and in the bounds; the step counted.

    Grid: (R / M, MEMBERS). before, after and deltas are (L, MEMBERS, R, H), of_outputs (MEMBERS, R, 2 D), chosen
    (MEMBERS, R) the rows of the minibatch, share () what an output of a row counts in the mean over all that there are,
    of_bounds (MEMBERS · R / M, 2, DP) the part of each program.
    """
    start, member = tl.program_id(0) * M, tl.program_id(1)
    if (start == 0) & (member == 0):
        tl.store(step, tl.load(step) + 1.0)
        two = tl.arange(0, 2)
        tl.store(powers + two, tl.load(powers + two) * tl.load(betas + two))
    LAYER: tl.constexpr = MEMBERS * R * H
    rows, network = tl.arange(0, M), networks + member * SIZE
    row = tl.load(chosen + member * R + start + rows)
    real = row >= 0
    row = tl.maximum(row, 0)
    own = (member * R + start) * H
    own_rows = own + rows[:, None] * H
    z, h, delta = before + own, after + own, deltas + own
    _layer(inputs + row[:, None] * IN, network + W0, network + B0, z, h, IN, H, HP, M, K0, PRECISION)
    for n in tl.static_range(1, L):
        matrix, bias, below = network + W1 + (n - 1) * HOP, network + B1 + (n - 1) * HOP, after + (n - 1) * LAYER
        _layer(below + own_rows, matrix, bias, z + n * LAYER, h + n * LAYER, H, H, HP, M, K, PRECISION)

    outputs = tl.arange(0, DP)
    inside = outputs < D
    mean, raw = tl.zeros((M, DP), tl.float32), tl.zeros((M, DP), tl.float32)
    for begin in range(0, H, K):
        inner = begin + tl.arange(0, K)
        x = tl.load(after + (L - 1) * LAYER + own_rows + inner[None, :], mask=inner[None, :] < H, other=0.0)
        columns = network + WL + inner[:, None] * (2 * D) + outputs[None, :]
        narrow = (inner < H)[:, None] & inside[None, :]
        mean = tl.dot(x, tl.load(columns, mask=narrow, other=0.0), mean, input_precision=PRECISION)
        raw = tl.dot(x, tl.load(columns + D, mask=narrow, other=0.0), raw, input_precision=PRECISION)
    mean += tl.load(network + BL + outputs, mask=inside, other=0.0)[None, :]
    raw += tl.load(network + BL + D + outputs, mask=inside, other=0.0)[None, :]

    there = real[:, None] & inside[None, :]
    upper = tl.load(bounds + outputs, mask=inside, other=0.0)[None, :]
    lower = tl.load(bounds + D + outputs, mask=inside, other=0.0)[None, :]
    above_lower = upper - _softplus(upper - raw) - lower
    log_variance = lower + _softplus(above_lower)
    weight = tl.load(share)
    error = mean - tl.load(targets + row[:, None] * D + outputs[None, :], mask=there, other=0.0)
    weighted = error * tl.exp(-log_variance)
    of_mean = tl.where(there, 2.0 * weight * weighted, 0.0)
    of_log_variance = tl.where(there, weight - weight * weighted * error, 0.0)
    of_above = of_log_variance * tl.sigmoid(above_lower)
    of_raw = of_above * tl.sigmoid(upper - raw)
    out = of_outputs + (member * R + start + rows)[:, None] * (2 * D) + outputs[None, :]
    wide = (rows >= 0)[:, None] & inside[None, :]
    tl.store(out, of_mean, mask=wide)
    tl.store(out + D, of_raw, mask=wide)
    own_share = of_bounds + (member * (R // M) + start // M) * (2 * DP) + outputs
    tl.store(own_share, tl.sum(of_above - of_raw, axis=0))
    tl.store(own_share + DP, tl.sum(of_log_variance - of_above, axis=0))

    units = tl.arange(0, HP)
    head, within = network + WL + units[None, :] * (2 * D) + outputs[:, None], inside[:, None] & (units < H)[None, :]
    flowing = tl.dot(of_mean, tl.load(head, mask=within, other=0.0), input_precision=PRECISION)
    flowing = tl.dot(of_raw, tl.load(head + D, mask=within, other=0.0), flowing, input_precision=PRECISION)
    _through_silu(flowing, z + (L - 1) * LAYER, delta + (L - 1) * LAYER, H, HP, M)
    for up in tl.static_range(1, L):
        n = L - 1 - up
        above, through = deltas + (n + 1) * LAYER + own_rows, network + W1 + n * HOP
        total = tl.zeros((M, HP), tl.float32)
        for begin in range(0, H, K):
            inner = begin + tl.arange(0, K)
            g = tl.load(above + inner[None, :], mask=inner[None, :] < H, other=0.0)
            square = (inner < H)[:, None] & (units < H)[None, :]
            w = tl.load(through + units[None, :] * H + inner[:, None], mask=square, other=0.0)
            total = tl.dot(g, w, total, input_precision=PRECISION)
        _through_silu(total, z + n * LAYER, delta + n * LAYER, H, HP, M)


@triton.jit
def _tile(
    x_rows, flow, inputs, columns, IN, OUT,
    R: tl.constexpr, K: tl.constexpr, TI: tl.constexpr, TO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of weights in the rows `inputs` and `columns` of a layer, and of the biases of the columns."""
    total, of_bias = tl.zeros((TI, TO), tl.float32), tl.zeros((K, TO), tl.float32)
    for start in range(0, R, K):
        rows = start + tl.arange(0, K)
        x = tl.load(x_rows + rows[None, :] * IN + inputs[:, None], mask=inputs[:, None] < IN, other=0.0)
        g = tl.load(flow + rows[:, None] * OUT + columns[None, :], mask=columns[None, :] < OUT, other=0.0)
        total = tl.dot(x, g, total, input_precision=PRECISION)
        of_bias += g
    return total, tl.sum(of_bias, axis=0)


@triton.jit
def _first_tile(
    all_inputs, chosen, flow, inputs, columns,
    IN: tl.constexpr, H: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    TI: tl.constexpr, TO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same of the first layer, whose inputs are gathered."""
    total, of_bias = tl.zeros((TI, TO), tl.float32), tl.zeros((K, TO), tl.float32)
    for start in range(0, R, K):
        rows = start + tl.arange(0, K)
        row = tl.maximum(tl.load(chosen + rows), 0)  # the gradient of a row that is not there is zero
        x = tl.load(all_inputs + row[None, :] * IN + inputs[:, None], mask=inputs[:, None] < IN, other=0.0)
        g = tl.load(flow + rows[:, None] * H + columns[None, :], mask=columns[None, :] < H, other=0.0)
        total = tl.dot(x, g, total, input_precision=PRECISION)
        of_bias += g
    return total, tl.sum(of_bias, axis=0)


@triton.jit
def _step_bounds(
    bounds, first, second, of_bounds, powers, penalty,
    D: tl.constexpr, DP: tl.constexpr, PARTS: tl.constexpr, PARTSP: tl.constexpr, RATE: tl.constexpr,
):  # fmt: skip
    """Adam's step of the bounds of the log-variance, (2, D)."""
    parts, outputs = tl.arange(0, PARTSP)[:, None], tl.arange(0, DP)
    shares = of_bounds + parts * (2 * DP) + outputs[None, :]
    there = (parts < PARTS) & (outputs >= 0)[None, :]
    upper = tl.sum(tl.load(shares, mask=there, other=0.0), axis=0) + penalty
    adam(bounds, first, second, outputs, outputs < D, upper, powers, RATE)
    lower = tl.sum(tl.load(shares + DP, mask=there, other=0.0), axis=0) - penalty
    adam(bounds, first, second, D + outputs, outputs < D, lower, powers, RATE)


@triton.jit
def learn(
    inputs, chosen, after, deltas, of_outputs, of_bounds, networks, first, second, bounds, first_bounds, second_bounds,
    powers, decays, penalty,
    W0: tl.constexpr, B0: tl.constexpr, W1: tl.constexpr, B1: tl.constexpr, HOP: tl.constexpr,
    WL: tl.constexpr, BL: tl.constexpr, SIZE: tl.constexpr, MEMBERS: tl.constexpr,
    IN: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, D2P: tl.constexpr, R: tl.constexpr,
    PARTS: tl.constexpr, PARTSP: tl.constexpr, RATE: tl.constexpr,
    ACROSS: tl.constexpr, T0: tl.constexpr, T1: tl.constexpr, TL: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, K: tl.constexpr, TI: tl.constexpr, TO: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adam's step of all members, and of the bounds. Grid: (T0 + (L − 1) T1 + TL + 1, MEMBERS).

    The first T0 programs of a member have the tiles of its first layer, T1 each those of the other hidden layers, TL
    those of the last, ACROSS of them side by side; the one behind them, of the first member, has the bounds.
    """
    tile, member = tl.program_id(0), tl.program_id(1)
    LAYER: tl.constexpr = MEMBERS * R * H
    own, averages, squares = networks + member * SIZE, first + member * SIZE, second + member * SIZE
    own_rows = member * R * H
    if tile < T0:
        from_inputs, columns = tile // ACROSS * TI + tl.arange(0, TI), tile % ACROSS * TO + tl.arange(0, TO)
        gradient, of_bias = _first_tile(
            inputs, chosen + member * R, deltas + own_rows, from_inputs, columns, IN, H, R, K, TI, TO, PRECISION
        )  # fmt: skip
        places, mask = (
            W0 + from_inputs[:, None] * H + columns[None, :],
            (from_inputs < IN)[:, None] & (columns < H)[None, :],
        )
        gradient += tl.load(decays) * tl.load(own + places, mask=mask, other=0.0)
        adam(own, averages, squares, places, mask, gradient, powers, RATE)
        if tile < ACROSS:
            adam(own, averages, squares, B0 + columns, columns < H, of_bias, powers, RATE)
    elif tile < T0 + (L - 1) * T1:
        layer, place = (tile - T0) // T1, (tile - T0) % T1
        from_units, units = place // ACROSS * TI + tl.arange(0, TI), place % ACROSS * TO + tl.arange(0, TO)
        below, flow = after + layer * LAYER + own_rows, deltas + (layer + 1) * LAYER + own_rows
        of_weight, of_shift = _tile(below, flow, from_units, units, H, H, R, K, TI, TO, PRECISION)
        spots, inside = (
            W1 + layer * HOP + from_units[:, None] * H + units[None, :],
            (from_units < H)[:, None] & (units < H)[None, :],
        )
        of_weight += tl.load(decays + layer + 1) * tl.load(own + spots, mask=inside, other=0.0)
        adam(own, averages, squares, spots, inside, of_weight, powers, RATE)
        if place < ACROSS:
            adam(own, averages, squares, B1 + layer * HOP + units, units < H, of_shift, powers, RATE)
    elif tile < T0 + (L - 1) * T1 + TL:
        last = tile - T0 - (L - 1) * T1
        from_last, outputs = last * TI + tl.arange(0, TI), tl.arange(0, D2P)
        top, of_top = after + (L - 1) * LAYER + own_rows, of_outputs + member * R * (2 * D)
        of_head, of_offset = _tile(top, of_top, from_last, outputs, H, 2 * D, R, K, TI, D2P, PRECISION)
        head, within = (
            WL + from_last[:, None] * (2 * D) + outputs[None, :],
            (from_last < H)[:, None] & (outputs < 2 * D)[None, :],
        )
        of_head += tl.load(decays + L) * tl.load(own + head, mask=within, other=0.0)
        adam(own, averages, squares, head, within, of_head, powers, RATE)
        if last == 0:
            adam(own, averages, squares, BL + outputs, outputs < 2 * D, of_offset, powers, RATE)
    elif member == 0:
        _step_bounds(
            bounds, first_bounds, second_bounds, of_bounds, powers, penalty, D, DP, PARTS, PARTSP, RATE
        )  # fmt: skip

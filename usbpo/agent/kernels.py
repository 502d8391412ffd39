"""The policy's update on a GPU, forward and backward: five of the seven Triton kernels that `agent.fused` launches.

A program takes M rows through all layers of a network. An activation that the next layer reads goes through memory,
where the backward pass wants it anyway, since a program cannot take slices of its registers; the barrier behind each
layer makes it whole. Products take K columns at a time. Nothing is added up in an order that could change. The weights'
gradients and Adam's steps are the other two kernels, `usbpo.agent.step_kernels`.

Everything is float32 and row-major. Networks are flat buffers as `optimizer.flat_views` lays them out: weight and bias
of the first layer at W0 and B0, of the second at W1 and B1, of each further hidden layer HOP behind, of the last
at WL and BL. L hidden layers have H units each; R is the number of rows of a batch; A the number of actions, AP the
same padded; OBS the number of observations; WIDTH a row of the batch, (s, a, r) or (s', a', 1 − d).

PRECISION is that of a product: `tf32x3` splits each float32 into two parts and multiplies thrice on the matrix units,
as exact as float32 to a bit or two.
"""

# ruff: noqa: SIM108 – Triton takes no conditional expression of pointers
import triton
import triton.language as tl

LOG_STD_LOW, LOG_STD_HIGH = tl.constexpr(-20.0), tl.constexpr(2.0)
LOG_DENSITY_CONSTANT = tl.constexpr(2.305232894324563)


@triton.jit
def _hidden(
    below, stride, weight, bias, out,
    IN: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fill out (M, H) with relu(below (M, IN) @ weight (IN, H) + bias)."""
    rows, columns = tl.arange(0, M)[:, None], tl.arange(0, H)[None, :]
    total = tl.zeros((M, H), tl.float32)
    for start in range(0, IN, K):
        inner = start + tl.arange(0, K)
        x = tl.load(below + rows * stride + inner[None, :], mask=inner[None, :] < IN, other=0.0)
        w = tl.load(weight + inner[:, None] * H + columns, mask=inner[:, None] < IN, other=0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    total = tl.maximum(total + tl.load(bias + columns), 0.0)
    tl.store(out + rows * H + columns, total)
    tl.debug_barrier()


@triton.jit
def _all_hidden(
    inputs, stride, network, out, out_stride,
    W0: tl.constexpr, B0: tl.constexpr, W1: tl.constexpr, B1: tl.constexpr, HOP: tl.constexpr,
    IN: tl.constexpr, L: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K0: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """All hidden layers of a network; layer n is written out_stride numbers behind layer n − 1."""
    _hidden(inputs, stride, network + W0, network + B0, out, IN, H, M, K0, PRECISION)
    for n in tl.static_range(1, L):
        weight, bias = network + W1 + (n - 1) * HOP, network + B1 + (n - 1) * HOP
        _hidden(out + (n - 1) * out_stride, H, weight, bias, out + n * out_stride, H, H, M, K, PRECISION)


@triton.jit
def _value(
    hidden, network, WL: tl.constexpr, BL: tl.constexpr, H: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """The critic's values (M,) from the outputs of its last hidden layer (M, H)."""
    rows, columns = tl.arange(0, M)[:, None], tl.arange(0, H)[None, :]
    h = tl.load(hidden + rows * H + columns)
    return tl.sum(h * tl.load(network + WL + columns), axis=1) + tl.load(network + BL)


@triton.jit
def _gate(flowing, hidden, out, H: tl.constexpr, M: tl.constexpr):
    """Write the gradient before the ReLU from that behind it."""
    places = tl.arange(0, M)[:, None] * H + tl.arange(0, H)[None, :]
    tl.store(out + places, tl.where(tl.load(hidden + places) > 0.0, flowing, 0.0))
    tl.debug_barrier()


@triton.jit
def _down(
    network, hidden, hidden_stride, flows, flows_stride,
    W1: tl.constexpr, HOP: tl.constexpr, L: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """From the gradient before the last hidden layer's ReLU, already in flows, those of the layers below."""
    rows, columns = tl.arange(0, M)[:, None], tl.arange(0, H)[None, :]
    for up in tl.static_range(1, L):
        n = L - 1 - up
        above, weight = flows + (n + 1) * flows_stride, network + W1 + n * HOP
        total = tl.zeros((M, H), tl.float32)
        for start in range(0, H, K):
            inner = start + tl.arange(0, K)
            g = tl.load(above + rows * H + inner[None, :])
            w = tl.load(weight + columns * H + inner[:, None])
            total = tl.dot(g, w, total, input_precision=PRECISION)
        _gate(total, hidden + n * hidden_stride, flows + n * flows_stride, H, M)


@triton.jit
def act(
    batch, noise, actor, log_alpha, step_0, step_1, step_2, powers, betas,
    hidden, unclipped, deviations, actions, log_densities, alpha, chosen_inputs,
    W0: tl.constexpr, B0: tl.constexpr, W1: tl.constexpr, B1: tl.constexpr, HOP: tl.constexpr,
    WL: tl.constexpr, BL: tl.constexpr,
    OBS: tl.constexpr, OBSP: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, K0: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The policy's actions in present and next states and their log-densities; the steps counted. Grid: (2 R / M,).

    Actions in next states go into the batch, those in present states behind the states into chosen_inputs (R, OBS + A).
    """
    start = tl.program_id(0) * M
    if start == 0:
        tl.store(alpha, tl.exp(tl.load(log_alpha)))
        tl.store(step_0, tl.load(step_0) + 1.0)
        tl.store(step_1, tl.load(step_1) + 1.0)
        tl.store(step_2, tl.load(step_2) + 1.0)
        four = tl.arange(0, 4)
        tl.store(powers + four, tl.load(powers + four) * tl.load(betas + four))
    inputs, own = batch + start * WIDTH, hidden + start * H
    _all_hidden(inputs, WIDTH, actor, own, 2 * R * H, W0, B0, W1, B1, HOP, OBS, L, H, M, K0, K, PRECISION)

    rows, columns = tl.arange(0, M), tl.arange(0, AP)
    real = columns < A
    mean, log_std = tl.zeros((M, AP), tl.float32), tl.zeros((M, AP), tl.float32)
    for begin in range(0, H, K):
        inner = begin + tl.arange(0, K)
        x = tl.load(own + (L - 1) * 2 * R * H + rows[:, None] * H + inner[None, :])
        places = actor + WL + columns[None, :] * H + inner[:, None]
        mean = tl.dot(x, tl.load(places, mask=real[None, :], other=0.0), mean, input_precision=PRECISION)
        w = tl.load(places + A * H, mask=real[None, :], other=0.0)
        log_std = tl.dot(x, w, log_std, input_precision=PRECISION)
    mean += tl.load(actor + BL + columns, mask=real, other=0.0)[None, :]
    log_std += tl.load(actor + BL + A + columns, mask=real, other=0.0)[None, :]
    by_action = columns[None, :] * (2 * R) + (start + rows)[:, None]
    there = real[None, :] & (rows >= 0)[:, None]
    n = tl.load(noise + by_action, mask=there, other=0.0)
    clipped = tl.minimum(tl.maximum(log_std, LOG_STD_LOW), LOG_STD_HIGH)
    deviation = tl.exp(clipped) * n
    before = mean + deviation
    shrunk = tl.exp(
        -2.0 * tl.abs(before)
    )  # e^−2|u|: tanh u = ±(1 − e) / (1 + e), softplus(−2u) = max(−2u, 0) + log(1 + e)
    size = (1.0 - shrunk) / (1.0 + shrunk)
    action = tl.where(before < 0.0, -size, size)
    terms = 2.0 * (before + tl.maximum(-2.0 * before, 0.0) + tl.log(1.0 + shrunk)) - clipped - 0.5 * n * n
    density = tl.sum(tl.where(there, terms, 0.0), axis=1) - A * LOG_DENSITY_CONSTANT
    tl.store(log_densities + start + rows, density)
    tl.store(unclipped + by_action, log_std, mask=there)
    tl.store(deviations + by_action, deviation, mask=there)
    tl.store(actions + by_action, action, mask=there)
    if start >= R:
        tl.store(batch + (start + rows)[:, None] * WIDTH + OBS + columns[None, :], action, mask=there)
    else:
        out = chosen_inputs + (start + rows)[:, None] * (OBS + A)
        tl.store(out + OBS + columns[None, :], action, mask=there)
        states = tl.arange(0, OBSP)[None, :]
        copied = tl.load(inputs + rows[:, None] * WIDTH + states, mask=states < OBS, other=0.0)
        tl.store(out + states, copied, mask=states < OBS)


@triton.jit
def evaluate(
    batch, critics, targets, hidden, values,
    W0: tl.constexpr, B0: tl.constexpr, W1: tl.constexpr, B1: tl.constexpr, HOP: tl.constexpr,
    WL: tl.constexpr, BL: tl.constexpr,
    SIZE: tl.constexpr, IN: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, K0: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Values (4, R): of the critics in what was done, of the targets in what would be done next. Grid: (R / M, 4)."""
    start, which = tl.program_id(0) * M, tl.program_id(1)
    half = which // 2
    if half == 0:
        network = critics + which * SIZE
    else:
        network = targets + (which - 2) * SIZE
    inputs, own = batch + (half * R + start) * WIDTH, hidden + (which * R + start) * H
    _all_hidden(inputs, WIDTH, network, own, 4 * R * H, W0, B0, W1, B1, HOP, IN, L, H, M, K0, K, PRECISION)
    found = _value(own + (L - 1) * 4 * R * H, network, WL, BL, H, M)
    tl.store(values + which * R + start + tl.arange(0, M), found)


@triton.jit
def regress(
    batch, critics, hidden, values, log_densities, alpha, errors, of_values, flows,
    W1: tl.constexpr, HOP: tl.constexpr, WL: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr, DISCOUNT: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The critics' errors, and the gradients of their loss before each ReLU, flows (L, 2, R, H). Grid: (R / M, 2)."""
    start, which = tl.program_id(0) * M, tl.program_id(1)
    rows, columns = start + tl.arange(0, M), tl.arange(0, H)
    rewards, continues = tl.load(batch + (rows + 1) * WIDTH - 1), tl.load(batch + (R + rows + 1) * WIDTH - 1)
    next_value = tl.minimum(tl.load(values + 2 * R + rows), tl.load(values + 3 * R + rows))
    next_value -= tl.load(alpha) * tl.load(log_densities + R + rows)
    error = tl.load(values + which * R + rows) - (rewards + DISCOUNT * continues * next_value)
    of_value = error / R
    tl.store(errors + which * R + rows, error)
    tl.store(of_values + which * R + rows, of_value)
    network = critics + which * SIZE
    own, own_flows = hidden + (which * R + start) * H, flows + (which * R + start) * H
    top = of_value[:, None] * tl.load(network + WL + columns)[None, :]
    _gate(top, own + (L - 1) * 4 * R * H, own_flows + (L - 1) * 2 * R * H, H, M)
    _down(network, own, 4 * R * H, own_flows, 2 * R * H, W1, HOP, L, H, M, K, PRECISION)


@triton.jit
def differentiate(
    chosen_inputs, critics, hidden, flows, values, action_gradients,
    W0: tl.constexpr, B0: tl.constexpr, W1: tl.constexpr, B1: tl.constexpr, HOP: tl.constexpr,
    WL: tl.constexpr, BL: tl.constexpr,
    SIZE: tl.constexpr, OBS: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, R: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, K0: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both critics' values of the policy's actions, and their gradients (2, A, R) by the actions. Grid: (R / M, 2)."""
    start, which = tl.program_id(0) * M, tl.program_id(1)
    IN: tl.constexpr = OBS + A
    network, inputs = critics + which * SIZE, chosen_inputs + start * IN
    own, own_flows = hidden + (which * R + start) * H, flows + (which * R + start) * H
    _all_hidden(inputs, IN, network, own, 4 * R * H, W0, B0, W1, B1, HOP, IN, L, H, M, K0, K, PRECISION)
    rows, columns = tl.arange(0, M), tl.arange(0, H)
    tl.store(values + which * R + start + rows, _value(own + (L - 1) * 4 * R * H, network, WL, BL, H, M))
    top = tl.zeros((M, H), tl.float32) + tl.load(network + WL + columns)[None, :]
    _gate(top, own + (L - 1) * 4 * R * H, own_flows + (L - 1) * 2 * R * H, H, M)
    _down(network, own, 4 * R * H, own_flows, 2 * R * H, W1, HOP, L, H, M, K, PRECISION)
    actions = tl.arange(0, AP)
    total = tl.zeros((M, AP), tl.float32)
    for begin in range(0, H, K):
        inner = begin + tl.arange(0, K)
        g = tl.load(own_flows + rows[:, None] * H + inner[None, :])
        places = network + W0 + (OBS + actions)[None, :] * H + inner[:, None]
        w = tl.load(places, mask=(actions < A)[None, :], other=0.0)
        total = tl.dot(g, w, total, input_precision=PRECISION)
    out = action_gradients + (which * A + actions)[None, :] * R + (start + rows)[:, None]
    tl.store(out, total, mask=(actions < A)[None, :] & (rows >= 0)[:, None])


@triton.jit
def improve(
    actor, hidden, unclipped, deviations, actions, alpha, values, action_gradients, of_head, flows,
    W1: tl.constexpr, HOP: tl.constexpr, WL: tl.constexpr,
    A: tl.constexpr, AP: tl.constexpr, R: tl.constexpr,
    L: tl.constexpr, H: tl.constexpr, M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The actor's gradients, in the policy's outputs (2, A, R) and before each ReLU (L, R, H). Grid: (R / M,)."""
    start = tl.program_id(0) * M
    rows, columns, units = tl.arange(0, M), tl.arange(0, AP), tl.arange(0, H)
    there = (columns < A)[None, :] & (rows >= 0)[:, None]
    first = tl.load(values + start + rows) < tl.load(values + R + start + rows)
    place = columns[None, :] * R + (start + rows)[:, None]
    v = tl.load(action_gradients + place + tl.where(first, 0, A * R)[:, None], mask=there, other=0.0)
    by_action = columns[None, :] * (2 * R) + (start + rows)[:, None]
    a = tl.load(actions + by_action, mask=there, other=0.0)
    weight = tl.load(alpha)
    of_mean = ((v * a + 2.0 * weight) * a - v) / R
    log_std = tl.load(unclipped + by_action, mask=there, other=0.0)
    of_log_std = of_mean * tl.load(deviations + by_action, mask=there, other=0.0) - weight / R
    of_log_std = tl.where((log_std > LOG_STD_LOW) & (log_std < LOG_STD_HIGH) & there, of_log_std, 0.0)
    tl.store(of_head + place, of_mean, mask=there)
    tl.store(of_head + A * R + place, of_log_std, mask=there)

    head = actor + WL + columns[:, None] * H + units[None, :]
    inside = (columns < A)[:, None]
    top = tl.dot(of_mean, tl.load(head, mask=inside, other=0.0), input_precision=PRECISION)
    top = tl.dot(of_log_std, tl.load(head + A * H, mask=inside, other=0.0), top, input_precision=PRECISION)
    own, own_flows = hidden + start * H, flows + start * H
    _gate(top, own + (L - 1) * 2 * R * H, own_flows + (L - 1) * R * H, H, M)
    _down(actor, own, 2 * R * H, own_flows, R * H, W1, HOP, L, H, M, K, PRECISION)

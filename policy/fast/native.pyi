# See native.c: addresses, strides and counts of float32 memory, 0 for none. network: spare, block, inputs, outputs,
# is_packed, and of each layer weights, bias, gain, shift, back, stride, width.
VERSION: int
HAS_CLONES: int

def adam_step(
    loss: int,
    counters: int,
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    eps: float,
    max_norm: float,
    /,
    *each: int,
) -> None: ...
def denoise(
    states: int,
    per_state: int,
    level_sums: int,
    levels: int,
    noise: int,
    x: int,
    rows: int,
    steps: int,
    stop: int,
    /,
    *network: int,
) -> None: ...
def forward_each(
    states: int,
    per_state: int,
    x: int,
    out: int,
    count: int,
    rows: int,
    /,
    *network: int,
) -> None: ...
def ascent(
    states: int,
    per_state: int,
    x: int,
    gradient: int,
    count: int,
    rows: int,
    num_dropped: int,
    /,
    *network: int,
) -> None: ...
def product(
    x: int,
    row_stride: int,
    step_stride: int,
    weights: int,
    bias: int,
    out: int,
    rows: int,
    steps: int,
    width: int,
    /,
) -> None: ...
def first_sums(
    states: int,
    level: int,
    x: int,
    weights: int,
    sums: int,
    per_state: int,
    rows: int,
    width: int,
    inputs: int,
    /,
) -> None: ...
def mish(negated: int, values: int, count: int, /) -> None: ...
def mish_and_slope(negated: int, values: int, slopes: int, count: int, slope_count: int, /) -> None: ...
def norm_sigmoid(
    sums: int, gain: int, shift: int, values: int, inverse_stds: int, rows: int, width: int, /
) -> None: ...
def norm_sigmoid_back(
    gradient: int,
    values: int,
    normed: int,
    inverse_stds: int,
    gain: int,
    to_gain: int,
    to_shift: int,
    rows: int,
    width: int,
    /,
) -> None: ...
def quantile_huber(
    quantiles: int,
    atoms: int,
    tau: int,
    losses: int,
    derivatives: int,
    rows: int,
    num_quantiles: int,
    num_atoms: int,
    kappa: float,
    /,
) -> None: ...
def conservative_value(
    columns: int, values: int, num_critics: int, num_quantiles: int, rows: int, num_dropped: int, /
) -> None: ...
def value_weights(
    columns: int, weights: int, num_critics: int, num_quantiles: int, rows: int, num_dropped: int, /
) -> None: ...

"""Parameters of a linear query: chosen per job, in the manifest, checked by both ends (section 3).

R rows of the cover, Q tokens used on a matrix over all jobs, k banks whose answers are added,
N_c the sum of M_ic^2 over the rows, S the sum of N_c over the columns, s_i the squared change
that moving row i can make.

delta = floor(q / 2^t), sigma_f = delta / (24 sqrt k). An opened value is delta (M^T v)_c plus

    M^T e         within sigma_e sqrt(2 N_c ln 2^65) except with 2^-64 (e is sub-Gaussian)
    token error   within eps = 1 + 513 q / 2^reply_bits except with 2 exp(-64) (rlwe.py)
    k times rho   standard deviation delta / 24; 7/16 delta is 10.5 of them: 2^-78

and rounds correctly while these stay below delta / 2. The four conditions, each refused with the
figure to change:

    range         limb_max * max_c sum_i |M_ic| over customers < 2^(t-1)
    matrix        sigma_f >= sigma_e sqrt(Q S / (2 * 2^-5)): the whole matrix shows through all
                  answers at most 2^-5 nats of expected KL beyond M^T v
    row           sigma_f >= B_e sqrt(Q s_max / 2^-17): one row, zCDP Q B_e^2 s / (2 sigma_f^2)
                  of at most 2^-18
    noise         sigma_e sqrt(2 N_c ln 2^65) + eps <= delta / (16 k)

Both privacy bounds are those of an exact discrete Gaussian (Canonne, Kamath and Steinke 2020,
proposition 5). A department cannot know what M^T v shows by itself: that is the exposure budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ParameterError
from protocols.packing import packed_bytes
from protocols.ring import INNER, OUTER, PRIMES, Q
from protocols.sampling import ERROR_BOUND, ERROR_VARIANCE

MAX_BINS = 64
MAX_INTEGER_BOUND = 1 << 24  # an answer's partial sums stay below 2^62
MIN_T_BITS, MAX_T_BITS = 21, 40
MIN_REPLY_BITS, MAX_REPLY_BITS = 33, 48
MIN_COLUMNS_PER_REPLY, DEFAULT_COLUMNS_PER_REPLY = 2, 4
MIN_SLOTS = 8  # tokens are packed in powers of two, from here
MAX_LIMBS = 6
BATCH_TOKENS = 512  # a batch of more saves little and costs memory: 150 kB a token
MATRIX_NATS = 2.0**-5
ROW_ZCDP_DOUBLED = 2.0**-17
_TAIL = 2 * math.log(2.0**65)
Q_BITS = Q.bit_length()


@dataclass(frozen=True, slots=True)
class Layout:
    """What both sides know of one matrix: its shape, no data.

    Columns are numbered feature by feature, bin by bin, then the integer columns.
    """

    rows: int
    bins: tuple[int, ...]  # of each one-hot feature
    integer_bounds: tuple[int, ...] = ()  # largest |entry| of each integer column, declared

    def __post_init__(self) -> None:
        if not 1 <= self.rows < 1 << 31:
            raise ParameterError(f"a matrix has 1 to 2^31 rows, not {self.rows}")
        if any(not 1 <= count <= MAX_BINS for count in self.bins):
            raise ParameterError(f"a feature has 1 to {MAX_BINS} bins: merge bins")
        if any(not 1 <= bound <= MAX_INTEGER_BOUND for bound in self.integer_bounds):
            raise ParameterError(f"an integer column's bound is 1 to {MAX_INTEGER_BOUND}")
        if self.columns == 0:
            raise ParameterError("a matrix has at least one column")

    @property
    def features(self) -> int:
        return len(self.bins)

    @property
    def one_hot_columns(self) -> int:
        return sum(self.bins)

    @property
    def columns(self) -> int:
        return self.one_hot_columns + len(self.integer_bounds)

    @property
    def bounds(self) -> NDArray[np.int64]:
        """Largest |entry| of each column."""
        return np.array([1] * self.one_hot_columns + list(self.integer_bounds), np.int64)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the manifest fixes. `vmax` bounds |v|; each query carries one of its `limbs`."""

    t_bits: int
    reply_bits: int
    vmax: int
    tokens: int  # all that may be granted on the matrix, spent and burnt; limbs count one each
    banks: int = 1
    limbs: int = 1
    columns_per_reply: int = DEFAULT_COLUMNS_PER_REPLY

    def __post_init__(self) -> None:
        group = self.columns_per_reply
        if not MIN_T_BITS <= self.t_bits <= MAX_T_BITS:
            raise ParameterError(f"t_bits {self.t_bits} is not in {MIN_T_BITS}..{MAX_T_BITS}")
        if not MIN_REPLY_BITS <= self.reply_bits <= MAX_REPLY_BITS:
            raise ParameterError(
                f"reply_bits {self.reply_bits} is not in {MIN_REPLY_BITS}..{MAX_REPLY_BITS}"
            )
        if self.vmax < 1 or self.tokens < 1 or self.banks < 1 or self.limbs < 1:
            raise ParameterError("vmax, tokens, banks and limbs are at least 1")
        if self.limb_max >= 1 << (self.t_bits - 1):
            raise ParameterError(f"t_bits {self.t_bits} does not hold a value of {self.limb_max}")
        # One column a reply would leave the hint behind an LWE instance of dimension 2048 at 140
        # bits of modulus, 66 bits of security, once an active bank knows u (CRYPTO_REVIEW.md F6).
        if group < MIN_COLUMNS_PER_REPLY or group & (group - 1) or group * MIN_SLOTS > OUTER:
            raise ParameterError(
                f"columns_per_reply {group} is not a power of two from {MIN_COLUMNS_PER_REPLY}"
            )

    @property
    def delta(self) -> int:
        return Q >> self.t_bits

    @property
    def sigma_f(self) -> int:
        """Standard deviation of rho, an integer: floor(delta / (24 sqrt k))."""
        return math.isqrt(self.delta * self.delta // (576 * self.banks))

    @property
    def token_error(self) -> float:
        """eps, the bound on the error of y."""
        return 1 + 513 * Q / 2.0**self.reply_bits

    @property
    def batch_limit(self) -> int:
        """Tokens that one batch can hold: their columns share a reply of 8192 coefficients."""
        return OUTER // self.columns_per_reply

    @property
    def batch_tokens(self) -> int:
        """Tokens to ask for at once; a longer job takes several batches."""
        return min(self.tokens, self.batch_limit, BATCH_TOKENS)

    @property
    def limb_bits(self) -> int:
        return -(-(2 * self.vmax).bit_length() // self.limbs)

    @property
    def limb_max(self) -> int:
        """Largest |entry| of the vector that one query carries."""
        return self.vmax if self.limbs == 1 else 1 << (self.limb_bits - 1)

    def split(self, v: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """v as `limbs` vectors with v = sum_j 2^(j limb_bits) limb_j, each within `limb_max`."""
        if v.size and max(-int(v.min()), int(v.max())) > self.vmax:
            raise ParameterError(f"a value of v is beyond vmax {self.vmax}")
        limbs, rest, half = [], v.astype(np.int64), 1 << (self.limb_bits - 1)
        for _ in range(self.limbs - 1):
            low = ((rest + half) & (2 * half - 1)) - half
            limbs.append(low)
            rest = (rest - low) >> self.limb_bits
        return [*limbs, rest]

    def join(self, opened: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """M^T v from the openings of its limbs."""
        if len(opened) != self.limbs:
            raise ParameterError(f"{self.limbs} limbs expected, {len(opened)} given")
        weighted = [part << (j * self.limb_bits) for j, part in enumerate(opened)]
        total: NDArray[np.int64] = np.stack(weighted).sum(axis=0)
        return total


def choose_parameters(
    layouts: Sequence[Layout] | Layout,
    *,
    customers: int,
    vmax: int,
    tokens: int,
    banks: int = 1,
    integer_squares: Sequence[int] | None = None,
    tokens_before: int = 0,
) -> Parameters:
    """The tightest parameters that serve every layout; raises ParameterError if none does.

    vmax: bound of |v|. tokens: queries of this job, before limbs, whoever asks them of the matrix.
    tokens_before: those that earlier jobs used on it (all answers together show what they show).
    integer_squares: for a single layout, declared bounds of sum_i M_ic^2 (else rows * bound^2).
    """
    several = [layouts] if isinstance(layouts, Layout) else list(layouts)
    refusal: ParameterError | None = None
    for limbs in range(1, MAX_LIMBS + 1):
        try:
            parameters = _with_limbs(several, customers, vmax, tokens, banks, limbs)
            for layout in several:
                check_parameters(
                    parameters,
                    layout,
                    customers=customers,
                    integer_squares=integer_squares,
                    tokens_before=tokens_before,
                )
        except ParameterError as error:
            # More limbs help against a large v only; the first text names what was really asked
            # for.
            refusal = refusal or error
        else:
            return parameters
    raise refusal or ParameterError("no layout given")


def check_parameters(
    parameters: Parameters,
    layout: Layout,
    *,
    customers: int,
    column_sums: NDArray[np.int64] | None = None,
    integer_squares: Sequence[int] | None = None,
    tokens_before: int = 0,
) -> None:
    """The four conditions of section 3; raises ParameterError with the figure that has to change.

    column_sums: bound of sum_i |M_ic| over customers for every column, once the count query has
    opened them (for one-hot columns n_c); before, every customer may be in one bin.
    integer_squares: bounds of sum_i M_ic^2 over the cover, for every integer column.
    tokens_before: used on this matrix by earlier jobs.
    """
    squares = _integer_squares(layout, integer_squares)
    largest = _largest_sum(layout, customers, column_sums)
    if parameters.limb_max * largest >= 1 << (parameters.t_bits - 1):
        raise ParameterError(
            f"sums reach {parameters.limb_max * largest}, t_bits {parameters.t_bits} holds less "
            f"than {1 << (parameters.t_bits - 1)}: lower vmax, raise t_bits or use more limbs"
        )
    sigma_f, used = parameters.sigma_f, parameters.tokens + tokens_before
    all_squares = layout.features * layout.rows + sum(squares)
    needed = math.sqrt(ERROR_VARIANCE * used * all_squares / (2 * MATRIX_NATS))
    if sigma_f < needed:
        raise ParameterError(
            f"answers would show more than 2^-5 nats of the matrix: noise {sigma_f}, needed "
            f"{needed:.0f}; {_less_of(parameters)}"
        )
    row = 2 * layout.features + sum(4 * bound * bound for bound in layout.integer_bounds)
    needed = ERROR_BOUND * math.sqrt(used * row / ROW_ZCDP_DOUBLED)
    if sigma_f < needed:
        raise ParameterError(
            f"answers would show too much of one row: noise {sigma_f}, needed {needed:.0f}; "
            f"{_less_of(parameters)}"
        )
    noise = math.sqrt(ERROR_VARIANCE * _TAIL * max([layout.rows * bool(layout.bins), *squares]))
    noise += parameters.token_error
    if noise > parameters.delta / (16 * parameters.banks):
        raise ParameterError(
            f"noise {noise:.0f} is beyond a sixteenth of delta {parameters.delta} shared by "
            f"{parameters.banks} banks: raise reply_bits {parameters.reply_bits} or lower t_bits "
            f"{parameters.t_bits}"
        )


def _less_of(parameters: Parameters) -> str:
    return (
        f"ask for fewer tokens than {parameters.tokens}, use narrower integer columns or a smaller "
        f"vmax than {parameters.vmax} (t_bits {parameters.t_bits})"
    )


def slots(tokens: int) -> int:
    """Tokens of a batch with their padding: a power of two."""
    return max(MIN_SLOTS, 1 << (tokens - 1).bit_length())


def request_ciphertexts(tokens: int, columns_per_reply: int) -> int:
    return INNER * columns_per_reply * slots(tokens) // OUTER


def request_size_bytes(parameters: Parameters, tokens: int) -> int:
    """One batch's request: the same for every department and matrix."""
    ciphertexts = 1 + request_ciphertexts(tokens, parameters.columns_per_reply)
    return sum(packed_bytes(ciphertexts * OUTER, p.bit_length()) for p in PRIMES)


def reply_size_bytes(parameters: Parameters, columns: int, tokens: int) -> int:
    """One department's reply to one batch."""
    groups = -(-columns // parameters.columns_per_reply)
    wanted = groups * parameters.columns_per_reply * slots(tokens)
    bits = parameters.reply_bits
    return packed_bytes(wanted, bits) + packed_bytes(groups * OUTER, bits)


def query_size_bytes(rows: int) -> int:
    """One query."""
    return packed_bytes(rows, Q_BITS)


def answer_size_bytes(columns: int) -> int:
    """One department's answer to one query, or a forward mask."""
    return packed_bytes(columns, Q_BITS)


def _with_limbs(
    layouts: list[Layout], customers: int, vmax: int, tokens: int, banks: int, limbs: int
) -> Parameters:
    draft = Parameters(MAX_T_BITS, MAX_REPLY_BITS, vmax, tokens * limbs, banks, limbs)
    largest = draft.limb_max * max((_largest_sum(x, customers, None) for x in layouts), default=1)
    t_bits = max(MIN_T_BITS, largest.bit_length() + 1)
    if t_bits > MAX_T_BITS:
        raise ParameterError(f"sums reach {largest}: lower vmax {vmax} or the integer bounds")
    squares = [layout.rows * int(max(layout.bounds)) ** 2 for layout in layouts]
    room = (Q >> t_bits) / (16 * banks) - math.sqrt(
        ERROR_VARIANCE * _TAIL * max(squares, default=1)
    )
    reply_bits = MIN_REPLY_BITS
    while reply_bits < MAX_REPLY_BITS and 1 + 513 * Q / 2.0**reply_bits > room:
        reply_bits += 1
    columns = max((layout.columns for layout in layouts), default=1)
    group = _columns_per_reply(min(tokens * limbs, BATCH_TOKENS), columns, reply_bits)
    return Parameters(t_bits, reply_bits, vmax, tokens * limbs, banks, limbs, group)


def _columns_per_reply(tokens: int, columns: int, reply_bits: int) -> int:
    """The power of two from 4 with the least traffic: more columns a reply are a longer request.

    Computing time hardly depends on it: what the replies save the request costs.
    """

    def traffic(group: int) -> int:
        up = request_ciphertexts(tokens, group) * OUTER * sum(p.bit_length() for p in PRIMES)
        return up + -(-columns // group) * (OUTER + group * slots(tokens)) * reply_bits

    groups = [1 << k for k in range(2, 8) if (1 << k) * slots(tokens) <= OUTER]
    return min(groups, key=traffic)


def _largest_sum(layout: Layout, customers: int, column_sums: NDArray[np.int64] | None) -> int:
    if column_sums is None:
        return min(customers, layout.rows) * int(layout.bounds.max())
    if column_sums.shape != (layout.columns,):
        raise ParameterError(f"{layout.columns} column sums expected, got {column_sums.shape}")
    return int(column_sums.max())


def _integer_squares(layout: Layout, declared: Sequence[int] | None) -> list[int]:
    worst = [layout.rows * bound * bound for bound in layout.integer_bounds]
    if declared is None:
        return worst
    if len(declared) != len(worst):
        raise ParameterError(f"{len(worst)} sums of squares expected, {len(declared)} given")
    return [min(a, int(b)) for a, b in zip(worst, declared, strict=True)]

"""What noise costs and buys: differential privacy of sums over customers, by Google's accountant.

The mechanism is the sum of clipped gradients of customers that each bank draws independently with
probability `sample_rate`, with Gaussian noise of `noise` times the clip in all, `steps` times; and
before it, once and over everybody, the sums that the inputs are scaled by, with noise of the same
multiple. One bank more or less is not hidden by it, one *customer* more or less is.

Accounting  Renyi differential privacy of the Poisson-subsampled Gaussian (`dp-accounting`);
            neighbours differ by one customer added or removed
Discrete    the noise that is really added is discrete and the sum of several banks' draws; for
            steps as fine as ours it is the continuous one up to a negligible term (Kairouz, Liu and
            Steinke 2021, "The Distributed Discrete Gaussian Mechanism", theorem 1)
Not covered the hold-out customers, who are scored but not learned from
"""

from __future__ import annotations

from functools import cache


@cache
def epsilon_of(noise: float, sample_rate: float, steps: int, delta: float) -> float:
    """Epsilon after so many steps."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    step = PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise))
    accountant.compose(GaussianDpEvent(noise))
    accountant.compose(SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def noise_for(epsilon: float, sample_rate: float, steps: int, delta: float) -> float:
    """The least noise multiplier, to two decimals, that keeps within epsilon."""
    low, high = 0, 100_00
    if epsilon_of(high / 100, sample_rate, steps, delta) > epsilon:
        raise ValueError("no noise multiplier up to 100 keeps within this epsilon")
    while high - low > 1:
        middle = (low + high) // 2
        if epsilon_of(middle / 100, sample_rate, steps, delta) > epsilon:
            low = middle
        else:
            high = middle
    return high / 100

"""Black-Scholes: the price of a European call and its five first-order greeks, 1 M options.

Source: Black and Scholes, J. Political Economy 81 (1973), 637-654.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.workload import Arrays, Ops, Workload

SIZE = 1_000_000
ROOT_HALF = math.sqrt(0.5)


def inputs() -> Arrays:
    """Spot, strike, years to expiry, rate, volatility."""
    rng = np.random.default_rng(0)
    ranges = ((80.0, 120.0), (80.0, 120.0), (0.2, 2.0), (0.01, 0.05), (0.1, 0.5))
    return [low + (high - low) * rng.random(SIZE, dtype=np.float32) for low, high in ranges]


def expression(m: Ops, spot: Any, strike: Any, years: Any, rate: Any, vol: Any) -> Any:
    """The price; erf gives the normal distribution function."""
    spread = vol * m.sqrt(years)
    d1 = (m.log(spot / strike) + (rate + 0.5 * vol * vol) * years) / spread
    d2 = d1 - spread
    below1 = 0.5 * (1.0 + m.erf(d1 * ROOT_HALF))
    below2 = 0.5 * (1.0 + m.erf(d2 * ROOT_HALF))
    return spot * below1 - strike * m.exp(-rate * years) * below2


def closed_form(
    calls: int,
    spot: np.ndarray,
    strike: np.ndarray,
    years: np.ndarray,
    rate: np.ndarray,
    vol: np.ndarray,
) -> Arrays:
    """Sum of the prices, the prices, and their derivatives in the order of the inputs."""
    from scipy.special import erf

    root = np.sqrt(years)
    spread = vol * root
    d1 = (np.log(spot / strike) + (rate + 0.5 * vol * vol) * years) / spread
    below1 = 0.5 * (1.0 + erf(d1 * ROOT_HALF))
    below2 = 0.5 * (1.0 + erf((d1 - spread) * ROOT_HALF))
    discount = np.exp(-rate * years)
    price = spot * below1 - strike * discount * below2
    density = np.exp(-0.5 * d1 * d1) * (1.0 / math.sqrt(2.0 * math.pi))
    vega = spot * density * root
    owed = strike * discount * below2
    theta = 0.5 * vega * vol / years + rate * owed
    return [np.sum(price), price, below1, -discount * below2, theta, owed * years, vega]


WORKLOAD = Workload(
    name="black_scholes",
    title="Black-Scholes price and five greeks, 1 M options",
    inputs=inputs,
    closed_form=closed_form,
    tolerance=1e-4,  # d1 loses two digits where the volatility is small; the sum has 1 M terms
    kind="gradient and value",
    expression=expression,
)

"""Adam, compiled: one step, in the precision of the weights."""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from ssm_poison_lib._jit import compiled

__all__ = ["BETA_1", "BETA_2", "EPSILON", "adam_step"]

# Keras' defaults, which the authors use.
BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-7


@compiled(apart=True, forceinline=True)
@no_type_check
def adam_step(theta, moments, velocity, count, step, epoch):
    """Move the first `count` weights by one step of Adam, uphill along `velocity`.

    Args:
        theta: (P,) weights, changed in place.
        moments: (2, P) running means of the velocity and of its square, changed in place.
        velocity: (P,) minus the gradient.
        count: how many of the weights are trained.
        step: step size.
        epoch: number of this step, from 1.

    Source: Kingma and Ba, Adam, 2015, in the form before section 2.1's end: epsilon is added to
    the uncorrected root.
    """
    number = theta.dtype.type
    one = number(1)
    fresh_1 = one - number(BETA_1)
    fresh_2 = one - number(BETA_2)
    power_1 = number(np.float64(number(BETA_1)) ** epoch)
    power_2 = number(np.float64(number(BETA_2)) ** epoch)
    rate = number(step) * np.sqrt(one - power_2) / (one - power_1)
    epsilon = number(EPSILON)
    for i in range(count):
        v = velocity[i]
        moments[0, i] += (v - moments[0, i]) * fresh_1
        moments[1, i] += (v * v - moments[1, i]) * fresh_2
        theta[i] += (moments[0, i] * rate) / (np.sqrt(moments[1, i]) + epsilon)

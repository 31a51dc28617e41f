"""S4D: a state space model for each channel, complex poles, discretized by zero-order hold.

Letters as in Gu, Gupta, Goel, Re, "On the Parameterization and Initialization of Diagonal State
Space Models" (NeurIPS 2022): continuous poles A, step size Delta (dt), B = 1, output weights C,
skip D. H: channels, N: state dimension; complex entries come with their conjugates, so N / 2 are
stored.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from ssm_poison_lib._checks import as_choice, as_integer, as_scalar, as_seed
from ssm_poison_lib.architectures._input import check_input, check_state

__all__ = ["S4D"]


class S4D(nn.Module):
    """One S4D layer: h' = A h + x, y = Re(C h) + D x on each channel, then GELU and a gated linear
    unit.

    The starting poles are -1/2 + i pi n ("S4D-Lin"). `ssm` is the linear part alone.

    Args:
        channels: H >= 1.
        state_dim: N, even, >= 2 (default 64).
        dt_min: range of the starting step sizes, drawn log-uniformly.
        dt_max: range of the starting step sizes, drawn log-uniformly.
        seed: of the starting weights; None takes torch's own random state.

    Raises:
        ValueError: for values out of range.

    Source: the paper named above, section 3 and equation 7.
    """

    def __init__(
        self,
        channels: int,
        state_dim: int = 64,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        H = as_integer("channels", channels, low=1)
        N = as_integer("state_dim", state_dim, low=2)
        if N % 2:
            raise ValueError(f"state_dim must be even, for pairs of conjugate poles; got {N}")
        low = as_scalar("dt_min", dt_min, low=0.0, strict=True)
        high = as_scalar("dt_max", dt_max, low=low)
        if seed is not None:
            seed = as_seed("seed", seed)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            span = math.log(high) - math.log(low)
            self.log_dt = nn.Parameter(math.log(low) + span * torch.rand(H))  # (H,)
            self.log_A_real = nn.Parameter(torch.full((H, N // 2), math.log(0.5)))  # (H, N/2)
            # (H, N/2)
            self.A_imag = nn.Parameter(math.pi * torch.arange(N // 2).repeat(H, 1).float())
            # Real and imaginary parts along the last axis, so that .float() and .double() reach
            # them.
            self.C = nn.Parameter(torch.randn(H, N // 2, 2) * math.sqrt(0.5))  # (H, N/2, 2)
            self.D = nn.Parameter(torch.randn(H))  # (H,)
            self.output = nn.Linear(H, 2 * H)
        self.channels, self.state_dim = H, N

    def discretize(self) -> tuple[Complex[Tensor, "H n"], Complex[Tensor, "H n"]]:
        """Return the poles a = exp(dt A) and the input weights b = (a - 1) / A of one step, (H,
        N/2) each.
        """
        dt = self.log_dt.exp()[:, None]  # (H, 1)
        z = dt * torch.complex(-self.log_A_real.exp(), self.A_imag)  # (H, N/2), dt A
        small = z.abs() < 1e-4  # there (a - 1) / z would cancel: its series 1 + z/2 + z^2/6 instead
        safe = torch.where(small, torch.ones_like(z), z)
        ratio = torch.where(small, 1 + z / 2 + z * z / 6, (safe.exp() - 1) / safe)
        return z.exp(), dt * ratio

    def kernel(self, length: int) -> Float[Tensor, "H length"]:
        """Return the impulse response M_m = 2 Re sum_n C_n b_n a_n^m for lags m = 0 .. length-1,
        (H, length).

        Args:
            length: number of lags, >= 1
        """
        length = as_integer("length", length, low=1)
        dt = self.log_dt.exp()[:, None]
        z = dt * torch.complex(-self.log_A_real.exp(), self.A_imag)  # (H, N/2)
        weight = torch.view_as_complex(self.C) * self.discretize()[1]  # (H, N/2)
        # a^m for m = i s + j is a^(i s) a^j: two short tables of powers and one product in place of
        # length powers.
        s = math.isqrt(length - 1) + 1
        steps = torch.arange(s, device=z.device, dtype=dt.dtype)
        fine = (z[..., None] * steps).exp()  # (H, N/2, s), a^j
        coarse = weight[..., None] * (z[..., None] * (s * steps)).exp()  # (H, N/2, s), C b a^(i s)
        return 2 * (coarse.mT @ fine).real.flatten(1)[:, :length]  # (H, s, s) -> (H, length)

    def ssm(self, x: Tensor, method: str = "convolution") -> Float[Tensor, "batch length H"]:
        """Return the linear part, y_t = sum_m M_m x_{t-m} + D x_t.

        Args:
            x: (batch, length, H).
            method: "convolution" (by FFT) or "recurrence" (step by step); equal up to rounding.
        """
        x = check_input("x", x, self, ("batch", "length", self.channels))
        if as_choice("method", method, ("convolution", "recurrence")) == "recurrence":
            state, outputs = self.initial_state(len(x)), []
            for t in range(x.shape[1]):
                y, state = self._step(x[:, t], state)
                outputs.append(y)
            return torch.stack(outputs, dim=1)
        length = x.shape[1]
        response = torch.fft.rfft(self.kernel(length), n=2 * length)  # (H, length + 1)
        signal = torch.fft.rfft(x.mT, n=2 * length)  # (batch, H, length + 1)
        y = torch.fft.irfft(signal * response, n=2 * length)[..., :length]  # (batch, H, length)
        return self.D * x + y.mT  # in this order it lies in memory as x does

    def forward(self, x: Tensor, method: str = "convolution") -> Float[Tensor, "batch length H"]:
        """Return GLU(W gelu(ssm(x)) + bias), (batch, length, H); arguments as in `ssm`.

        Args:
            x: (batch, length, H)
            method: "convolution" (by FFT) or "recurrence" (step by step); equal up to rounding
        """
        return self._mix(self.ssm(x, method))

    def initial_state(self, batch: int) -> Complex[Tensor, "batch H n"]:
        """Return the state before the first step, zeros (batch, H, N/2).

        Args:
            batch: number of sequences, >= 1
        """
        z = torch.view_as_complex(self.C)
        return z.new_zeros((as_integer("batch", batch, low=1), *z.shape))

    def step(
        self, x: Tensor, state: Tensor
    ) -> tuple[Float[Tensor, "batch H"], Complex[Tensor, "batch H n"]]:
        """Return the output at one time step and the next state: x (batch, H), state (batch, H,
        N/2).

        Args:
            x: (batch, H), the inputs of one time step
            state: as `initial_state` makes it, (batch, ...)

        Raises:
            TypeError: for anything but tensors.
            ValueError: for another shape, dtype or device, NaN or infinity.
        """
        x = check_input("x", x, self, ("batch", self.channels))
        y, state = self._step(x, check_state("state", state, self.initial_state(len(x))))
        return self._mix(y), state

    def _step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.discretize()
        state = a * state + b * x[..., None]  # (batch, H, N/2)
        y = 2 * (torch.view_as_complex(self.C) * state).real.sum(dim=-1)  # (batch, H)
        return y + self.D * x, state

    def _mix(self, y: Tensor) -> Tensor:
        return F.glu(self.output(F.gelu(y)), dim=-1)

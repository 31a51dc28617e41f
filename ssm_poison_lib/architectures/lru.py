"""LRU, the linear recurrent unit: complex poles inside the unit disc, one state for all channels.

Letters as in Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu, De, "Resurrecting Recurrent Neural
Networks for Long Sequences" (ICML 2023): poles lambda = exp(-exp(nu) + i exp(theta)), input weights
B normalized by gamma, output weights C, skip D. H: channels, N: state dimension (complex entries).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from ssm_poison_lib._checks import as_choice, as_flag, as_integer, as_scalar, as_seed
from ssm_poison_lib.architectures._input import check_input, check_state

__all__ = ["LRU"]


class LRU(nn.Module):
    """One LRU layer: h_t = lambda h_{t-1} + gamma (B x_t), y_t = Re(C h_t) + D x_t; linear.

    Args:
        channels: H >= 1.
        state_dim: N >= 1.
        r_min: range of the starting abs(lambda), uniform on the ring; 0 <= r_min < r_max <= 1.
        r_max: range of the starting abs(lambda), uniform on the ring; 0 <= r_min < r_max <= 1.
        max_phase: starting phases are uniform in (0, max_phase), radians.
        depthwise: True makes a state of N entries for every channel, with the poles shared and no
            gamma, as the paper on poisoning has it; False (default) mixes all channels, as
            published.
        seed: of the starting weights; None takes torch's own random state.

    Raises:
        ValueError: for values out of range.

    Source: the paper named above, section 3 and appendix A; depthwise: the code of the paper on
    poisoning.
    """

    def __init__(
        self,
        channels: int,
        state_dim: int = 64,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        depthwise: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        H = as_integer("channels", channels, low=1)
        N = as_integer("state_dim", state_dim, low=1)
        low = as_scalar("r_min", r_min, low=0.0)
        high = as_scalar("r_max", r_max, low=low, strict=True)
        if high > 1.0:
            raise ValueError(f"r_max must be at most 1, or states grow; got {r_max!r}")
        top = as_scalar("max_phase", max_phase, low=0.0, strict=True)
        depthwise = as_flag("depthwise", depthwise)
        if seed is not None:
            seed = as_seed("seed", seed)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            # abs(lambda)^2 uniform in (low^2, high^2); open at both ends, where the logarithms are
            # infinite
            u, v = (torch.rand(N).clamp(1e-6, 1 - 1e-6) for _ in range(2))
            squared = u * (high**2 - low**2) + low**2
            self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(squared)))  # (N,)
            self.theta_log = nn.Parameter(torch.log(top * v))  # (N,)
            if depthwise:
                self.B_re, self.B_im = (nn.Parameter(torch.randn(H, N)) for _ in range(2))  # (H, N)
            else:
                size = math.sqrt(2 * H)
                # (N, H)
                self.B_re, self.B_im = (nn.Parameter(torch.randn(N, H) / size) for _ in range(2))
                self.gamma_log = nn.Parameter(0.5 * torch.log(1 - squared))  # (N,)
            self.C_re, self.C_im = (
                nn.Parameter(torch.randn(H, N) / math.sqrt(N)) for _ in range(2)
            )
            self.D = nn.Parameter(torch.randn(H))  # (H,)
        self.channels, self.state_dim, self.depthwise = H, N, depthwise

    def poles(self) -> Complex[Tensor, " N"]:
        """Return lambda, (N,): abs(lambda) < 1 whatever the parameters are."""
        return self._log_poles().exp()

    def _log_poles(self) -> Tensor:
        return torch.complex(-self.nu_log.exp(), self.theta_log.exp())

    def _drive(self, x: Tensor) -> Tensor:
        """Return what enters the state at a step: (..., H) -> (..., N), depthwise (..., H, N)."""
        B = torch.complex(self.B_re, self.B_im)
        if self.depthwise:
            return B * x[..., None]
        return (x.to(B.dtype) @ B.mT) * self.gamma_log.exp()

    def _read(self, state: Tensor, x: Tensor) -> Tensor:
        C = torch.complex(self.C_re, self.C_im)
        y = (C * state).sum(dim=-1).real if self.depthwise else (state @ C.mT).real
        return y + self.D * x

    def forward(self, x: Tensor, method: str = "scan") -> Float[Tensor, "batch length H"]:
        """Return the output at every step, (batch, length, H).

        Args:
            x: (batch, length, H).
            method: "scan" (all blocks of sqrt(length) steps at once, then their ends),
                "convolution" (by FFT) or "recurrence" (step by step); equal up to rounding.
        """
        x = check_input("x", x, self, ("batch", "length", self.channels))
        method = as_choice("method", method, ("scan", "convolution", "recurrence"))
        drive = self._drive(x)  # (batch, length, N), depthwise (batch, length, H, N)
        if method == "recurrence":
            state, states = torch.zeros_like(drive[:, 0]), []
            for t in range(x.shape[1]):
                state = self.poles() * state + drive[:, t]
                states.append(state)
            return self._read(torch.stack(states, dim=1), x)
        return self._read(
            self._convolve(drive) if method == "convolution" else self._scan(drive), x
        )

    def _convolve(self, drive: Tensor) -> Tensor:
        """h_t = sum_m lambda^m drive_{t-m}, by FFT of twice the length so that nothing wraps
        around.
        """
        length = drive.shape[1]
        lags = torch.arange(length, device=drive.device, dtype=self.nu_log.dtype)
        powers = (lags[:, None] * self._log_poles()).exp()  # (length, N)
        if self.depthwise:
            powers = powers[:, None]  # (length, 1, N)
        spectrum = torch.fft.fft(powers, n=2 * length, dim=0) * torch.fft.fft(
            drive, n=2 * length, dim=1
        )
        return torch.fft.ifft(spectrum, dim=1)[:, :length]

    def _scan(self, drive: Tensor) -> Tensor:
        """The recurrence within all blocks side by side, then from block to block."""
        batch, length = drive.shape[:2]
        s = math.isqrt(length - 1) + 1  # steps in a block; the last block is filled up with zeros
        blocks = -(-length // s)
        padded = torch.cat(
            [drive, drive.new_zeros(batch, blocks * s - length, *drive.shape[2:])], dim=1
        )
        # Steps first: what one step of all blocks reads then lies together in memory.
        # (s, batch, blocks, ...)
        inside = padded.unflatten(1, (blocks, s)).movedim(2, 0).contiguous()
        pole, state, within = self.poles(), torch.zeros_like(inside[0]), []
        for entering in inside.unbind():
            state = torch.addcmul(entering, pole, state)  # entering + pole * state
            within.append(state)
        steps = torch.arange(1, s + 1, device=drive.device, dtype=self.nu_log.dtype)
        powers = (steps[:, None] * self._log_poles()).exp()  # (s, N), lambda^1 .. lambda^s
        before, starts = torch.zeros_like(state[:, 0]), []
        for end in state.unbind(1):
            starts.append(before)  # the state in which a block begins
            before = torch.addcmul(end, powers[-1], before)
        carry = torch.stack(starts, dim=1)  # (batch, blocks, ...)
        decay = powers.view(s, *[1] * (carry.ndim - 1), -1)
        states = torch.addcmul(torch.stack(within), decay, carry)  # (s, batch, blocks, ...)
        return states.movedim(0, 2).flatten(1, 2)[:, :length]

    def initial_state(self, batch: int) -> Complex[Tensor, "batch ..."]:
        """Return the state before the first step, zeros (batch, N), depthwise (batch, H, N).

        Args:
            batch: number of sequences, >= 1
        """
        batch = as_integer("batch", batch, low=1)
        shape = (self.channels, self.state_dim) if self.depthwise else (self.state_dim,)
        return self.poles().new_zeros((batch, *shape))

    def step(
        self, x: Tensor, state: Tensor
    ) -> tuple[Float[Tensor, "batch H"], Complex[Tensor, "batch ..."]]:
        """Return the output at one time step and the next state: x (batch, H), state as in
        `initial_state`.

        Args:
            x: (batch, H), the inputs of one time step
            state: as `initial_state` makes it, (batch, ...)

        Raises:
            TypeError: for anything but tensors.
            ValueError: for another shape, dtype or device, NaN or infinity.
        """
        x = check_input("x", x, self, ("batch", self.channels))
        state = check_state("state", state, self.initial_state(len(x)))
        state = self.poles() * state + self._drive(x)
        return self._read(state, x), state

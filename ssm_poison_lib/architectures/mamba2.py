"""Mamba-2: a state space model whose decay, input and output weights depend on the input.

Letters as in Dao, Gu, "Transformers are SSMs" (ICML 2024): per head h_t = exp(dt_t A) h_{t-1} +
dt_t B_t x_t, y_t = C_t h_t + D x_t, with dt, B, C read off the input. H: channels (d_model), E =
expand H: inner channels, K heads of P = head_dim channels (K P = E), N: state dimension, Q: chunk.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssm_poison_lib._checks import as_choice, as_integer, as_seed
from ssm_poison_lib.architectures._input import check_input, check_state

__all__ = ["Mamba2"]

State = tuple[Float[Tensor, "batch width conv"], Float[Tensor, "batch K P N"]]


class Mamba2(nn.Module):
    """One Mamba-2 layer (one group): projection, short convolution, selective SSM, gated norm,
    projection.

    Args:
        channels: H >= 1.
        state_dim: N >= 1.
        head_dim: P, a divisor of expand * channels.
        expand: E / H >= 1.
        conv_width: taps of the causal convolution, >= 1.
        chunk: Q >= 1, steps that the chunked form treats at once.
        seed: of the starting weights; None takes torch's own random state.

    Raises:
        ValueError: for values out of range.

    Source: the paper named above, sections 6 and 7.
    """

    def __init__(
        self,
        channels: int,
        state_dim: int = 64,
        *,
        head_dim: int = 64,
        expand: int = 2,
        conv_width: int = 4,
        chunk: int = 64,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        H = as_integer("channels", channels, low=1)
        N = as_integer("state_dim", state_dim, low=1)
        E = H * as_integer("expand", expand, low=1)
        P = as_integer("head_dim", head_dim, low=1)
        if E % P:
            raise ValueError(f"head_dim must divide expand * channels = {E}; got {P}")
        K = E // P
        width = as_integer("conv_width", conv_width, low=1)
        self.chunk = as_integer("chunk", chunk, low=1)
        if seed is not None:
            seed = as_seed("seed", seed)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.in_proj = nn.Linear(H, 2 * E + 2 * N + K, bias=False)  # z, x, B, C, dt
            self.conv = nn.Conv1d(E + 2 * N, E + 2 * N, width, groups=E + 2 * N)
            dt = torch.exp(torch.rand(K) * math.log(1e-1 / 1e-3) + math.log(1e-3))
            # (K,), softplus of it is dt
            self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
            self.A_log = nn.Parameter(torch.log(1 + 15 * torch.rand(K)))  # (K,), A = -exp(A_log)
            self.D = nn.Parameter(torch.ones(K))  # (K,)
            self.norm_weight = nn.Parameter(torch.ones(E))  # (E,)
            self.out_proj = nn.Linear(E, H, bias=False)
        self.channels, self.state_dim, self.inner, self.heads, self.head_dim = H, N, E, K, P

    def forward(self, x: Tensor, method: str = "chunked") -> Float[Tensor, "batch length H"]:
        """Return the output at every step, (batch, length, H).

        Args:
            x: (batch, length, H).
            method: "chunked", "quadratic" (one chunk: a masked attention, O(length^2)) or
                "recurrence" (step by step); equal up to rounding.
        """
        x = check_input("x", x, self, ("batch", "length", self.channels))
        method = as_choice("method", method, ("chunked", "quadratic", "recurrence"))
        if method == "recurrence":
            state, outputs = self.initial_state(len(x)), []
            for t in range(x.shape[1]):
                y, state = self._step(x[:, t], state)
                outputs.append(y)
            return torch.stack(outputs, dim=1)
        z, xBC, dt = self._project(x)
        u, B, C, dt, decay = self._select(self._convolve(xBC), dt)
        y = self._ssd(u, B, C, dt, decay, x.shape[1] if method == "quadratic" else self.chunk)
        return self._read(y + self.D[:, None] * u, z)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        E, N = self.inner, self.state_dim
        return torch.split(self.in_proj(x), [E, E + 2 * N, self.heads], dim=-1)

    def _convolve(self, x: Tensor) -> Tensor:
        """Return the causal convolution, a sum of shifted products: (batch, length, E + 2N), as x.

        The same as `conv` of what is padded, whose derivatives are slow on a processor.
        """
        weight = self.conv.weight[:, 0]  # (E + 2N, width), the last tap reads the present
        past = F.pad(x, (0, 0, weight.shape[1] - 1, 0))  # (batch, width - 1 + length, E + 2N)
        assert self.conv.bias is not None
        y = self.conv.bias
        for k, tap in enumerate(weight.unbind(dim=1)):
            y = y + past[:, k : k + x.shape[1]] * tap
        return y

    def _select(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, ...]:
        """Return u (..., K, P), B (..., N), C (..., N), dt (..., K) and the log decay dt A (...,
        K).
        """
        u, B, C = torch.split(F.silu(xBC), [self.inner, self.state_dim, self.state_dim], dim=-1)
        dt = F.softplus(dt + self.dt_bias)
        return u.unflatten(-1, (self.heads, self.head_dim)), B, C, dt, -dt * self.A_log.exp()

    def _ssd(
        self, u: Tensor, B: Tensor, C: Tensor, dt: Tensor, decay: Tensor, chunk: int
    ) -> Tensor:
        """Return sum_{s <= t} exp(sum_{r = s+1}^t decay_r) (C_t . B_s) dt_s u_s, chunk by chunk."""
        length = u.shape[1]
        Q = min(chunk, length)
        count = -(-length // Q)

        # (batch, length, ...) -> (batch, chunks, Q, ...), zeros at the end
        def cut(v: Tensor) -> Tensor:
            if count * Q > length:
                v = F.pad(v, [0, 0] * (v.ndim - 2) + [0, count * Q - length])
            return v.unflatten(1, (count, Q))

        # (b, c, Q, K, P), (b, c, Q, N), (b, c, Q, N)
        v, B, C = cut(u * dt[..., None]), cut(B), cut(C)
        decay = cut(decay).movedim(-1, 2)  # (b, c, K, Q)
        # Within a chunk: attention with the mask exp(sum of decays from s+1 to t). Sums of their
        # own, not differences of one running sum, which lose their digits.
        later = torch.ones(Q, Q, dtype=torch.bool, device=u.device).tril(-1)  # t > s
        terms = torch.where(later, decay[..., None], 0.0)  # (b, c, K, Q, Q)
        mask = terms.cumsum(dim=-2).exp()  # 1 where t < s, and there the scores are zero
        scores = torch.einsum("bctn,bcsn->bcts", C, B).tril()
        y = (scores[:, :, None] * mask) @ v.movedim(-2, 2)  # (b, c, K, Q, P)
        if count > 1:  # across chunks: what each leaves behind, and how it fades
            left = mask[..., -1, :]  # (b, c, K, Q), decay from s to the chunk's end
            ends = torch.einsum("bckq,bcqn,bcqkp->bckpn", left, B, v)
            fade = decay.sum(dim=-1).exp()[..., None, None]  # (b, c, K, 1, 1)
            state, starts = torch.zeros_like(ends[:, 0]), []
            for c in range(count):
                starts.append(state)
                state = fade[:, c] * state + ends[:, c]
            begun = torch.einsum("bctn,bckpn->bcktp", C, torch.stack(starts, dim=1))
            y = y + begun * decay.cumsum(dim=-1).exp()[..., None]
        return y.movedim(2, 3).flatten(1, 2)[:, :length]  # (batch, length, K, P)

    def _read(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate by z, divide by the root mean square, project: (..., K, P), (..., E) -> (..., H)."""
        gated = y.flatten(-2) * F.silu(z)
        size = torch.rsqrt(gated.square().mean(dim=-1, keepdim=True) + 1e-5)
        return self.out_proj(gated * size * self.norm_weight)

    def initial_state(self, batch: int) -> State:
        """Return the state before the first step: the last inputs of the convolution and h, zeros.

        Args:
            batch: number of sequences, >= 1
        """
        batch = as_integer("batch", batch, low=1)
        width, inner = self.conv.kernel_size[0] - 1, self.conv.in_channels
        return (
            self.D.new_zeros(batch, width, inner),
            self.D.new_zeros(batch, self.heads, self.head_dim, self.state_dim),
        )

    def step(
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch H"], State]:
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
        if not isinstance(state, tuple) or len(state) != 2:
            raise TypeError(f"state must be a pair of tensors; got {type(state).__name__}")
        zeros = self.initial_state(len(x))
        for k in (0, 1):
            check_state(f"state[{k}]", state[k], zeros[k])
        return self._step(x, state)

    def _step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        past, h = state
        z, xBC, dt = self._project(x)
        past = torch.cat([past, xBC[:, None]], dim=1)  # (batch, width, E + 2N)
        u, B, C, dt, decay = self._select(self.conv(past.mT)[..., 0], dt)
        h = decay.exp()[..., None, None] * h + torch.einsum("bk,bkp,bn->bkpn", dt, u, B)
        y = torch.einsum("bkpn,bn->bkp", h, C) + self.D[:, None] * u
        return self._read(y, z), (past[:, 1:], h)

"""Random numbers that depend on names and sample ids, never on what was drawn before.

Two kinds are needed. A *stream* is a generator seeded by a run seed and a name; what one method draws from
its stream cannot shift what another one sees. A *draw per sample* is a pure function of (seed, sample id,
view, purpose), so that a view can be rebuilt at any time, in any process and in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every name, in order."""
    text = "/".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator for the purpose that `names` spell out."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextmanager
def isolated(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generator for the block and give it back as it was.

    For code that draws from global state and takes no generator, such as parameter initialisation.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive(seed, *names))
        yield


def uniform(
    seed: int, ids: torch.Tensor, views: torch.Tensor, purpose: str, count: int = 1
) -> torch.Tensor:
    """Draw `count` numbers in [0, 1) for each sample.

    Args:
        seed: the run's seed.
        ids: int64 [B], stable sample ids.
        views: int64 [B], view number of each sample.
        purpose: what the numbers are for; two purposes are independent.
        count: numbers per sample.

    Returns:
        float32 [B, count] on the CPU. The numbers are SplitMix64 hashes (Steele, Lea and Flood, OOPSLA 2014) of the
        arguments: equal arguments give equal numbers in any process and any batch.
    """
    key = np.uint64(derive(seed, purpose))
    with np.errstate(over="ignore"):
        state = _mix(ids.cpu().numpy().astype(np.uint64) + key)
        state = _mix(state ^ (views.cpu().numpy().astype(np.uint64) * _GOLDEN + key))
        counters = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(state[:, None] + counters[None, :])
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24))


def uniform_on_device(
    seed: int, ids: torch.Tensor, views: torch.Tensor, purpose: str, count: int = 1
) -> torch.Tensor:
    """Draw the numbers of `uniform` where the ids are: no accelerator waits for the CPU.

    Args:
        seed: see `uniform`.
        ids: int64 [B].
        views: int64 [B] on the same device; any counter that tells draws for one sample apart.
        purpose: see `uniform`.
        count: see `uniform`.

    Returns:
        float32 [B, count] on the device of the ids, bit for bit what `uniform` gives.
    """
    key, golden = derive(seed, purpose), _signed(_GOLDEN)
    state = _mix_on_device(ids + key)
    state = _mix_on_device(state ^ (views * golden + key))
    counters = torch.arange(1, count + 1, device=ids.device) * golden
    bits = _mix_on_device(state.unsqueeze(1) + counters)
    return _shifted_right(bits, 40).float() * 2.0**-24


def _mix(state: np.ndarray) -> np.ndarray:
    """Apply the SplitMix64 finaliser to uint64 values."""
    with np.errstate(over="ignore"):
        state = state + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        return np.asarray(state ^ (state >> np.uint64(31)))


def _mix_on_device(state: torch.Tensor) -> torch.Tensor:
    """Apply `_mix` to int64 values, which wrap around as uint64 do; the argument is overwritten."""
    state.add_(_signed(_GOLDEN))
    state.bitwise_xor_(_shifted_right(state, 30)).mul_(_signed(_MIX_1))
    state.bitwise_xor_(_shifted_right(state, 27)).mul_(_signed(_MIX_2))
    return state.bitwise_xor_(_shifted_right(state, 31))


def _shifted_right(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift int64 values as if they were unsigned: what comes in from the left is 0, not the sign."""
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(constant: np.uint64) -> int:
    """Return the int64 with the same bits."""
    return int(constant.astype(np.int64))

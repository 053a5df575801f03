"""Moving host tensors to where the models are."""

from __future__ import annotations

import torch


def place(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `tensor` on `device`.

    To a CUDA device the copy goes through pinned memory and does not wait: kernels queued after it
    see the data, and the host runs on.
    """
    if tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)

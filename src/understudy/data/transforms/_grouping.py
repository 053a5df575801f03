"""Applying to each sample its own choice of operation, each operation once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from understudy.data.placement import place


def by_choice(
    images: torch.Tensor,
    choice: torch.Tensor,
    apply: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Sort the batch by choice, run each operation on its stretch, and undo the sorting.

    Args:
        images: [B, C, H, W].
        choice: int64 [B] on the CPU, which operation each sample gets. Being on the CPU, the sizes
            of the groups are known without waiting for the device.
        apply: called as apply(operation, images of the group, int64 members of the group in the
            batch, on the images' device); returns images of the same shape and type.

    Returns:
        [B, C, H, W] in the batch's order.
    """
    order = torch.argsort(choice, stable=True)
    members = place(order, images.device)
    sorted_images = images.index_select(0, members)
    start = 0
    for operation, size in enumerate(torch.bincount(choice).tolist()):
        stop = start + size
        if size:
            group = sorted_images[start:stop]
            changed = apply(operation, group, members[start:stop])
            if changed is not group:
                group.copy_(changed)
        start = stop
    back = place(torch.argsort(order), images.device)
    return sorted_images.index_select(0, back)

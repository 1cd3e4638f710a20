"""Which values of a tensor are masks, not numbers."""

from __future__ import annotations

import torch

MASK_SENTINEL = torch.finfo(torch.float32).min / 2
"""At or below it a float32 value is a mask, not a number: no activation comes near 1.7e38."""

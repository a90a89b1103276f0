"""Soft clDice forward and backward, against MONAI's.

    python benchmarks/soft_cldice.py > docs/results/soft_cldice.jsonl

Logits 4x1x256x256 of drawn vessels with noise, 10 iterations. Turns alternate, and the median of the ratios counts,
because machines are noisy. Bytes are those of all tensors that autograd keeps between forward and backward, each
storage once, without the logits and the target themselves. Values are compared where both mean the same: MONAI mirrors
the image at its border, so the border is background here.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from monai.losses import SoftclDiceLoss
from torch.nn import functional as F

from biocnn.losses import SoftClDice

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def draw(size: int, margin: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and truth (4, 1, size, size): blobs of smoothed noise, with background in the margin."""
    inner = size - 2 * margin
    noise = F.avg_pool2d(torch.randn(4, 1, inner + 16, inner + 16, generator=generator), 17, 1)
    target = F.pad((noise.abs() < 0.4 * noise.std()).float(), (margin,) * 4)
    logits = 6 * target - 3 + 2 * torch.randn(target.shape, generator=generator)
    return torch.where(F.pad(torch.ones_like(noise), (margin,) * 4) > 0, logits, -3.0).requires_grad_(), target


def seconds(function: Function, logits: torch.Tensor, target: torch.Tensor) -> float:
    logits.grad = None
    start = time.perf_counter()
    function(logits, target).backward()
    return time.perf_counter() - start


def kept_bytes(function: Function, logits: torch.Tensor, target: torch.Tensor) -> int:
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(logits, target)
    given = {tensor.untyped_storage().data_ptr() for tensor in (logits, target)}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logits, target = draw(options.size, options.iterations + 2, torch.Generator().manual_seed(0))
    contestants: dict[str, Function] = {
        "biocnn": SoftClDice(options.iterations),
        # Its constant in the denominator of the harmonic mean moves the value by 5e-5; the paper has none.
        "monai": SoftclDiceLoss(iter_=options.iterations, sigmoid=True, smooth=1e-12),
    }
    for function in contestants.values():
        seconds(function, logits, target)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.turns):
        for name, function in contestants.items():
            times[name].append(seconds(function, logits, target))
    values = {name: function(logits, target).item() for name, function in contestants.items()}
    for name, function in contestants.items():
        kept = kept_bytes(function, logits, target)
        line = {
            "contestant": name,
            "milliseconds": round(1e3 * statistics.median(times[name]), 1),
            "times_as_fast_as_monai": round(
                statistics.median(peer / own for own, peer in zip(times[name], times["monai"], strict=True)), 2
            ),
            "kept_bytes": kept,
            "kept_times_input": round(kept / (logits.numel() * logits.element_size()), 1),
            "value": values[name],
            "difference_to_monai": abs(values[name] - values["monai"]),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

"""How much of the machine's arithmetic training uses: model FLOPs utilisation.

It is the operations that the network needs for the tokens of a step, divided by what the machine
could do in that time (arXiv:2204.02311, appendix B). What recomputation adds is not counted: it is
a cost, no use. What a GPU could do stands in the maker's tables; what a processor could do is
measured once by a product of matrices, in the threads that training has.
"""

import time
from functools import cache

import torch

from stemma.train.precision import DTYPES, Precision

# dense products a second, 10^12, in half precision (with fp32 sums) and in fp32 (TF32 is off)
GPUS = {
    "H200": (989.0, 67.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "RTX 4090": (165.2, 82.6),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
}
SIDE = 1024  # of the matrices that are multiplied
TRIES = 4  # of which the fastest counts


@cache
def peak_flops(device: torch.device, precision: Precision) -> float:
    """Operations a second of dense products in this precision, from a table or measured once."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, (half, full) in GPUS.items():
            if part in name:
                return 1e12 * (full if precision == "fp32" else half)
    return measured_flops(device, DTYPES.get(precision, torch.float32))


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of two matrices of `SIDE`, at best."""
    left = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(TRIES):
        started = time.perf_counter()
        (left @ left)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * SIDE**3 / fastest


def utilisation(
    flops_per_token: float,
    tokens: float,
    seconds: float,
    device: torch.device,
    precision: Precision,
) -> float:
    """The share of the peak that `tokens` in `seconds` are."""
    return flops_per_token * tokens / max(1e-9, seconds) / peak_flops(device, precision)

"""How processes, device and threads of a run come about. Decision: the number of processes is compared with what was
asked for, because a launcher that quietly starts one trains something else than the user thinks.
"""

from __future__ import annotations

import os
import sys

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ilql.config import TrainConfig
from ilql.types import InputError

# Products whose compiled kernels oneDNN keeps: a step has fewer, and packed batches seldom have the same shapes twice.
# Its own 1,024 come to more than a gigabyte in bf16, which grows for thousands of steps.
KERNELS = "64"


def start(cfg: TrainConfig) -> Accelerator:
    """Threads, device and processes. Refuses a launch in which fewer processes take part than were asked for."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)  # read at the first product that it is given
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    cpu = cfg.device == "cpu" or not torch.accelerator.is_available()
    # Mixed precision is a context of our own in `step`: accelerate's would outlive this run in its global state.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no")
    # On CPUs `accelerate launch --num_processes N` starts one process, with the address for N but no WORLD_SIZE.
    alone = "WORLD_SIZE" not in os.environ and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys()
    if accelerator.num_processes != asked or alone:
        wanted = "several" if alone else asked
        raise InputError(
            f"{wanted} processes were asked for but {accelerator.num_processes} takes part; "
            "start them with torchrun --nproc_per_node N train.py ..."
        )
    return accelerator


def say(accelerator: Accelerator, text: str) -> None:
    """Print a line above the progress bar, once for all processes."""
    if accelerator.is_main_process:
        tqdm.write(text, file=sys.stderr)

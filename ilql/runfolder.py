"""The run folder: who may write it, and what lies in it beside the checkpoints. Decision: it is made only after every
input has been checked, one process holds its lock, and `model/` appears in one step, so no other program ever sees half
of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import accelerate
import numpy as np
import torch
import transformers

from ilql import __version__, atomic, checkpoint, sealed
from ilql.algos import ALGOS, critic
from ilql.config import TrainConfig, dump, flat, load_config
from ilql.model import ILQLModel
from ilql.quiet import quiet
from ilql.scores import actor
from ilql.types import InputError

# What may differ between the run that was interrupted and the one that goes on without changing a single weight.
HARMLESS = ("output", "log.keep", "log.tensorboard", "log.model", "batch.workers", "skip_nonfinite", "auto_micro_batch")


def check(cfg: TrainConfig, resume: bool, allow_inexact: bool) -> bool:
    """Whether there is a run to continue. Refuses a folder that exists (without `resume`), or one of another config."""
    run = Path(cfg.output)
    if not run.exists():
        return False
    if not resume:
        raise InputError(f"the run folder {run} exists; choose another --output, or continue it with --resume")
    if not run.is_dir():
        raise InputError(f"{run} is a file, not a run folder; choose another --output")
    path = run / "config.yaml"
    if not path.is_file():
        # A run that was killed at its very beginning has no more than these.
        if any(p.name not in (".lock", "data.json") and not p.name.startswith(atomic.TEMPORARY) for p in run.iterdir()):
            raise InputError(f"{run} is not a run folder: it has no config.yaml; choose another --output")
        return False
    old, new = flat(load_config(["--config", str(path)])), flat(cfg)
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and k not in HARMLESS)
    if changed and not allow_inexact:
        key = changed[0]
        raise InputError(
            f"{path} has {key} = {old.get(key)!r}, now it is {new.get(key)!r}; "
            "resume with the same config, or accept another course with --allow-inexact"
        )
    return True


def claim(run: Path, known: bool, begins: bool) -> IO[str]:
    """Make the folder if need be and lock it for this process; the lock falls with the process, however it ends.

    known: what `check` found. begins: no checkpoint was there. A run of which another process made more since then is
    refused.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / ".lock").open("a")
    except OSError as error:
        raise InputError(
            f"the run folder {run} cannot be written ({error.strerror}); choose another --output"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(f"another process is training in {run}; wait for it or choose another --output") from None
    if not known and (run / "config.yaml").exists():
        lock.close()
        raise InputError(f"the run folder {run} exists; choose another --output, or continue it with --resume")
    if begins and checkpoint.begun(run / "checkpoints"):
        lock.close()
        raise InputError(f"another process has trained in {run} since this one began; give the command again")
    # What is forked from here on, such as workers that outlive a killed process for seconds, lets go of the lock.
    os.register_at_fork(after_in_child=partial(_let_go, weakref.ref(lock)))
    atomic.sweep(run)
    atomic.sweep(run / "checkpoints")
    return lock


def _let_go(lock: weakref.ref[IO[str]]) -> None:
    held = lock()
    if held is not None:
        held.close()


def describe(cfg: TrainConfig, manifests: Sequence[Mapping[str, Any]]) -> None:
    """Write config.yaml and data.json: the first dataset's manifest, with those of further ones as `others`."""
    run = Path(cfg.output)
    manifest = {**manifests[0], **({"others": manifests[1:]} if manifests[1:] else {})}
    atomic.write_text(run / "data.json", json.dumps(manifest, indent=1) + "\n")
    atomic.write_text(run / "config.yaml", dump(cfg))


def environment(cfg: TrainConfig, processes: int, device: str, datasets: list[str]) -> dict[str, Any]:
    """What the bits of a result depend on. datasets: digests of the manifests."""
    options = json.dumps({k: v for k, v in flat(cfg).items() if k not in HARMLESS}, sort_keys=True)
    return {
        "config": hashlib.sha256(options.encode()).hexdigest(),
        "ilql": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": device,
        "datasets": datasets,
    }


def check_environment(recorded: Mapping[str, Any], now: Mapping[str, Any], allow_inexact: bool) -> str | None:
    """None where a resumed run will be bit-identical; else the reason, raised unless it is allowed."""
    for key, value in now.items():
        if recorded.get(key) != value:
            reason = f"the checkpoint was made with {key} {recorded.get(key)!r}, this process has {value!r}"
            if not allow_inexact:
                raise InputError(f"{reason}; restore that, or accept other bits with --allow-inexact")
            return reason
    return None


def export(
    cfg: TrainConfig,
    model: ILQLModel,
    tokenizer: Any,
    manifests: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Write `model/`: weights, tokenizer and the model card. facts: the metrics to report."""
    final = Path(cfg.output) / "model"
    size = sum(t.numel() * t.element_size() for t in checkpoint.model_tensors(model).values())
    mend = f"{atomic.FREE}, then use --resume"
    with atomic.folder(final, size + (1 << 22), replace=True, mend=mend) as temporary:
        with quiet():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card(cfg, manifests, facts), encoding="utf-8")
        sealed.seal(temporary)


def card(cfg: TrainConfig, manifests: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """The model card: how to use the model, what it was trained on and how, and what came out."""
    metrics = "\n".join(f"| {name} | {value:.6g} |" for name, value in facts.items())
    corpora = [manifest.get("corpus", "unknown") for manifest in manifests]
    built = "\n".join(
        f"Corpus `{corpus}` at {manifest['step']} steps, built with "
        f"`{json.dumps(manifest.get('arguments', {}), ensure_ascii=False)}`."
        for corpus, manifest in zip(corpora, manifests, strict=True)
    )
    algo = ALGOS[cfg.algo]
    kind = critic(algo, manifests[0]["step"], cfg.hyper)
    beta = ", beta=4.0" if kind in ("vocabulary", "likelihood") and algo.scores is not actor else ""
    return f"""---
library_name: transformers
tags: [offline-rl, dialogue, {cfg.algo}]
---
# {cfg.algo} on {", ".join(dict.fromkeys(corpora))}

A language policy trained by offline reinforcement learning (`{cfg.algo}`) on dialogue logs.

```python
import ilql.model  # registers the model class
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (c.from_pretrained("THIS FOLDER") for c in (AutoModelForCausalLM, AutoTokenizer))
model.generate(**tokenizer("...", return_tensors="pt"){beta})
```

## Data

{built}

## Metrics

| name | value |
|---|---|
{metrics}

## Config

```yaml
{dump(cfg)}```
"""

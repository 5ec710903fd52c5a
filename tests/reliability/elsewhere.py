"""The same commands in surroundings that must not matter: hash seed, locale, time zone, number of workers. Decision:
each in a process of its own, since a hash seed is fixed when Python starts; bytes are compared, of the dataset, of the
metrics and the weights, and of what the model says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SURROUNDINGS = (
    {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8", "TZ": "UTC", "WORKERS": "1"},
    {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "WORKERS": "2"},
    {"PYTHONHASHSEED": "4242", "LC_ALL": "tr_TR.UTF-8", "TZ": "America/St_Johns", "WORKERS": "3"},
)
KEPT = (".arrow", ".safetensors", "metrics.jsonl", "tokenizer.json", "rejected.jsonl", "data/manifest.json")


def work(folder: Path, steps: int, workers: int) -> dict[str, str]:
    """Build, train and decode in a folder with log.jsonl; the digests of all that must be the same."""
    import torch

    from datasets_prep import work as pool
    from datasets_prep.build import Options, build
    from ilql.decode import load_policy
    from ilql.schema import sha256
    from ilql.trainer import train
    from ilql.types import Turn
    from tests.tiny import config

    torch.set_num_threads(1)
    pool.LITTLE = 0  # so that there are workers
    log = [folder / "log.jsonl"]
    build(Options("chat", folder / "data", log, tokenizer="bpe:280", validation="0.2", workers=workers))
    run = train(config(folder / "data", folder / "run", steps=steps, log={"every": max(1, steps // 4)}))
    torch.manual_seed(0)
    policy = load_policy(run, beta=2.0, max_new_tokens=12)
    said = policy.respond([[Turn("user", text)] for text in ("istanbul", "hi", "2")])
    paths = [path for path in sorted(folder.rglob("*")) if path.as_posix().endswith(KEPT)]
    return {"said": repr(said)} | {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def _log(path: Path) -> None:
    lines = []
    for k in range(600):
        messages = [{"role": "user", "content": f"IIstanbul \u0131\u0130 {k % 7}"}]
        messages.append({"role": "assistant", "content": f"{k % 5} \u00e9", "reward": k % 3})  # type: ignore[dict-item]
        lines.append(json.dumps({"messages": messages, "meta": {f"z{k % 3}": 1, "a": k}}))
    path.write_text("\n".join(lines), encoding="utf-8")


def elsewhere(folder: Path, steps: int = 100, surroundings: int = len(SURROUNDINGS)) -> dict[str, Any]:
    """Everything once in each of so many surroundings; raises AssertionError where a byte differs."""
    found = []
    for k, around in enumerate(SURROUNDINGS[:surroundings]):
        place = folder / f"place{k}"
        place.mkdir()
        _log(place / "log.jsonl")
        command = [sys.executable, "-m", "tests.reliability.elsewhere", str(place), str(steps), around["WORKERS"]]
        done = subprocess.run(command, env=os.environ | around, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
        differ = [name for name, digest in found[0].items() if found[k].get(name) != digest]
        assert found[k].keys() == found[0].keys(), found[k].keys() ^ found[0].keys()
        assert not differ, f"other bytes with {around}: {differ}"
    return {"surroundings": len(found), "files": len(found[0]) - 1, "steps": steps}


if __name__ == "__main__":
    print(json.dumps(work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

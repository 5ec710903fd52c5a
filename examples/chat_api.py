"""Train on a log of one's own, score a dialogue, answer one: `python examples/chat_api.py LOG.jsonl FOLDER [STEPS]`."""

import sys
from pathlib import Path

from datasets_prep.build import Options, build
from ilql.config import make_config
from ilql.decode import load, respond, score
from ilql.trainer import train
from ilql.types import Turn

log, folder = Path(sys.argv[1]), Path(sys.argv[2])
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 2000
build(Options("chat", inputs=[log], output=folder / "data", tokenizer="bpe:8192"))
model, encoder = load(train(make_config(algo="ilql", data=folder / "data", output=folder / "run", steps=steps)))
dialogue = [Turn("user", "My parcel is late."), Turn("assistant", "I am sorry. May I have its number?")]
for t in score(model, dialogue, encoder):
    print(f"{t.token:12} log pi {t.logp:6.2f}  Q {t.q:6.2f}  V {t.v:6.2f}  advantage {t.advantage:6.2f}")
print(respond(model, [{"role": "user", "content": "My parcel is late."}], encoder, beta=4.0))
print(model.respond([{"role": "user", "content": "My parcel is late."}], candidates=8, beta=4.0))  # the best of 8

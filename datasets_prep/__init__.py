"""Dataset builders: dialogue logs in, a dataset folder out (`python -m datasets_prep --list`). A corpus is one module
with `episodes(inputs, *, seed, ...)`; its further keyword arguments become options of the command line. A corpus whose
turns are closed sets may list them for `--turn-tokens`: `turn_texts(**options) -> (the agent's, the partner's)`.
"""

from __future__ import annotations

from datasets_prep import (
    casino,
    chat,
    craigslist,
    deal_or_no_deal,
    door,
    guess,
    haggle,
    maze,
    preferences,
    randomwalks,
    recall,
    reddit,
    taskmaster,
    visdial,
    wordle,
)

CORPORA = {
    "chat": chat,
    "casino": casino,
    "craigslist": craigslist,
    "deal_or_no_deal": deal_or_no_deal,
    "door": door,
    "guess": guess,
    "haggle": haggle,
    "maze": maze,
    "preferences": preferences,
    "randomwalks": randomwalks,
    "recall": recall,
    "reddit": reddit,
    "taskmaster": taskmaster,
    "visdial": visdial,
    "wordle": wordle,
}

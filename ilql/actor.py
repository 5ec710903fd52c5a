"""Whose proposals a dataset holds. Decision: an actor is known by a digest of its weights, which the dataset's manifest
keeps, and training that begins as a run compares it with that run's actor: values of what somebody else would say are
no values of this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilql import frozen
from ilql.model import ILQLModel
from ilql.proposals import NAME
from ilql.rows import Rows
from ilql.types import InputError


def digest(model: ILQLModel) -> str:
    """Hex digest of the actor: of its trunk, and of its output embedding where that is not the input embedding; in
    float32, in which it may have spoken though it was trained in another precision."""
    sha = hashlib.sha256(frozen.digest(model.lm, frozen.TRUNK, rounded=True).encode())
    head: Any = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        for name, tensor in sorted(head.state_dict().items()):
            frozen.absorb(sha, name, tensor, rounded=True)
    return sha.hexdigest()


def command(folder: str | Path, run: str | None) -> str:
    """What makes the proposals of a dataset, as an output of its own."""
    output = Path(folder).with_name(f"{Path(folder).name}-proposals")
    return f"python -m ilql.annotate propose {run or 'RUN'} {folder} --output {output}"


def check(parts: Sequence[Rows], algo: str, run: str | None) -> None:
    """Refuse datasets without proposals, or with those of several actors or of another tokenizer. run: the actor's."""
    first: Any = None
    for part in parts:
        made = part.manifest.get(NAME)
        if not isinstance(made, dict) or not part.has_proposals:
            raise InputError(
                f"{algo} learns from proposals, which {part.folder} has not; make them: {command(part.folder, run)}"
            )
        if made.get("tokenizer") != part.manifest["tokenizer"]["sha256"]:
            raise InputError(
                f"{part.folder}: its proposals were made with another tokenizer than its dialogues; make them again "
                f"from the dataset as it was built: {command('DATA', run)}"
            )
        first = first or part
        if made.get("sha256") != first.manifest[NAME].get("sha256"):
            raise InputError(
                f"{part.folder} has proposals of another actor ({made.get('name')}) than {first.folder} "
                f"({first.manifest[NAME].get('name')}); make them again by one: {command('DATA', run)}"
            )


def check_model(manifest: dict[str, Any], folder: str, model: ILQLModel, run: str) -> None:
    """Refuse proposals of another actor than that of the run that training begins as."""
    made = manifest[NAME]
    if made.get("sha256") != digest(model):
        raise InputError(
            f"{folder} has proposals of another actor ({made.get('name')}) than init_from, {run}; make them again from "
            f"the dataset as it was built: {command('DATA', run)}"
        )

"""Numbers that belong to something named, such as a picture: from a file of tables, for the column `prefix`.

Decision: forms that hold numbers and nothing else are read, none that could run code. Either
    .safetensors  tensors `image_id` (N) of integers and `features` (N, F); or one tensor (F) a name, called by it;
    .npy          a structured array with the fields `image_id` and `features` (F), written without pickle.
Rows are read where they lie, when they are asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from datasets_prep.rejects import Reject
from ilql.types import InputError

NAME, TABLE = "image_id", "features"


class Features:
    """The numbers of a file, by name. field: of a record, for rejects."""

    def __init__(self, path: Path, field: str) -> None:
        self.path, self.field = path, field
        self.rows: dict[str, Any] = {}
        self._table: Any = None
        self._file: Any = None
        try:
            if path.suffix == ".npy":
                self._open(np.load(path, mmap_mode="r", allow_pickle=False))
            else:
                self._file = safe_open(path, framework="numpy")
                self._read_names()
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"--features {path} cannot be read ({str(error).splitlines()[0]}); give a .safetensors or .npy file"
            ) from None
        if not self.rows:
            raise InputError(f"--features {path} holds no row")

    def _open(self, found: np.ndarray) -> None:
        if found.ndim != 1 or not {NAME, TABLE} <= {*(found.dtype.names or ())}:
            raise InputError(f"--features {self.path}: no array of fields {NAME!r} and {TABLE!r}")
        self._table = found[TABLE]
        self._names(found[NAME])

    def _read_names(self) -> None:
        names = self._file.keys()
        if {*names} == {NAME, TABLE}:
            self._table = self._file.get_slice(TABLE)
            self._names(self._file.get_tensor(NAME))
        else:
            self.rows = dict.fromkeys(names)

    def _names(self, names: np.ndarray) -> None:
        shape = self._table.shape if isinstance(self._table, np.ndarray) else self._table.get_shape()
        if names.dtype.kind not in "iu" or names.ndim != 1 or len(shape) != 2 or shape[0] != len(names):
            raise InputError(
                f"--features {self.path}: {NAME!r} must be N integers and {TABLE!r} N rows of numbers, but they are "
                f"{names.dtype} {names.shape} and {tuple(shape)}"
            )
        self.rows = {str(name): row for row, name in enumerate(names.tolist())}
        if len(self.rows) < len(names):
            raise InputError(f"--features {self.path}: a name in {NAME!r} is given twice")

    def __getitem__(self, name: str) -> list[float]:
        """Raises Reject for a name without numbers; whether they are finite, and as many as others', is seen later."""
        if name not in self.rows:
            raise Reject("", 0, self.field, f"--features has no row for {name}")
        row = self.rows[name]
        found = self._file.get_tensor(name) if row is None else self._table[row : row + 1][0]
        if found.ndim != 1 or found.dtype.kind not in "fiu":
            raise Reject("", 0, self.field, f"--features has no row of numbers for {name}, but {found.dtype}")
        return found.astype(np.float32).tolist()  # type: ignore[no-any-return]

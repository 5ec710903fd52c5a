"""A line that is longer than memory should be. Decision: a process of its own reads it; its peak says what it held, by
the system's count (Linux), since the one of `resource` begins with what the process held that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from datasets_prep import limits

MOST = 8 * limits.LINE  # bytes that a line may add to the peak: itself cut, as a part, and a copy or two
READ = """
import json, sys
from pathlib import Path
from datasets_prep import chat, limits
found = [getattr(item, "reason", "row") for item in chat.episodes([Path(sys.argv[1])])]
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(json.dumps([found, int(peak.split()[1]) * 1024]))
"""


def _read(path: Path) -> tuple[list[str], int]:
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    found, peak = json.loads(done.stdout)
    return found, peak


def long_line(folder: Path, size: int = 2**30) -> dict[str, Any]:
    """A log with a line of so many bytes, most of them a hole in the file; raises AssertionError where reading it takes
    much more memory than a log without."""
    good = b'{"messages": [{"role": "assistant", "content": "yo"}]}'
    (folder / "plain").write_bytes(good)
    with (folder / "long").open("wb") as file:
        file.write(good + b'\n{"messages": "')
        file.seek(size, os.SEEK_CUR)
        file.write(b'"}\n' + good)
    (_, before), (found, peak) = _read(folder / "plain"), _read(folder / "long")
    assert found == ["row", limits.TOO_LONG, "row"], found
    assert peak - before < MOST, f"{peak - before:,} bytes more"
    return {"bytes": size, "more_memory": peak - before}

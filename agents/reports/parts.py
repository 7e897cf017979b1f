"""The parts of a report, written one by one: one that fails is named, and the others are written."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agents.runtime.stopping import StoppedError
from gns.errors import ReportError
from gns.tools.console import printable

_LOGGER = logging.getLogger(__name__)


class Parts:
    """Files that were written, and parts that failed with their reasons."""

    def __init__(self) -> None:
        self.written: list[Path] = []
        self.failed: list[str] = []

    def write(self, name: str, write: Callable[..., Sequence[Path] | None], *arguments: Any) -> list[Path]:
        """Write a part and return its files; none if it fails, which the log says with a traceback.

        :param name: of the part, in words
        :param write: returns the files that it has written
        """
        try:
            files = list(write(*arguments) or ())
        except StoppedError:
            raise
        except Exception as error:  # whatever it is, the results of hours are not lost for it
            lines = [printable(line, 2000) for line in traceback.format_exc().splitlines()]  # may quote text from files
            _LOGGER.error("This part of the report is not written: %s.\n%s", name, "\n".join(lines))
            self.failed.append(f"{name} ({type(error).__name__}: {printable(str(error), 300)})")
            return []
        self.written += files
        return files

    def require_all(self, folder: Path) -> None:
        """Pass a report whose parts are all written.

        :raises ReportError: if some are not, naming them
        """
        if self.failed:
            raise ReportError(
                f"Not written: {'; '.join(self.failed)}. All other parts are in {folder}. The same command "
                "writes the report again and repeats no run that is kept in cache.jsonl."
            )

"""Libraries that only some models need."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from understudy.errors import ModelError


def require(library: str, extra: str) -> Any:
    """Import `library`; where it is missing, name the extra that brings it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] != library.split(".")[0]:
            raise
        raise ModelError(
            f"This needs {library}, which is not installed: pip install 'understudy[{extra}]'."
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing bars and tables; what they say is said by the model's description."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

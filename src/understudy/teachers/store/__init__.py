"""The store: teacher outputs on disk, addressed by sample id and view."""

from understudy.teachers.store.key import Key
from understudy.teachers.store.reader import Store

__all__ = ["Key", "Store"]

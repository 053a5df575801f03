"""Grafts: modules that are spliced into a student and stay in it; one file each."""

from understudy.models.grafts.graft import Graft, grafts

__all__ = ["Graft", "grafts"]

"""Reports as self-contained HTML pages: of a routing run, of a collection, of a training run; and the same traces and
table in a terminal and a notebook.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwise.report.collection import write_collection_report
    from stepwise.report.notebook import html_of, traces_to_dataset, traces_to_frame
    from stepwise.report.page import write_report
    from stepwise.report.shell import Report
    from stepwise.report.terminal import show_trace, summary_table
    from stepwise.report.training import write_training_report
    from stepwise.routing.compare import PolicyRow, TraceView

_HOME = {
    "PolicyRow": "routing.compare",
    "Report": "report.shell",
    "TraceView": "routing.compare",
    "html_of": "report.notebook",
    "show_trace": "report.terminal",
    "summary_table": "report.terminal",
    "traces_to_dataset": "report.notebook",
    "traces_to_frame": "report.notebook",
    "write_collection_report": "report.collection",
    "write_report": "report.page",
    "write_training_report": "report.training",
}
__all__ = [
    "PolicyRow",
    "Report",
    "TraceView",
    "html_of",
    "show_trace",
    "summary_table",
    "traces_to_dataset",
    "traces_to_frame",
    "write_collection_report",
    "write_report",
    "write_training_report",
]


def __getattr__(name: str) -> Any:  # a program imports what it shows, not every page
    if name not in _HOME:
        raise AttributeError(f"module 'stepwise.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stepwise.{_HOME[name]}"), name)

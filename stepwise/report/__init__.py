"""Reports as self-contained HTML pages: of a routing run, of a collection, of a training run; and the same traces and
table in a terminal and a notebook.
"""

from stepwise.report.collection import write_collection_report
from stepwise.report.notebook import html_of, traces_to_dataset, traces_to_frame
from stepwise.report.page import write_report
from stepwise.report.shell import Report
from stepwise.report.terminal import show_trace, summary_table
from stepwise.report.training import write_training_report
from stepwise.routing.compare import PolicyRow, TraceView

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

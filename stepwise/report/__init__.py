"""Reports: one self-contained HTML page per run, and the same traces and table in a terminal and a notebook."""

from stepwise.report.html import trace_html
from stepwise.report.model import PolicyRow, Report, TraceView
from stepwise.report.page import write_report
from stepwise.report.terminal import show_trace, summary_table

__all__ = ["PolicyRow", "Report", "TraceView", "show_trace", "summary_table", "trace_html", "write_report"]

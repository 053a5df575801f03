"""Tables, statistics and pages from run directories; nothing here imports torch."""

from understudy.report.comparison import Comparison, compare, write_comparison
from understudy.report.html import write_report
from understudy.report.reading import read_run
from understudy.report.run import RunData
from understudy.report.statistics import PairedTest, Row, Spread, paired_test, spread, summarise
from understudy.report.table import plain_lines, table, tables

__all__ = [
    "Comparison",
    "PairedTest",
    "Row",
    "RunData",
    "Spread",
    "compare",
    "paired_test",
    "plain_lines",
    "read_run",
    "spread",
    "summarise",
    "table",
    "tables",
    "write_comparison",
    "write_report",
]

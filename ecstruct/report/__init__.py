"""Reports: results as one HTML file to keep, send and open offline."""

from ecstruct.report.explorer import Explorer
from ecstruct.report.page import Picture, Replay, Section, Table, report_html, write_report

__all__ = ["Explorer", "Picture", "Replay", "Section", "Table", "report_html", "write_report"]

"""How tables are written: as CSV with all digits, and as Markdown and HTML to be read."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

STYLE = (
    "body{font:15px/1.45 sans-serif;color:#222;margin:2em;max-width:75em}h1{font-size:1.3em}h2{font-size:1.1em}"
    "table{border-collapse:collapse;margin-bottom:1.5em}"
    "th,td{padding:.3em .8em;text-align:right;border-bottom:1px solid #e6e6e6;white-space:nowrap}"
    "th{border-bottom:2px solid #666;white-space:normal;vertical-align:bottom}"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}p{margin:.4em 0;color:#666}"
)
"""Of the pages that tables are, in the colours of the figures."""

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Column names and rows; an empty cell is None."""

    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]

    def csv(self) -> str:
        """The table as comma-separated values; numbers in full precision, true and false in small letters."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(value) for value in row] for row in self.rows)
        return text.getvalue()


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Part:
    """A further table of a page."""

    heading: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    """The first two columns are names, the others numbers."""


@dataclass(frozen=True)
class Page:
    """A table to be read, with what its reader needs to know."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    """The first two columns are names, the others numbers."""
    remarks: list[str]
    explanation: str
    further: tuple[Part, ...] = ()

    def markdown(self) -> str:
        """As a Markdown file."""
        lines = [f"# {self.title}", "", *markdown(self.columns, self.rows)]
        lines += ["", *(f"- {remark}" for remark in self.remarks), *([""] if self.remarks else []), self.explanation]
        for part in self.further:
            lines += ["", f"## {part.heading}", "", *markdown(part.columns, part.rows)]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """As a page of its own, which `snakemake --report` shows."""
        further = "".join(f"<h2>{escape(part.heading)}</h2>\n{_html(part.columns, part.rows)}" for part in self.further)
        remarks = "".join(f"<p>{escape(remark)}</p>\n" for remark in self.remarks)
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(self.title)}</title>\n'
            f"<style>{STYLE}</style></head>\n<body>\n<h1>{escape(self.title)}</h1>\n"
            f"{_html(self.columns, self.rows)}{remarks}<p>{escape(self.explanation)}</p>\n{further}</body>\n</html>\n"
        )


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], names: int = 2) -> list[str]:
    """The lines of a table in Markdown; the first `names` columns are names, the others numbers."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    ruler = [":--"] * names + ["--:"] * (len(columns) - names)
    return [head, f"|{'|'.join(ruler)}|", *body]


def _html(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"

"""Writes the tables and the picture of a file of measurements.

python -m bench.dataplane.page docs/performance.json

The tables go between two marks in the Markdown file of the same name, which is begun when it is not there; the picture
beside it, its name ending in `-cpu.svg`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.dataplane.plot import plot
from bench.dataplane.record import Record
from bench.dataplane.tables import tables

BEGIN, END = "<!-- begin: results -->", "<!-- end: results -->"


def insert(page: str, content: str) -> str:
    """The page with the content between the marks. Raises ValueError when a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def write(measurements: Path) -> list[Path]:
    """Writes both; the files it wrote."""
    record = Record.load(measurements)
    page, picture = measurements.with_suffix(".md"), measurements.with_name(f"{measurements.stem}-cpu.svg")
    content, written = tables(record), [page]
    if (drawn := plot(record)) is not None:
        picture.write_text(drawn)
        written.append(picture)
        content = f"![CPU of the layer by system]({picture.name})\n\n{content}"
    old = page.read_text() if page.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    page.write_text(insert(old, content))
    return written


def main() -> None:
    """Reads the command."""
    parser = argparse.ArgumentParser(description="Writes the tables and the picture of a file of measurements.")
    parser.add_argument("measurements", type=Path, nargs="?", default=Path("docs/performance.json"))
    try:
        for path in write(parser.parse_args().measurements):
            print(path)
    except ValueError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()

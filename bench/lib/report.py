"""Numbers to Markdown."""

from statistics import median

FAILED = "fails"


def number(value):
    """Three significant digits, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(header, rows):
    lines = ["| " + " | ".join(map(str, header)) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


class Samples:
    """Repeated measurements: what (a row) x who (a column) -> values, or why there are none."""

    def __init__(self, unit):
        self.unit, self.rows, self.columns = unit, {}, []

    def add(self, row, column, value):
        if column not in self.columns:
            self.columns.append(column)
        self.rows.setdefault(row, {}).setdefault(column, []).append(value)

    def value(self, row, column):
        """The median, or what is said instead of it."""
        values = self.rows.get(row, {}).get(column, [])
        numbers = [value for value in values if not isinstance(value, str)]
        return median(numbers) if numbers else (values[0] if values else "")

    def markdown(self, first, what):
        """A cell: the median, and in brackets its ratio to the first column."""
        base_column = self.columns[0]
        rows = []
        for row in self.rows:
            base, cells = self.value(row, base_column), []
            for column in self.columns:
                value = self.value(row, column)
                if isinstance(value, str):
                    cells.append(value)
                elif column == base_column or isinstance(base, str) or not base:
                    cells.append(number(value))
                else:
                    cells.append(f"{number(value)} ({value / base:.2f})")
            rows.append([row, *cells])
        return f"{what} ({self.unit}; in brackets the ratio to {base_column})\n\n" + table([first, *self.columns], rows)

    def as_json(self):
        return {"unit": self.unit, "samples": self.rows}

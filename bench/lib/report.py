"""Numbers to Markdown, and one run beside an earlier one.

What always holds: a ratio is made of samples of the same repetition, the subject's over the first column's, and is the
median of those; its spread is half the distance between the quartiles, and with fewer than four repetitions half of
that between the least and the greatest.
"""

from statistics import median, quantiles

FAILED = "fails"


def number(value):
    """Three significant digits, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio):
    """Hundredths, as far as they mean anything."""
    return f"{ratio:.2f}" if ratio < 10 else number(ratio)


def table(header, rows):
    lines = ["| " + " | ".join(map(str, header)) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def spread(values):
    """Half the distance that these keep to each other: see above."""
    if len(values) < 2:
        return 0.0
    if len(values) < 4:
        return (max(values) - min(values)) / 2
    low, _, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def numbers(values):
    return [value for value in values if not isinstance(value, str)]


class Samples:
    """Repeated measurements: what (a row) x who (a column) -> values, or why there are none."""

    def __init__(self, unit, ratios=True):
        self.unit, self.ratios, self.rows, self.columns = unit, ratios, {}, []

    def add(self, row, column, value):
        if column not in self.columns:
            self.columns.append(column)
        self.rows.setdefault(row, {}).setdefault(column, []).append(value)

    def value(self, row, column):
        """The median, or what is said instead of it."""
        values = self.rows.get(row, {}).get(column, [])
        found = numbers(values)
        return median(found) if found else (values[0] if values else "")

    def ratio(self, row, column):
        """(median, spread) of its ratios to the first column; None where there is none."""
        base, values = (self.rows.get(row, {}).get(c, []) for c in (self.columns[0], column))
        pairs = [(value, b) for value, b in zip(values, base) if not isinstance(value, str) and not isinstance(b, str)]
        found = [value / b for value, b in pairs if b]
        return (median(found), spread(found)) if found else None

    def _cell(self, row, column):
        value = self.value(row, column)
        if isinstance(value, str):
            return value
        ratio = self.ratio(row, column) if self.ratios and column != self.columns[0] else None
        if ratio is None:
            return number(value)
        around = f" ±{times(ratio[1])}" if len(self.rows[row][column]) > 1 else ""
        return f"{number(value)} ({times(ratio[0])}{around})"

    def markdown(self, first, what):
        """A cell: the median, and in brackets its ratio to the first column with its spread."""
        rows = [[row, *(self._cell(row, column) for column in self.columns)] for row in self.rows]
        meaning = f"{self.unit}; in brackets the ratio to {self.columns[0]}" if self.ratios else self.unit
        return f"{what} ({meaning})\n\n" + table([first, *self.columns], rows)

    def as_json(self):
        return {"unit": self.unit, "ratios": self.ratios, "columns": self.columns, "samples": self.rows}

    @staticmethod
    def of_json(found):
        samples = Samples(found["unit"], found.get("ratios", True))
        samples.rows = found["samples"]
        samples.columns = found.get("columns") or list(dict.fromkeys(c for row in samples.rows.values() for c in row))
        return samples


def tables_of(results, path=()):
    """All Samples in what a run has written, as (title, Samples)."""
    for key, found in results.items():
        if isinstance(found, dict) and "unit" in found and "samples" in found:
            yield ": ".join((*path, key)), Samples.of_json(found)
        elif isinstance(found, dict):
            yield from tables_of(found, (*path, key))


def _moved(before, now):
    """Rows of two tables whose ratios lie further apart than both spreads together; of two repetitions at least."""
    for row in now.rows:
        for column in now.columns[1:]:
            samples = [len(them.rows.get(row, {}).get(column, [])) for them in (before, now)]
            if min(samples) < 2:
                continue  # not there, or of no known spread
            old, new = before.ratio(row, column), now.ratio(row, column)
            if old and new and abs(old[0] - new[0]) > old[1] + new[1]:
                way = f"{times(new[0] / old[0])} times" if old[0] else ""
                yield [row, column, *(f"{times(ratio)} ±{times(around)}" for ratio, around in (old, new)), way]


def compared(old, new):
    """Markdown: what is no longer what it was in an earlier run, `old`."""
    earlier, rows, common = dict(tables_of(old)), [], 0
    for title, now in tables_of(new):
        if title in earlier and now.ratios and earlier[title].unit == now.unit:
            rows += [[title, *row] for row in _moved(earlier[title], now)]
            common += sum(row in earlier[title].rows for row in now.rows)
    if not common:
        return "The runs have no row in common."
    if not rows:
        return (f"In {common} rows of both no ratio has moved by more than its spread "
                "(where a run has one repetition only, nothing is known of that).")
    header = ["table", "row", "subject", "ratio then", "ratio now", "now / then"]
    return f"Ratios that moved by more than their spreads, of {common} rows in both:\n\n{table(header, rows)}"

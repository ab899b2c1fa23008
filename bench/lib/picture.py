#!/usr/bin/env python3
"""A run as a picture: bars of the ratios of each case, and curves over the number of drives. SVG, and nothing but Python.

    bench/lib/picture.py RUN.json PICTURE.svg

What always holds: a bar's length is a median ratio to the first column, as the tables print it, and the line through
its end goes as far as its spread; bars that are too long for the axis end at its end, and their number says how long.
"""

import json
import sys
from html import escape
from pathlib import Path
from statistics import median

from report import number, spread, tables_of, times

WIDTH, BAR, GAP, LONGEST = 960, 11, 8, 2.0
CURVE_WIDTH, CURVE_HEIGHT = 470, 230
COLOURS = {"raw": "#555555", "kvfs": "#1b6ca8", "kvfs, passthrough off": "#8fbfe0", "mergerfs": "#d98032",
           "btrfs RAID0": "#7a9a3a", "kvfs, io_uring": "#2a9d8f", "kvfs --exclusive": "#0b3d66"}
OTHERS = ("#1b6ca8", "#d98032", "#7a9a3a", "#a05195", "#2a9d8f", "#665191")
# In the tables alone: what they say is no rate and no time of a case.
NOT_DRAWN = ("cpu", "latency", "mixed latency")


class Sheet:
    """Shapes one below the other."""

    def __init__(self):
        self.shapes, self.bottom = [], 12

    def text(self, x, y, said, size=12, anchor="start", colour="#222222", weight="normal"):
        self.shapes.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
                           f'fill="{colour}" font-weight="{weight}">{escape(said)}</text>')

    def line(self, x1, y1, x2, y2, colour="#222222", width=1.0, dashes=""):
        dashes = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.shapes.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
                           f'stroke="{colour}" stroke-width="{width}"{dashes}/>')

    def box(self, x, y, width, height, colour):
        self.shapes.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>')

    def dot(self, x, y, colour):
        self.shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')

    def title(self, said):
        self.bottom += 24
        self.text(12, self.bottom, said, 15, weight="bold")
        self.bottom += 10

    def legend(self, colours):
        x, self.bottom = 12, self.bottom + 14
        for name, colour in colours.items():
            wide = 30 + 7 * len(name)
            if x + wide > WIDTH:
                x, self.bottom = 12, self.bottom + 16
            self.box(x, self.bottom - 9, 10, 10, colour)
            self.text(x + 15, self.bottom, name)
            x += wide
        self.bottom += 12

    def svg(self):
        height = self.bottom + 12
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" '
                f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif">\n'
                f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(self.shapes) + "\n</svg>\n")


def _colours(names):
    spare = iter(OTHERS * len(names))
    return {name: COLOURS.get(name) or next(spare) for name in names}


def _bars(sheet, title, samples):
    colours = _colours(samples.columns[1:])
    ratios = {row: {c: samples.ratio(row, c) for c in colours if c in samples.rows[row]} for row in samples.rows}
    found = [ratio[0] for row in ratios.values() for ratio in row.values() if ratio]
    if not found:
        return
    end = min(LONGEST, max(1.2, max(found) * 1.05))
    labels = 30 + 6 * max(map(len, ratios))
    room = WIDTH - labels - 60
    x_of = lambda ratio: labels + min(ratio, end) / end * room
    sheet.title(f"{title} ({samples.unit}), ratio to {samples.columns[0]}")
    sheet.legend(colours)
    top = sheet.bottom
    for row, subjects in ratios.items():
        sheet.bottom += GAP
        middle = sheet.bottom + BAR * len(subjects) / 2 + 4
        sheet.text(labels - 8, middle, row, 11, "end")
        for column, ratio in subjects.items():
            y = sheet.bottom
            if ratio is None:
                sheet.text(labels + 4, y + BAR - 2, str(samples.value(row, column)), 9, colour="#a02020")
            else:
                value, around = ratio
                sheet.box(labels, y + 1, x_of(value) - labels, BAR - 2, colours[column])
                sheet.line(x_of(max(0, value - around)), y + BAR / 2, x_of(value + around), y + BAR / 2)
                sheet.text(x_of(max(value, value + around)) + 4, y + BAR - 2, times(value), 9)
            sheet.bottom += BAR
    sheet.line(x_of(1), top, x_of(1), sheet.bottom + 4, dashes="4 3")
    sheet.text(x_of(1), sheet.bottom + 16, "1", 11, "middle")
    sheet.line(labels, top, labels, sheet.bottom + 4)
    sheet.bottom += 22


def _curve(sheet, x, y, title, lines, unit, colours):
    """One small diagram; `lines` is {subject: {how many: values}}."""
    counts = sorted({int(count) for points in lines.values() for count in points})
    top = max(max(values) for points in lines.values() for values in points.values()) * 1.1
    left, right, low, high = x + 55, x + CURVE_WIDTH - 20, y + CURVE_HEIGHT - 30, y + 28
    x_of = lambda count: left + (right - left) * count / counts[-1]
    y_of = lambda value: low - (low - high) * value / top
    sheet.text(x + 12, y + 16, title, 11)
    sheet.line(left, low, right, low)
    sheet.line(left, low, left, high)
    for share in (0.25, 0.5, 0.75, 1):
        sheet.line(left, y_of(top * share), right, y_of(top * share), "#dddddd")
        sheet.text(left - 5, y_of(top * share) + 4, number(top * share), 10, "end")
    for count in counts:
        sheet.text(x_of(count), low + 14, str(count), 10, "middle")
    sheet.text(right, low + 26, f"drives; {unit}", 10, "end")
    for name, points in lines.items():
        before = None
        for count, values in sorted((int(count), values) for count, values in points.items()):
            at, around = (x_of(count), y_of(median(values))), spread(values)
            if before:
                sheet.line(*before, *at, colours[name], 2)
            sheet.line(at[0], y_of(median(values) - around), at[0], y_of(median(values) + around), colours[name])
            sheet.dot(*at, colours[name])
            before = at


def _curves(sheet, found):
    names = list(dict.fromkeys(name for lines in found["lines"].values() for name in lines))
    colours = _colours(names)
    sheet.title(f"Over several {found['over']}")
    sheet.legend(colours)
    for place, (title, lines) in enumerate(found["lines"].items()):
        x = 5 + place % 2 * CURVE_WIDTH
        _curve(sheet, x, sheet.bottom, title, lines, found["unit"], colours)
        if place % 2 or place == len(found["lines"]) - 1:
            sheet.bottom += CURVE_HEIGHT


def draw(results):
    """The SVG of what a run has written as JSON."""
    sheet = Sheet()
    for title, samples in tables_of(results):
        if samples.ratios and title.rpartition(": ")[2] not in NOT_DRAWN:
            _bars(sheet, title, samples)
    for found in results.values():
        if "curves" in found:
            _curves(sheet, found["curves"])
    known = results["facts"]
    sheet.bottom += 20
    sheet.text(12, sheet.bottom, f"kvfs {known['commit']}, Linux {known['kernel']}, {known['cores']} cores, "
               f"{known['cpu']}, {known['memory']}", 10, colour="#666666")
    return sheet.svg()


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(json.loads(Path(sys.argv[1]).read_text())))

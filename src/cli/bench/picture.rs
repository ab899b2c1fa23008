//! A comparison as a picture: bars of the rates, grouped by what was done. SVG, which browsers show.
//!
//! What always holds: bars of one group are to one scale, from zero; each has its number.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::samples::Row;

const WIDTH: f64 = 960.0;
/// Where bars begin, and how long the longest is.
const LEFT: f64 = 330.0;
const LONGEST: f64 = 480.0;
const LINE: f64 = 20.0;
const COLOURS: [&str; 6] = ["#1b6ca8", "#d98032", "#7a9a3a", "#a05195", "#2a9d8f", "#665191"];

/// Draws the rows that have a rate.
pub(super) fn draw(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.size > 0).collect();
    let mut colours = BTreeMap::new();
    for row in &rows {
        let next = COLOURS[colours.len() % COLOURS.len()];
        colours.entry(row.way.as_str()).or_insert(next);
    }
    let (mut shapes, mut y) = (String::new(), 30.0);
    for group in rows.chunk_by(|a, b| (a.what, a.size, a.ops) == (b.what, b.size, b.ops)) {
        let best = group.iter().map(|row| row.rate).fold(f64::MIN_POSITIVE, f64::max);
        let _ = writeln!(
            shapes,
            "<text x=\"12\" y=\"{y:.0}\" font-weight=\"bold\">{}</text>",
            escape(&group[0].title())
        );
        for row in group {
            y += LINE;
            let (long, colour) = (row.rate / best * LONGEST, colours[row.way.as_str()]);
            let _ = writeln!(
                shapes,
                "<text x=\"{:.0}\" y=\"{y:.0}\" text-anchor=\"end\">{}</text>\n\
                 <rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{long:.1}\" height=\"13\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{y:.0}\">{:.2} GB/s, p99 {:.0} us</text>",
                LEFT - 8.0,
                escape(&row.way),
                y - 11.0,
                LEFT + long + 6.0,
                row.rate / 1e9,
                row.p99_us
            );
        }
        y += 1.6 * LINE;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y:.0}\" viewBox=\"0 0 {WIDTH} {y:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#222222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{shapes}</svg>\n"
    )
}

fn escape(text: &str) -> String {
    let text = crate::printable::printable(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_to_scale_with_names_escaped() {
        let row = |way: &str, rate| Row {
            what: "read",
            way: way.into(),
            size: 1 << 20,
            ops: 1,
            p50_us: 1.0,
            p99_us: 2.0,
            rate,
            ratio: 1.0,
        };
        let drawn = draw(&[row("/a<b&c", 1e9), row("/d", 4e9)]);
        assert!(drawn.contains("/a&lt;b&amp;c") && !drawn.contains("a<b"), "{drawn}");
        assert!(drawn.contains("width=\"480.0\"") && drawn.contains("width=\"120.0\""), "{drawn}");
        assert!(drawn.contains("read 1M") && drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"));
    }
}

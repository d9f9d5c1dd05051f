//! A chart of lines over two logarithmic axes, as SVG.

use std::fmt::Write;

/// Points under a name. A dashed line is quoted, not measured.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub dashed: bool,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
/// Space left, right (for the names of lines), above and below.
const EDGE: [f64; 4] = [74.0, 210.0, 44.0, 52.0];
/// Colours that are told apart by most eyes, on white.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#555555", "#e69f00"];

/// 512, 2K, 128K, 1M.
fn whole(x: f64) -> String {
    let steps = [(1048576.0, "M"), (1024.0, "K")];
    steps.into_iter().find(|(size, _)| x >= *size).map_or(format!("{x}"), |(size, name)| format!("{}{name}", x / size))
}

/// 0.01, 1, 100, then 1e3 and the like.
fn decimal(y: f64) -> String {
    if (1e-3..1e4).contains(&y) { format!("{}", (y * 1e6).round() / 1e6) } else { format!("{y:e}") }
}

fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(low, high), v| (low.min(v), high.max(v)))
}

/// Text that may stand in XML.
fn safe(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The chart; nothing where there is no point.
pub fn chart(title: &str, [x_name, y_name]: [&str; 2], series: &[Series]) -> Option<String> {
    let all = || series.iter().flat_map(|s| s.points.iter());
    all().next()?;
    let (x_low, x_high) = ends(all().map(|p| p.0));
    let (y_low, y_high) = ends(all().map(|p| p.1));
    // Whole powers of two to the sides, of ten above and below.
    let xs = (x_low.log2().floor(), x_high.log2().ceil().max(x_low.log2().floor() + 1.0));
    let ys = (y_low.log10().floor(), y_high.log10().ceil().max(y_low.log10().floor() + 1.0));
    let [left, right, top, bottom] = EDGE;
    let x_at = |x: f64| left + (x.log2() - xs.0) / (xs.1 - xs.0) * (WIDTH - left - right);
    let y_at = |y: f64| HEIGHT - bottom - (y.log10() - ys.0) / (ys.1 - ys.0) * (HEIGHT - top - bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"{0}\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n<text x=\"{left}\" y=\"24\" font-size=\"15\">{0}</text>\n",
        safe(title)
    );
    let every = ((xs.1 - xs.0) / 9.0).ceil().max(1.0);
    let mut tick = xs.0;
    while tick <= xs.1 {
        let x = x_at(tick.exp2());
        _ = writeln!(out, "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top}\" y2=\"{:.1}\" stroke=\"#e4e4e4\"/>", HEIGHT - bottom);
        _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
            HEIGHT - bottom + 18.0,
            whole(tick.exp2())
        );
        tick += every;
    }
    let mut tick = ys.0;
    while tick <= ys.1 {
        for (part, colour) in [(1.0, "#cccccc"), (2.0, "#f0f0f0"), (5.0, "#f0f0f0")] {
            let value = part * 10f64.powf(tick);
            if value <= 10f64.powf(ys.1) * 1.0001 {
                let y = y_at(value);
                _ = writeln!(out, "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\"/>", WIDTH - right);
                _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444\">{}</text>",
                    left - 6.0,
                    y + 4.0,
                    decimal(value)
                );
            }
        }
        tick += 1.0;
    }
    _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (left + WIDTH - right) / 2.0,
        HEIGHT - 12.0,
        safe(x_name)
    );
    let middle = (top + HEIGHT - bottom) / 2.0;
    _ = writeln!(out, "<text transform=\"translate(18 {middle:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>", safe(y_name));
    lines(&mut out, series, x_at, y_at);
    Some(out + "</svg>\n")
}

/// Every line with its points, and its name at its end, where names do not cover each other.
fn lines(out: &mut String, series: &[Series], x_at: impl Fn(f64) -> f64, y_at: impl Fn(f64) -> f64) {
    let mut names: Vec<(f64, usize)> = Vec::new();
    for (i, s) in series.iter().enumerate().filter(|(_, s)| !s.points.is_empty()) {
        let (colour, dash) = (COLOURS[i % COLOURS.len()], if s.dashed { " stroke-dasharray=\"6 4\"" } else { "" });
        let path: Vec<String> = s.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", x_at(x), y_at(y))).collect();
        _ = writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>", path.join(" "));
        for &(x, y) in &s.points {
            _ = writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x_at(x), y_at(y));
        }
        names.push((y_at(s.points[s.points.len() - 1].1), i));
    }
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = 0.0f64;
    for (y, i) in names {
        let at = y.max(free);
        free = at + 16.0;
        let x = WIDTH - EDGE[1] + 10.0;
        _ = writeln!(out, "<text x=\"{x}\" y=\"{:.1}\" fill=\"{}\">{}</text>", at + 4.0, COLOURS[i % COLOURS.len()], safe(&series[i].name));
    }
}

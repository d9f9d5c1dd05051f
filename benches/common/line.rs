//! One measurement, as a line for people and as a JSON object for programs.

use core::fmt;

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The operator.
    pub op: String,
    /// The engine.
    pub engine: String,
    /// The instruction set or the card's architecture.
    pub isa: String,
    /// How inputs are stored.
    pub input: String,
    /// How weights are stored.
    pub weight: String,
    /// The shape with what is not the usual.
    pub shape: String,
    /// Threads of the host that work.
    pub threads: usize,
    /// The median time.
    pub seconds: f64,
    /// Elements of one call.
    pub elements: f64,
    /// Bytes of one call: every input read once, every output written once.
    pub bytes: f64,
    /// Elements a second that the machine allows, by what was measured in the same run.
    pub ceiling: f64,
    /// What sets the ceiling.
    pub limit: &'static str,
    /// How far results are from those of another engine; None where there is nothing to compare.
    pub deviation: Option<f64>,
}

impl Line {
    /// Elements a second.
    pub fn rate(&self) -> f64 {
        self.elements / self.seconds
    }

    /// The part of the ceiling that is reached.
    pub fn ratio(&self) -> f64 {
        self.rate() / self.ceiling
    }

    /// One object on one line, its keys always these in this order.
    pub fn json(&self) -> String {
        let Line { op, engine, isa, input, weight, shape, threads, .. } = self;
        let words = [("op", op), ("engine", engine), ("isa", isa), ("input", input), ("weight", weight), ("shape", shape)];
        let mut out = String::from("{");
        for (name, word) in words {
            out += &format!("\"{name}\":\"{}\",", word.replace(['"', '\\'], "'"));
        }
        out += &format!("\"threads\":{threads}");
        let (ms, bytes) = (self.seconds * 1e3, self.bytes / self.seconds);
        for (name, x) in
            [("ms", ms), ("elements_per_s", self.rate()), ("bytes_per_s", bytes), ("ceiling", self.ceiling), ("ratio", self.ratio())]
        {
            out += &format!(",\"{name}\":{}", if x.is_finite() { significant(x) } else { "null".into() });
        }
        out + "}"
    }
}

/// Five digits that mean something, without an exponent.
fn significant(x: f64) -> String {
    let digits = 4 - x.abs().max(1e-12).log10().floor() as i32;
    format!("{x:.*}", digits.max(0) as usize)
}

/// With a prefix for thousands: `3.21 G`.
pub fn short(x: f64) -> String {
    let steps = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")];
    steps.into_iter().find(|(size, _)| x >= *size).map_or(format!("{x:.1} "), |(size, name)| format!("{:.2}{name}", x / size))
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { op, engine, isa, input, weight, shape, threads, .. } = self;
        let id =
            format!("{op}/{engine}_{isa}{}/{input}_{weight}/{shape}", if *threads > 1 { format!("_t{threads}") } else { String::new() });
        write!(f, "{id:<72} {:>10.4} ms {:>9}/s {:>9}B/s", self.seconds * 1e3, short(self.rate()), short(self.bytes / self.seconds))?;
        if self.ceiling.is_finite() {
            write!(f, "  {:.2} of the {} ceiling {}/s", self.ratio(), self.limit, short(self.ceiling))?;
        }
        self.deviation.map_or(Ok(()), |off| write!(f, "  deviation {off:.1e}"))
    }
}

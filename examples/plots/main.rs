//! Fills the tables of `docs/performance.md` and draws its plots from what `measure --json` wrote.

#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
mod svg;

use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use svg::{Series, chart};

const HELP: &str = "\
Fills the tables of DIR/performance.md and draws its plots from DIR/data.

    cargo run --example plots -- DIR [OUT]

    DIR    docs
    OUT    where the filled page and the plots go; DIR by default";

/// One measured or quoted line.
struct Row {
    id: String,
    op: String,
    engine: String,
    isa: String,
    input: String,
    shape: String,
    threads: f64,
    ms: f64,
    rate: f64,
    bytes: f64,
    ratio: f64,
}

fn rows(file: &Path) -> Result<Vec<Row>, String> {
    let Ok(text) = std::fs::read_to_string(file) else { return Ok(Vec::new()) };
    let row = |line: &str| {
        let v: Value = serde_json::from_str(line).map_err(|e| format!("{}: {e}: {line}", file.display()))?;
        let word = |key: &str| v[key].as_str().unwrap_or_default().to_string();
        let number = |key: &str| v[key].as_f64().unwrap_or(f64::NAN);
        let (op, engine, isa, input, shape) = (word("op"), word("engine"), word("isa"), word("input"), word("shape"));
        let threads = number("threads");
        let id = format!(
            "{op}/{engine}_{isa}{}/{input}_{}/{shape}",
            if threads > 1.0 { format!("_t{threads}") } else { String::new() },
            word("weight")
        );
        let (rate, bytes) = (number("elements_per_s"), number("bytes_per_s"));
        Ok(Row { id, op, engine, isa, input, shape, threads, ms: number("ms"), rate, bytes, ratio: number("ratio") })
    };
    text.lines().filter(|l| l.starts_with('{')).map(row).collect()
}

/// A size of a shape by its letter.
fn size(shape: &str, letter: char) -> Option<f64> {
    shape.split('_').find_map(|part| part.strip_prefix(letter)?.parse().ok())
}

/// The points of rows of one operator whose shapes differ in one size only.
fn points(rows: &[Row], op: &str, shape: [&str; 2], letter: char, y: impl Fn(&Row) -> f64, keep: impl Fn(&Row) -> bool) -> Vec<(f64, f64)> {
    let fits = |r: &&Row| r.op == op && r.shape.starts_with(shape[0]) && r.shape.ends_with(shape[1]) && keep(r);
    let mut all: Vec<(f64, f64)> = rows
        .iter()
        .filter(fits)
        .filter(|r| r.shape.len() == shape[0].len() + shape[1].len() + size(&r.shape, letter).map_or(0, |s| s.to_string().len() + 1))
        .filter_map(|r| Some((size(&r.shape, letter)?, y(r))))
        .collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.dedup_by_key(|p| p.0);
    all
}

fn line(name: &str, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.into(), points, dashed: false }
}

fn three(x: f64) -> String {
    if x == 0.0 {
        return "–".into();
    }
    let digits = (2 - x.abs().max(1e-9).log10().floor() as i32).clamp(0, 6);
    format!("{x:.*}", digits as usize)
}

/// With a prefix for thousands.
fn short(x: f64) -> String {
    let steps = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")];
    steps.into_iter().find(|(size, _)| x >= *size).map_or(three(x), |(size, name)| three(x / size) + name)
}

/// Every row of a file as a table; columns of what was quoted and wanted where `goals` (operator's id, quoted, wanted) has them.
fn table(rows: &[Row], goals: &[Vec<String>], only_goals: bool) -> String {
    let head = if only_goals {
        "| case | others, quoted | to reach | measured, ms | elements/s | GB/s | of the ceiling |\n|---|---|---|---|---|---|---|\n"
    } else {
        "| case | ms | elements/s | GB/s | of the ceiling |\n|---|---|---|---|---|\n"
    };
    let cells = |r: &Row| {
        let ms = if r.op.starts_with("ceiling_") { "–".into() } else { three(r.ms) };
        format!("{ms} | {} | {} | {:.2}", short(r.rate), three(r.bytes / 1e9), r.ratio)
    };
    let lines: Vec<String> = if only_goals {
        let find = |id: &str| rows.iter().find(|r| r.id == id);
        goals
            .iter()
            .map(|g| format!("| {} | {} | {} | {} |\n", g[0], g[1], g[2], find(&g[0]).map_or("not measured | | |".into(), cells)))
            .collect()
    } else {
        rows.iter().map(|r| format!("| {} | {} |\n", r.id, cells(r))).collect()
    };
    head.to_string() + &lines.concat()
}

fn goals(file: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|l| l.split('\t').map(String::from).collect::<Vec<_>>()).filter(|g| g.len() == 3 && !g[0].starts_with('#')).collect()
}

/// The page with what stands between `<!-- table NAME -->` and `<!-- end -->` made anew.
fn filled(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- table {name} -->"), "<!-- end -->");
    let Some(from) = page.find(&begin).map(|at| at + begin.len()) else { return page.into() };
    let Some(to) = page[from..].find(end).map(|at| at + from) else { return page.into() };
    format!("{}\n\n{table}\n{}", &page[..from], &page[to..])
}

/// Name, title, axes, lines of every plot.
type Plot = (&'static str, &'static str, [&'static str; 2], Vec<Series>);

const SCAN: &str = "selective_scan_fwd";

fn gpu_plots(gpu: &[Row], models: &[Row], quoted: &[Row]) -> Vec<Plot> {
    let (ms, rate) = (|r: &Row| r.ms, |r: &Row| r.rate / 1e9);
    let paper = ["b1_d1024_", "_n16_bdl"];
    let quote = |engine: &str, name: &str| Series {
        name: name.into(),
        points: points(quoted, SCAN, paper, 'l', ms, |r| r.engine == engine),
        dashed: true,
    };
    let bf16 = |r: &Row| r.input == "bf16";
    let tokens = |model: &str| {
        let of = |r: &&Row| r.op == "generate_decode" && r.shape.starts_with(model);
        let mut all: Vec<(f64, f64)> = models.iter().filter(of).filter_map(|r| Some((size(&r.shape, 'b')?, r.rate))).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        line(model, all)
    };
    let lengths = vec![
        line("selective-scan", points(gpu, SCAN, paper, 'l', ms, bf16)),
        quote("mamba_ssm", "mamba_ssm, quoted"),
        quote("flash_attention_2", "FlashAttention-2, quoted"),
        quote("cudnn_attention", "cuDNN attention, quoted"),
    ];
    let states = vec![line("(B, L, D)", points(gpu, SCAN, ["b8_d2048_l2048_", ""], 'n', rate, bf16))];
    let channels = vec![line("(B, L, D)", points(gpu, SCAN, ["b1_", "_l2048_n16"], 'd', rate, bf16))];
    vec![
        ("gpu-length", "Forward scan on an H100, B = 1, D = 1024, N = 16, bf16, everything on", ["L", "ms"], lengths),
        ("gpu-states", "Forward scan on an H100, B = 8, D = L = 2048, bf16", ["N", "G elements/s"], states),
        ("gpu-channels", "Forward scan on an H100, B = 1, L = 2048, N = 16, bf16", ["D", "G elements/s"], channels),
        ("gpu-tokens", "Decoding on an H100, random weights, f32", ["rows", "tokens/s"], vec![tokens("130m"), tokens("2.8b")]),
    ]
}

fn cpu_plots(cpu: &[Row]) -> Vec<Plot> {
    let rate = |r: &Row| r.rate / 1e9;
    let plain = |r: &Row| r.engine == "cpu" && r.isa == "avx512" && r.id.contains("/f32_f32/");
    let one = |r: &Row| plain(r) && r.threads == 1.0;
    let forward = |points: Vec<(f64, f64)>| vec![line("forward", points)];
    let many = |r: &&Row| r.op == SCAN && plain(r) && r.shape == "b1_d1536_l8192_n16";
    let mut threads: Vec<(f64, f64)> = cpu.iter().filter(many).map(|r| (r.threads, rate(r))).collect();
    threads.sort_by(|a, b| a.0.total_cmp(&b.0));
    let lengths = forward(points(cpu, SCAN, ["b1_d1536_", "_n16"], 'l', rate, one));
    let states = forward(points(cpu, SCAN, ["b1_d1536_l2048_", ""], 'n', rate, one));
    let channels = forward(points(cpu, SCAN, ["b1_", "_l8192_n16"], 'd', rate, one));
    vec![
        ("cpu-length", "Forward scan on one core, AVX-512, D = 1536, N = 16, f32", ["L", "G elements/s"], lengths),
        ("cpu-states", "Forward scan on one core, AVX-512, D = 1536, L = 2048, f32", ["N", "G elements/s"], states),
        ("cpu-channels", "Forward scan on one core, AVX-512, L = 8192, N = 16, f32", ["D", "G elements/s"], channels),
        ("cpu-threads", "Forward scan, AVX-512, D = 1536, L = 8192, N = 16, f32", ["threads", "G elements/s"], forward(threads)),
    ]
}

fn run(dir: &Path, out: &Path) -> Result<(), String> {
    let data = |name: &str| rows(&dir.join("data").join(name));
    let (gpu, models, cpu, quoted) = (data("gpu.jsonl")?, data("gpu-models.jsonl")?, data("cpu.jsonl")?, data("quoted.jsonl")?);
    let page = dir.join("performance.md");
    let mut text = std::fs::read_to_string(&page).map_err(|e| format!("{}: {e}", page.display()))?;
    let wanted = |name: &str| goals(&dir.join("data").join(name));
    for (name, made) in [
        ("gpu-goals", table(&gpu, &wanted("gpu-goals.tsv"), true)),
        ("gpu", table(&gpu, &[], false)),
        ("gpu-models", table(&models, &[], false)),
        ("cpu-goals", table(&cpu, &wanted("cpu-goals.tsv"), true)),
        ("cpu", table(&cpu, &[], false)),
    ] {
        text = filled(&text, name, &made);
    }
    let write = |name: &str, text: &str| std::fs::write(out.join(name), text).map_err(|e| format!("{}: {e}", out.join(name).display()));
    write("performance.md", &text)?;
    for (name, title, axes, series) in gpu_plots(&gpu, &models, &quoted).into_iter().chain(cpu_plots(&cpu)) {
        match chart(title, axes, &series) {
            Some(svg) => write(&format!("{name}.svg"), &svg)?,
            None => say!("{name}: nothing is measured"),
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let words = common::words().unwrap_or_default();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--help" | "-h"] => say!("{HELP}"),
        [dir] | [dir, _] => {
            let out = words.get(1).map_or(dir, String::as_str);
            if let Err(why) = run(Path::new(dir), Path::new(out)) {
                eprintln!("plots: {why}");
                return ExitCode::FAILURE;
            }
        }
        _ => {
            eprintln!("plots: wants a folder; --help says more");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

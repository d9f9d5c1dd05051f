//! The command line of the example `measure`, and what it prints.

#[path = "../examples/common/mod.rs"]
#[allow(dead_code)]
mod common;
#[path = "../benches/common/line.rs"]
mod line;
#[path = "../examples/measure/options.rs"]
#[allow(dead_code)]
mod options;
#[path = "../benches/common/shape.rs"]
#[allow(dead_code)]
mod shape;

use line::Line;
use options::{Asked, OPERATORS, Options, parse};
use shape::{Layout, Shape};

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

fn one(text: &str) -> Options {
    match parse(words(text)) {
        Ok(Asked::Measure(all, _)) if all.len() == 1 => all.into_iter().next().unwrap(),
        other => panic!("`{text}` gives {other:?}"),
    }
}

#[test]
fn shapes_are_read_and_written() {
    let usual = Shape::new([1, 1536, 2048, 16]);
    for text in ["b1_d1536_l2048_n16", "b8_d2048_l131072_n64_bdl"] {
        assert_eq!(Shape::parse(text, usual).unwrap().to_string(), text);
    }
    assert_eq!(Shape::parse("l64_b2", usual), Ok(Shape { batch: 2, seqlen: 64, ..usual }));
    for wrong in ["", "b", "b1_", "x3", "b0", "b1_d-3", "bé", "b1_d4294967296_l4294967296", "l99999999999999999999999"] {
        assert!(Shape::parse(wrong, usual).is_err(), "{wrong}");
    }
}

#[test]
fn command_lines_are_read() {
    for (name, usual, _) in OPERATORS {
        assert_eq!(one(name).shape, usual);
    }
    let o = one("selective_scan_fwd --engine cuda --shape b8_d2048_l2048_n16 --type bf16 --layout bdl --threads 2 --json");
    assert_eq!((o.engine.as_str(), o.input.as_str(), o.weight.as_str(), o.state.as_str()), ("cuda", "bf16", "f32", "f32"));
    assert_eq!((o.shape, o.threads), (Shape { layout: Layout::Bdl, ..Shape::new([8, 2048, 2048, 16]) }, 2));
    assert_eq!(one("linear_scan_fwd --type f64").weight, "f64");
    let o = one("generate --shape 2.8b_b4_l256 --tokens 8");
    assert_eq!((o.model.as_str(), o.shape.batch, o.shape.seqlen, o.tokens), ("2.8b", 4, 256, 8));
    assert_eq!(one("selective_scan_fwd --regime walk").regime.as_deref(), Some("walk"));
    assert_eq!(one("generate --shape b4").model, "130m");
    assert_eq!(parse(words("--help")), Ok(Asked::Help));
    assert_eq!(parse(words("exp --list")), Ok(Asked::List));
    for wrong in [
        "",
        "nothing",
        "exp --threads 0",
        "exp --engine gpu",
        "exp --layout ldb",
        "exp --regime run",
        "exp --shape q1",
        "exp --type",
        "exp exp",
        "--from nowhere",
    ] {
        assert!(parse(words(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn a_file_has_a_command_line_a_line() {
    let file = std::env::temp_dir().join(format!("measure-{}", std::process::id()));
    std::fs::write(&file, "# a comment\nexp\n\nsilu --threads 1\n").unwrap();
    let asked = parse(words(&format!("--from {} --json", file.display())));
    std::fs::write(&file, "exp\nexp --nothing\n").unwrap();
    let wrong = parse(words(&format!("--from {}", file.display())));
    std::fs::remove_file(&file).unwrap();
    match asked {
        Ok(Asked::Measure(all, true)) => assert_eq!(all.iter().map(|o| o.op.as_str()).collect::<Vec<_>>(), ["exp", "silu"]),
        other => panic!("{other:?}"),
    }
    assert!(wrong.unwrap_err().contains(":2:"), "the line is named");
}

#[test]
fn a_line_is_one_object_with_the_promised_keys() {
    let line = Line {
        op: "exp".into(),
        engine: "cpu".into(),
        isa: "avx2".into(),
        input: "f32".into(),
        weight: "f32".into(),
        shape: "b1_d64_l64_n16".into(),
        threads: 1,
        seconds: 2e-3,
        elements: 4e6,
        bytes: 1e6,
        ceiling: 8e9,
        limit: "FMA",
        deviation: Some(1e-7),
    };
    let json = line.json();
    assert!(!json.contains('\n'));
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
    let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
    let mut wanted = words("op engine isa input weight shape threads ms elements_per_s bytes_per_s ceiling ratio");
    keys.sort();
    wanted.sort();
    assert_eq!(keys, wanted);
    for (key, value) in [("ms", 2.0), ("elements_per_s", 2e9), ("bytes_per_s", 5e8), ("ceiling", 8e9), ("ratio", 0.25), ("threads", 1.0)] {
        assert_eq!(object[key].as_f64(), Some(value), "{key}");
    }
    let none = Line { ceiling: f64::INFINITY, ..line };
    let object: serde_json::Value = serde_json::from_str(&none.json()).unwrap();
    assert!(object["ceiling"].is_null() && object["ratio"] == 0.0);
    assert!(none.to_string().starts_with("exp/cpu_avx2/f32_f32/b1_d64_l64_n16 "));
}

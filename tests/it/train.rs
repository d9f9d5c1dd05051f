//! The training run of the example: killed at any moment and resumed, it ends in the same bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use selective_scan::cpu::Cpu;
use selective_scan::par::Par;

#[allow(dead_code)]
#[path = "../../examples/train/run.rs"]
pub(crate) mod run;

use run::{CHECKPOINT, CURVE, Event, Options, train};

/// The variable that turns the test below into the run that is killed.
const RUNNER: &str = "SELECTIVE_SCAN_TEST_TRAINING";

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("selective-scan-train-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn options(base: &Path, out: PathBuf) -> Options {
    Options {
        data: base.join("data.txt"),
        valid: base.join("valid.txt"),
        out,
        resume: true,
        layers: 2,
        dim: 16,
        state: 4,
        batch: 2,
        seqlen: 24,
        steps: 60,
        rate: 1e-2,
        warmup: 5,
        weight_decay: 0.1,
        clip: 1.0,
        seed: 3,
        checkpoint_every: 3,
        eval_every: 25,
        time_limit: None,
    }
}

fn write_texts(base: &Path) {
    let text = "the quick brown fox jumps over the lazy dog; ".repeat(30);
    fs::write(base.join("data.txt"), &text).unwrap();
    fs::write(base.join("valid.txt"), &text[7..200]).unwrap();
}

#[test]
fn killed_and_resumed_is_uninterrupted() {
    if let Some(base) = std::env::var_os(RUNNER) {
        let base = PathBuf::from(base);
        train(Cpu::new(), Par::default(), &options(&base, base.join("killed")), |_| ()).unwrap();
        return;
    }
    let base = folder("resume");
    write_texts(&base);
    let whole = options(&base, base.join("whole"));
    let mut first = 0.0;
    let end = train(Cpu::new(), Par::default(), &whole, |event| {
        if let Event::Step { done: 1, bits, .. } = event {
            first = bits;
        }
    })
    .unwrap();
    assert!(end.step == 60 && end.bits < 0.6 * first, "{} bits after {first}", end.bits);
    let killed = base.join("killed");
    let mut kills = 0;
    for attempt in 0..200 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "train::killed_and_resumed_is_uninterrupted"])
            .env(RUNNER, &base)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Later attempts live longer, so that the run ends on any machine; the first ones die before it.
        std::thread::sleep(Duration::from_millis(20 + 7 * attempt));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += usize::from(killed.join(CHECKPOINT).exists());
    }
    assert!(kills > 0, "no run was killed between its first checkpoint and its end");
    for file in ["model.safetensors", CHECKPOINT, "config.json"] {
        assert_eq!(fs::read(whole.out.join(file)).unwrap(), fs::read(killed.join(file)).unwrap(), "{file}");
    }
    let steps =
        |out: &Path| fs::read_to_string(out.join(CURVE)).unwrap().lines().map(|l| l.split('\t').take(2).collect()).collect::<Vec<String>>();
    assert!(steps(&whole.out).len() > 6 && !steps(&killed).is_empty());
}

#[test]
fn a_stopped_run_goes_on_and_another_is_refused() {
    let base = folder("refused");
    write_texts(&base);
    let stopped = Options { time_limit: Some(0.0), ..options(&base, base.join("out")) };
    assert_eq!(train(Cpu::new(), Par::default(), &stopped, |_| ()).unwrap().step, 0);
    let refused = |options: &Options| match train(Cpu::new(), Par::default(), options, |_| ()) {
        Err(run::Fault::Operand(why)) => why,
        _ => panic!("this run was not refused"),
    };
    let good = options(&base, base.join("out"));
    assert!(refused(&Options { resume: false, ..good.clone() }).contains("--resume"));
    assert!(refused(&Options { rate: 2e-2, ..good.clone() }).contains("other options"));
    assert!(refused(&Options { data: base.join("missing"), ..good.clone() }).contains("missing"));
    assert!(refused(&Options { seqlen: 100_000, ..good.clone() }).contains("data.txt"));
    assert!(refused(&Options { batch: 0, ..good.clone() }).contains("--batch"));
    assert!(refused(&Options { rate: f64::NAN, ..good.clone() }).contains("--lr"));
    assert_eq!(train(Cpu::new(), Par::default(), &good, |_| ()).unwrap().step, 60);
}

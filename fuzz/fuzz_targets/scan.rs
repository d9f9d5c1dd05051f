#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| selective_scan_fuzz::scan::run(bytes));

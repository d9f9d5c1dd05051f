//! What the tests share: modules from a body, launches with buffers.
#![allow(dead_code)]

use ptx_sim::{Launch, Memory, Module, Stats, run};

/// 16-byte aligned memory that a kernel may use.
pub struct Buffer(Vec<u128>);

impl Buffer {
    pub fn zeros(bytes: usize) -> Self {
        Buffer(vec![0; bytes.div_ceil(16)])
    }

    pub fn of_u32(v: &[u32]) -> Self {
        let mut b = Buffer::zeros(v.len() * 4);
        for (i, x) in v.iter().enumerate() {
            b.0[i / 4] |= (*x as u128) << (32 * (i % 4));
        }
        b
    }

    pub fn of_f32(v: &[f32]) -> Self {
        Buffer::of_u32(&v.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
    }

    pub fn addr(&mut self) -> u64 {
        self.0.as_mut_ptr() as u64
    }

    pub fn bytes(&self) -> usize {
        self.0.len() * 16
    }

    pub fn u32s(&self) -> Vec<u32> {
        self.0.iter().flat_map(|w| (0..4).map(move |i| (w >> (32 * i)) as u32)).collect()
    }

    pub fn u64s(&self) -> Vec<u64> {
        self.0.iter().flat_map(|w| [*w as u64, (*w >> 64) as u64]).collect()
    }

    pub fn f32s(&self) -> Vec<f32> {
        self.u32s().into_iter().map(f32::from_bits).collect()
    }
}

pub const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// A kernel `k(u64 out, u64 in)` with the usual registers: %out, %in and %t (the thread's index) are set, %o is out + 4 t, %i is
/// in + 4 t.
pub fn kernel(body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n.reg .b64 %out, %in, %o, %i, %rd<20>;\n.reg .b32 %t, %r<40>;\n\
         .reg .f32 %f<40>;\n.reg .f64 %d<20>;\n.reg .b16 %h<20>;\n.reg .pred %p<10>;\nld.param.u64 %out, [out];\nld.param.u64 %in, [in];\n\
         mov.u32 %t, %tid.x;\nmul.wide.u32 %o, %t, 4;\nadd.s64 %i, %in, %o;\nadd.s64 %o, %out, %o;\n{body}\nret;\n}}\n"
    )
}

pub fn launch(text: &str, grid: u32, block: u32, shared: usize, out: &mut Buffer, input: &mut Buffer) -> Result<Stats, String> {
    let module = Module::parse(text)?;
    let mut memory = Memory::default();
    memory.register(out.addr(), out.bytes());
    memory.register(input.addr(), input.bytes());
    let mut params = out.addr().to_le_bytes().to_vec();
    params.extend(input.addr().to_le_bytes());
    let launch = Launch { entry: 0, grid: [grid, 1, 1], block: [block, 1, 1], shared, params: &params };
    run(&module, &launch, &memory)
}

/// Runs a body with one block and returns the first words of its output.
pub fn try_run(body: &str, block: u32, shared: usize, input: &[u32]) -> Result<Vec<u32>, String> {
    let mut out = Buffer::zeros(4096);
    let mut input = Buffer::of_u32(if input.is_empty() { &[0] } else { input });
    launch(&kernel(body), 1, block, shared, &mut out, &mut input)?;
    Ok(out.u32s())
}

pub fn run_body(body: &str, block: u32, input: &[u32]) -> Vec<u32> {
    try_run(body, block, 0, input).unwrap_or_else(|e| panic!("{e}"))
}

/// The error that a body must give.
pub fn fails(body: &str, block: u32, input: &[u32], with: &str) {
    let e = try_run(body, block, 0, input).err().unwrap_or_else(|| panic!("no error for {body}"));
    assert!(e.contains(with), "`{e}` does not contain `{with}`");
}

//! Host memory that kernels may touch. The only file with `unsafe`: each access is preceded by the check that makes it sound.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Allocations that kernels may touch: address ranges of host memory.
///
/// A registered range must stay readable and writable, and must not be borrowed by Rust code while a kernel runs, until it is
/// removed. Register an allocation under the address that a raw pointer of it gave (`as_mut_ptr() as u64`), aligned to at least 16
/// bytes if kernels use vector accesses: alignment is checked on the address itself.
#[derive(Default, Debug, Clone)]
pub struct Memory {
    ranges: BTreeMap<u64, usize>,
}

impl Memory {
    /// Lets kernels touch `bytes` bytes from `addr`.
    pub fn register(&mut self, addr: u64, bytes: usize) {
        self.ranges.insert(addr, bytes);
    }

    /// Takes back the range registered under `addr`.
    pub fn remove(&mut self, addr: u64) {
        self.ranges.remove(&addr);
    }

    /// Whether `len` bytes from `addr` lie inside one registered range.
    pub fn contains(&self, addr: u64, len: usize) -> bool {
        self.find(addr, len).is_some()
    }

    /// The range (first byte, end) that holds all of `len` bytes from `addr`.
    fn find(&self, addr: u64, len: usize) -> Option<(u64, u64)> {
        let (&base, &bytes) = self.ranges.range(..=addr).next_back()?;
        let end = base + bytes as u64;
        (addr.checked_add(len as u64)? <= end).then_some((base, end))
    }

    /// In words, where an address lies relative to the nearest allocation.
    pub(crate) fn describe(&self, addr: u64) -> String {
        let below = self.ranges.range(..=addr).next_back();
        let above = self.ranges.range(addr..).next();
        let mut best: Option<(u64, String)> = None;
        if let Some((&base, &bytes)) = below {
            let end = base + bytes as u64;
            let (distance, text) = if addr < end {
                (0, format!("{} bytes before the end of the allocation {base:#x} of {bytes} bytes", end - addr))
            } else {
                (addr - end, format!("{} bytes past the end of the allocation {base:#x} of {bytes} bytes", addr - end))
            };
            best = Some((distance, text));
        }
        if let Some((&base, &bytes)) = above
            && best.as_ref().is_none_or(|(d, _)| base - addr < *d)
        {
            best = Some((base - addr, format!("{} bytes before the allocation {base:#x} of {bytes} bytes", base - addr)));
        }
        best.map_or_else(|| "no allocation is registered".into(), |(_, text)| text)
    }
}

/// One launch's view of all memory outside the block: the caller's allocations and the module's own variables. Remembers the last
/// range hit, since neighbouring accesses nearly always fall into the same one.
pub(crate) struct View<'a> {
    memory: &'a Memory,
    module: &'a Globals,
    last: (u64, u64),
}

impl<'a> View<'a> {
    pub(crate) fn new(memory: &'a Memory, module: &'a Globals) -> Self {
        View { memory, module, last: (1, 0) }
    }

    #[inline(always)]
    fn allowed(&mut self, addr: u64, len: usize) -> bool {
        if addr >= self.last.0 && addr < self.last.1 && self.last.1 - addr >= len as u64 {
            return true;
        }
        match self.memory.find(addr, len).or_else(|| self.module.find(addr, len)) {
            Some(range) => {
                self.last = range;
                true
            }
            None => false,
        }
    }

    /// Reads `len` (1, 2, 4 or 8) bytes, or nothing if they are not all inside one allocation.
    #[inline(always)]
    pub(crate) fn read(&mut self, addr: u64, len: usize) -> Option<u64> {
        if !self.allowed(addr, len) {
            return None;
        }
        // SAFETY: the range was registered by someone who owns it, or belongs to the module; the reads need no alignment.
        Some(unsafe {
            match len {
                1 => (addr as *const u8).read() as u64,
                2 => (addr as *const u16).read_unaligned() as u64,
                4 => (addr as *const u32).read_unaligned() as u64,
                _ => (addr as *const u64).read_unaligned(),
            }
        })
    }

    /// Writes the low `len` (1, 2, 4 or 8) bytes of `value`; false if they are not all inside one allocation.
    #[inline(always)]
    pub(crate) fn write(&mut self, addr: u64, len: usize, value: u64) -> bool {
        if !self.allowed(addr, len) || self.module.is_const(addr) {
            return false;
        }
        // SAFETY: as for reads; the module's variables are atomics, so that writing through their address is allowed.
        unsafe {
            match len {
                1 => (addr as *mut u8).write(value as u8),
                2 => (addr as *mut u16).write_unaligned(value as u16),
                4 => (addr as *mut u32).write_unaligned(value as u32),
                _ => (addr as *mut u64).write_unaligned(value),
            }
        }
        true
    }

    pub(crate) fn contains(&mut self, addr: u64, len: usize) -> bool {
        self.allowed(addr, len)
    }

    pub(crate) fn describe(&self, addr: u64) -> String {
        if self.module.is_const(addr) {
            return "inside a .const variable of the module, which kernels may not write".into();
        }
        self.memory.describe(addr)
    }
}

#[repr(align(16))]
struct Chunk([AtomicU64; 2]);

/// The module's `.global` and `.const` variables.
#[derive(Default)]
pub(crate) struct Globals {
    vars: Vec<Var>,
}

struct Var {
    data: Box<[Chunk]>,
    bytes: usize,
    constant: bool,
}

impl Var {
    fn addr(&self) -> u64 {
        self.data.as_ptr() as u64
    }
}

impl Globals {
    /// Makes a variable with these first bytes and returns its address.
    pub(crate) fn add(&mut self, init: &[u8], constant: bool) -> u64 {
        let word = |i: usize| {
            let mut w = [0; 8];
            let part = init.get(i * 8..).unwrap_or(&[]);
            let n = part.len().min(8);
            w[..n].copy_from_slice(&part[..n]);
            AtomicU64::new(u64::from_le_bytes(w))
        };
        let data = (0..init.len().div_ceil(16).max(1)).map(|i| Chunk([word(2 * i), word(2 * i + 1)])).collect::<Box<[Chunk]>>();
        let _ = data[0].0[0].load(Ordering::Relaxed);
        self.vars.push(Var { data, bytes: init.len(), constant });
        self.vars[self.vars.len() - 1].addr()
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, u64)> {
        let v = self.vars.iter().find(|v| addr >= v.addr() && addr < v.addr() + v.bytes as u64)?;
        let end = v.addr() + v.bytes as u64;
        (addr.checked_add(len as u64)? <= end).then_some((v.addr(), end))
    }

    fn is_const(&self, addr: u64) -> bool {
        self.vars.iter().any(|v| v.constant && addr >= v.addr() && addr < v.addr() + v.bytes as u64)
    }
}

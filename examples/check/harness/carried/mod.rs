//! An engine for host memory that carries its operands to a GPU and back, so that whatever runs on host engines runs there too.
//!
//! Each operand is copied with its strides into a buffer of its own. Gaps between its elements and a margin on both sides hold a canary, which
//! must be there afterwards; elements that are only written are poisoned first, and each of them must be written.

use bytemuck::Pod;
use selective_scan::Error;
use selective_scan::buffer::Workspace;
use selective_scan::cuda::{Cuda, DeviceBuffer};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Device, Host, View, ViewMut};

mod layers;
mod scans;

/// Bytes of canary on both sides of an operand.
const MARGIN: usize = 256;
const CANARY: u8 = 0xa5;
/// Every byte of an element that has not been written: NaN in every floating-point type.
const POISON: u8 = 0xff;

/// The adapter.
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    /// The engine on the device.
    pub engine: &'static Cuda,
    margin: usize,
}

/// Calls `f` with every index of a shape.
fn each<const R: usize>(dims: [usize; R], mut f: impl FnMut([usize; R])) {
    let (mut index, count) = ([0; R], dims.iter().product::<usize>());
    for _ in 0..count {
        f(index);
        for axis in (0..R).rev() {
            index[axis] += 1;
            if index[axis] < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
}

/// An operand on the device.
pub(super) struct Sent<T, const R: usize> {
    buffer: DeviceBuffer<T>,
    /// What was sent, for comparison with what comes back.
    sent: Vec<T>,
    offset: usize,
    dims: [usize; R],
    strides: [isize; R],
    /// Whether every element must be written.
    poisoned: bool,
}

impl<T: Pod, const R: usize> Sent<T, R> {
    fn view(&self) -> View<'_, T, R, Device> {
        self.buffer.strided(self.offset, self.dims, self.strides)
    }

    fn view_mut(&mut self) -> ViewMut<'_, T, R, Device> {
        self.buffer.strided_mut(self.offset, self.dims, self.strides)
    }

    fn at(&self, index: [usize; R]) -> usize {
        let offset: isize = (0..R).map(|i| index[i] as isize * self.strides[i]).sum();
        (self.offset as isize + offset) as usize
    }

    /// Panics where a byte outside the elements has changed.
    fn untouched(&self, operand: &str, now: &[T]) {
        let mut own = vec![false; now.len()];
        each(self.dims, |index| own[self.at(index)] = true);
        for (i, (before, after)) in self.sent.iter().zip(now).enumerate() {
            let same = bytemuck::bytes_of(before) == bytemuck::bytes_of(after);
            assert!(own[i] || same, "`{operand}`: element {i} of its buffer, outside {:?} by {:?}, was written", self.dims, self.strides);
        }
    }

    /// Copies what was written to the host's tensor.
    fn back(&self, operand: &str, to: &mut ViewMut<'_, T, R>) -> Result<(), Error> {
        let now = self.buffer.to_vec()?;
        self.untouched(operand, &now);
        each(self.dims, |index| {
            let value = now[self.at(index)];
            let poison = self.poisoned && bytemuck::bytes_of(&value).iter().all(|b| *b == POISON);
            assert!(!poison, "`{operand}`: element {index:?} of {:?} was not written", self.dims);
            to.set(index, value);
        });
        Ok(())
    }
}

impl selective_scan::block::HostEngine for Carried {}

impl Carried {
    /// Carries to this engine. Where memory is checked by whoever runs the kernels, operands have no margin, so that nothing is hidden in it.
    pub fn new(engine: &'static Cuda, checked: bool) -> Self {
        Carried { engine, margin: if checked { 0 } else { MARGIN } }
    }

    /// The same adapter to another engine on the same device.
    #[allow(dead_code)]
    pub fn to(self, engine: &'static Cuda) -> Self {
        Carried { engine, ..self }
    }

    fn send<T: Pod, const R: usize>(&self, of: &View<'_, T, R>, poisoned: bool) -> Result<Sent<T, R>, Error> {
        let (dims, strides) = (of.dims(), of.strides());
        let margin = self.margin.div_ceil(size_of::<T>());
        let (mut low, mut high) = (0isize, -1isize);
        if !dims.contains(&0) {
            high = 0;
            for i in 0..R {
                let reach = (dims[i] as isize - 1) * strides[i];
                if reach < 0 { low += reach } else { high += reach }
            }
        }
        let offset = margin + low.unsigned_abs();
        let len = (high - low + 1) as usize + 2 * margin;
        let mut sent = vec![T::zeroed(); len];
        bytemuck::cast_slice_mut(&mut sent).fill(CANARY);
        let mut this = Sent { buffer: self.engine.buffer(len)?, sent, offset, dims, strides, poisoned };
        each(dims, |index| {
            let at = this.at(index);
            this.sent[at] = of.get(index);
            if poisoned {
                bytemuck::bytes_of_mut(&mut this.sent[at]).fill(POISON);
            }
        });
        this.buffer.upload(&this.sent)?;
        Ok(this)
    }

    /// What is read.
    fn read<T: Pod, const R: usize>(&self, of: &View<'_, T, R>) -> Result<Sent<T, R>, Error> {
        self.send(of, false)
    }

    fn maybe<T: Pod, const R: usize>(&self, of: Option<&View<'_, T, R>>) -> Result<Option<Sent<T, R>>, Error> {
        of.map(|v| self.read(v)).transpose()
    }

    /// What is written whole.
    fn written<T: Pod, const R: usize>(&self, of: &ViewMut<'_, T, R>) -> Result<Sent<T, R>, Error> {
        self.send(&of.as_view(), true)
    }

    fn maybe_written<T: Pod, const R: usize>(&self, of: Option<&ViewMut<'_, T, R>>) -> Result<Option<Sent<T, R>>, Error> {
        of.map(|v| self.written(v)).transpose()
    }

    /// What is updated in place, or written in part.
    fn updated<T: Pod, const R: usize>(&self, of: &ViewMut<'_, T, R>) -> Result<Sent<T, R>, Error> {
        self.send(&of.as_view(), false)
    }

    /// Runs `work` with a poisoned workspace of just so many bytes, and looks at what lies around it afterwards.
    fn with_workspace(&self, bytes: usize, work: impl FnOnce(&mut Workspace<'_, Device>) -> Result<(), Error>) -> Result<(), Error> {
        let (margin, len) = (self.margin, bytes + 2 * self.margin);
        let mut host = vec![CANARY; len];
        host[margin..margin + bytes].fill(POISON);
        let mut buffer = self.engine.upload(&host)?;
        work(&mut Workspace::over(buffer.strided_mut(margin, [bytes], [1]))?)?;
        self.engine.synchronize()?;
        let after = buffer.to_vec()?;
        let whole = after[..margin].iter().chain(&after[margin + bytes..]).all(|b| *b == CANARY);
        assert!(whole, "a kernel wrote outside its workspace of {bytes} bytes");
        Ok(())
    }
}

/// Packed sequences on the device.
enum SentSequences {
    Rows,
    CuSeqlens(Sent<i64, 1>),
    SeqIdx(Sent<i32, 2>),
}

impl SentSequences {
    fn view(&self) -> Sequences<'_, Device> {
        match self {
            SentSequences::Rows => Sequences::Rows,
            SentSequences::CuSeqlens(v) => Sequences::CuSeqlens(v.view()),
            SentSequences::SeqIdx(v) => Sequences::SeqIdx(v.view()),
        }
    }
}

impl Carried {
    fn sequences(&self, of: &Sequences<'_, Host>) -> Result<SentSequences, Error> {
        Ok(match of {
            Sequences::Rows => SentSequences::Rows,
            Sequences::CuSeqlens(v) => SentSequences::CuSeqlens(self.read(v)?),
            Sequences::SeqIdx(v) => SentSequences::SeqIdx(self.read(v)?),
        })
    }
}

/// `name.view()` of an optional operand.
macro_rules! view {
    ($of:expr) => {
        $of.as_ref().map(|v| v.view())
    };
}
/// `name.view_mut()` of an optional operand.
macro_rules! view_mut {
    ($of:expr) => {
        $of.as_mut().map(|v| v.view_mut())
    };
}
/// Brings optional results back: `back!(engine's, host's, "name"; …)`.
macro_rules! back {
    ($($sent:expr => $host:expr, $name:literal;)+) => {
        $(if let (Some(sent), Some(host)) = (&$sent, &mut $host) {
            sent.back($name, host)?;
        })+
    };
}
pub(super) use {back, view, view_mut};

//! Memory on the device that calls reuse: tokens, activations, logits and scratch.

use crate::block::mamba::{MambaProblem, MambaSaved};
use crate::cuda::{Cuda, DeviceBuffer};
use crate::element::Real;
use crate::error::Error;
use crate::model::config::Sizes;
use crate::model::lm::ModelState;
use crate::view::Device;

/// The state of every layer for a number of rows or sequences, on the device.
#[derive(Debug)]
pub struct GpuState<T> {
    /// Number of rows.
    pub rows: usize,
    /// For each layer the convolution's window, (rows, W − 1, D).
    pub windows: Vec<DeviceBuffer<T>>,
    /// For each layer the scan's state, (rows, D, N).
    pub states: Vec<DeviceBuffer<T>>,
}

impl<T: Real> GpuState<T> {
    /// The state at the start of a text: zeros.
    ///
    /// # Errors
    /// What the driver says.
    pub fn zeros(engine: &Cuda, sizes: &Sizes, rows: usize) -> Result<Self, Error> {
        let filled = |each: usize| -> Result<Vec<_>, Error> {
            let one = |_| {
                let mut buffer = engine.buffer(rows * each)?;
                buffer.fill(0)?;
                Ok(buffer)
            };
            (0..sizes.layers).map(one).collect()
        };
        Ok(GpuState { rows, windows: filled((sizes.conv - 1) * sizes.inner)?, states: filled(sizes.inner * sizes.state)? })
    }

    /// A copy for the host; waits for the device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn download(&self) -> Result<ModelState<T>, Error> {
        let all = |of: &[DeviceBuffer<T>]| of.iter().map(DeviceBuffer::to_vec).collect::<Result<_, _>>();
        Ok(ModelState { rows: self.rows, windows: all(&self.windows)?, states: all(&self.states)? })
    }

    /// Checks that it is the state of so many rows of a model.
    pub(super) fn check(&self, sizes: &Sizes, rows: usize) -> Result<(), Error> {
        let whole = |of: &[DeviceBuffer<T>], each: usize| of.len() == sizes.layers && of.iter().all(|v| v.len() == rows * each);
        if self.rows == rows && whole(&self.windows, (sizes.conv - 1) * sizes.inner) && whole(&self.states, sizes.inner * sizes.state) {
            return Ok(());
        }
        Err(Error::Value { operand: "state", why: format!("it is not the state of {rows} rows of this model") })
    }
}

/// What one layer keeps: the stream it read, that stream normed, and what its block keeps.
#[derive(Debug)]
pub(super) struct Kept<T> {
    pub residual: DeviceBuffer<T>,
    pub normed: DeviceBuffer<T>,
    pub block: KeptBlock,
}

/// What a block keeps for backward.
#[derive(Debug)]
pub(super) struct KeptBlock {
    buffer: DeviceBuffer<u8>,
    /// Whose tensors the buffer holds.
    problem: Option<MambaProblem>,
}

impl KeptBlock {
    /// The tensors of a problem. The buffer is as large as that problem asks for.
    pub fn saved<T: Real>(&mut self, p: &MambaProblem) -> Result<MambaSaved<'_, T, Device>, Error> {
        // Another problem has its tensors elsewhere.
        self.problem = self.problem.filter(|kept| kept == p);
        MambaSaved::carve(p, &mut self.buffer.workspace(), &mut self.problem)
    }
}

/// The streams that layer `i` writes and those of the layer before it, where `kept` serve by turns.
pub(super) fn turn<T>(layers: &mut [Kept<T>], i: usize, kept: usize) -> (&mut Kept<T>, Option<&Kept<T>>) {
    match i.checked_sub(1) {
        None => (&mut layers[0], None),
        Some(before) => {
            let [own, before] = layers.get_disjoint_mut([i % kept, before % kept]).expect("two layers that differ");
            (own, Some(before))
        }
    }
}

/// How large each buffer of a [`GpuMemory`] has to be, in elements, or in bytes of scratch memory.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Need {
    /// B·L.
    pub rows: usize,
    /// Layers whose streams exist at the same time.
    pub layers: usize,
    /// Numbers of a stream.
    pub stream: usize,
    /// Bytes that a block keeps.
    pub kept: usize,
    pub logits: usize,
    pub grad: usize,
    pub grad_head: usize,
    pub scratch: usize,
}

/// Memory on the device that calls of a [`super::GpuLm`] reuse. It grows where a call is larger than all before it, and only before the
/// call's first launch.
#[derive(Debug)]
pub struct GpuMemory<T> {
    pub(super) tokens: DeviceBuffer<u32>,
    pub(super) targets: DeviceBuffer<u32>,
    pub(super) layers: Vec<Kept<T>>,
    /// What a block adds to the stream; in backward what a block gives to its norm.
    pub(super) out: DeviceBuffer<T>,
    pub(super) residual: DeviceBuffer<T>,
    pub(super) hidden: DeviceBuffer<T>,
    pub(super) logits: DeviceBuffer<T>,
    pub(super) grad: [DeviceBuffer<T>; 2],
    pub(super) grad_head: DeviceBuffer<T>,
    pub(super) row_loss: DeviceBuffer<f64>,
    /// The sum of the loss.
    pub(super) loss: DeviceBuffer<f64>,
    /// The number of targets.
    pub(super) count: DeviceBuffer<f64>,
    pub(super) scratch: DeviceBuffer<u8>,
}

fn fits<T: bytemuck::Pod>(buffer: &DeviceBuffer<T>, count: usize) -> bool {
    buffer.len() >= count
}

/// Makes a buffer at least as long; what it held is lost then.
fn grow<T: bytemuck::Pod>(engine: &Cuda, buffer: &mut DeviceBuffer<T>, count: usize) -> Result<(), Error> {
    if !fits(buffer, count) {
        // The old one goes first, so that both need not fit.
        *buffer = engine.buffer(0)?;
        *buffer = engine.buffer(count)?;
    }
    Ok(())
}

impl<T: Real> GpuMemory<T> {
    /// Holds nothing yet.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(engine: &Cuda) -> Result<Self, Error> {
        let empty = || engine.buffer(0);
        Ok(GpuMemory {
            tokens: engine.buffer(0)?,
            targets: engine.buffer(0)?,
            layers: Vec::new(),
            out: empty()?,
            residual: empty()?,
            hidden: empty()?,
            logits: empty()?,
            grad: [empty()?, empty()?],
            grad_head: empty()?,
            row_loss: engine.buffer(0)?,
            loss: engine.buffer(1)?,
            count: engine.buffer(1)?,
            scratch: engine.buffer(0)?,
        })
    }

    /// Whether it is large enough.
    pub(super) fn fits(&self, need: &Need) -> bool {
        let layer =
            |kept: &Kept<T>| fits(&kept.residual, need.stream) && fits(&kept.normed, need.stream) && fits(&kept.block.buffer, need.kept);
        let streams = [(&self.out, need.stream), (&self.residual, need.stream), (&self.hidden, need.stream), (&self.logits, need.logits)];
        let grads = [(&self.grad[0], need.grad), (&self.grad[1], need.grad), (&self.grad_head, need.grad_head)];
        self.layers.len() >= need.layers
            && self.layers[..need.layers].iter().all(layer)
            && streams.into_iter().chain(grads).all(|(buffer, count)| fits(buffer, count))
            && [&self.tokens, &self.targets].into_iter().all(|buffer| fits(buffer, need.rows))
            && fits(&self.row_loss, need.rows)
            && fits(&self.scratch, need.scratch)
    }

    /// Makes it large enough.
    pub(super) fn reserve(&mut self, engine: &Cuda, need: &Need) -> Result<(), Error> {
        while self.layers.len() < need.layers {
            let block = KeptBlock { buffer: engine.buffer(0)?, problem: None };
            let kept = Kept { residual: engine.buffer(0)?, normed: engine.buffer(0)?, block };
            self.layers.push(kept);
        }
        for kept in &mut self.layers[..need.layers] {
            grow(engine, &mut kept.residual, need.stream)?;
            grow(engine, &mut kept.normed, need.stream)?;
            if !fits(&kept.block.buffer, need.kept) {
                kept.block.problem = None;
                grow(engine, &mut kept.block.buffer, need.kept)?;
            }
        }
        let [first, second] = &mut self.grad;
        let streams = [(&mut self.out, need.stream), (&mut self.residual, need.stream), (&mut self.hidden, need.stream)];
        let others = [(&mut self.logits, need.logits), (first, need.grad), (second, need.grad), (&mut self.grad_head, need.grad_head)];
        for (buffer, count) in streams.into_iter().chain(others) {
            grow(engine, buffer, count)?;
        }
        grow(engine, &mut self.tokens, need.rows)?;
        grow(engine, &mut self.targets, need.rows)?;
        grow(engine, &mut self.row_loss, need.rows)?;
        grow(engine, &mut self.scratch, need.scratch)
    }
}

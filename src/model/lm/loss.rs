//! Mean cross-entropy of the next token, and its gradient by the logits.

use super::{Call, LmMemory, MambaLm, ModelState, ROWS, grown, head_weight};
use crate::block::HostEngine;
use crate::buffer::Workspace;
use crate::element::Real;
use crate::error::Error;
use crate::layers::linear::{LinearBwd, LinearFwd};
use crate::model::{Parameters, Sizes};
use crate::ops::Sum;
use crate::par::Par;
use crate::sequences::Sequences;
use crate::view::{Cut, View, ViewMut};

/// A target that is no token: its position has no part in the loss.
pub const IGNORE: u32 = u32::MAX;

/// The most logits that exist at a time; positions are taken in blocks of rows.
const LOGITS: usize = 1 << 22;

/// A summed loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Σ −ln p(target), in nats.
    pub sum: f64,
    /// Number of targets.
    pub count: usize,
}

impl Loss {
    /// The mean in nats; NaN without targets.
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The mean in bits.
    pub fn bits(&self) -> f64 {
        self.mean() * core::f64::consts::LOG2_E
    }
}

/// −ln softmax(logits)[target], and the logits replaced by (softmax − one-hot) · scale where `scale` is given.
fn cross_entropy<T: Real>(logits: &mut [T], target: u32, scale: Option<f64>) -> f64 {
    if target == IGNORE {
        if scale.is_some() {
            logits.fill(T::ZERO);
        }
        return 0.0;
    }
    // A NaN becomes the largest, and stays it.
    let largest = logits.iter().fold(T::from_f64(f64::NEG_INFINITY), |most, &x| if x <= most { most } else { x });
    let wanted = (logits[target as usize] - largest).to_f64();
    if scale.is_none() {
        let total: f64 = logits.iter().map(|&x| (x - largest).exp().to_f64()).sum();
        return total.ln() - wanted;
    }
    let mut total = 0.0;
    for x in logits.iter_mut() {
        *x = (*x - largest).exp();
        total += x.to_f64();
    }
    let scale = scale.unwrap_or(0.0);
    let factor = T::from_f64(scale / total);
    for x in logits.iter_mut() {
        *x = *x * factor;
    }
    let at = &mut logits[target as usize];
    *at = *at - T::from_f64(scale);
    total.ln() - wanted
}

/// Runs [`cross_entropy`] on every row.
fn rows_loss<T: Real>(
    par: Par,
    logits: &mut [T],
    vocab: usize,
    targets: &[u32],
    scale: Option<f64>,
    losses: &mut [f64],
    ws: &mut Workspace<'_>,
) -> Result<(), Error> {
    let rows = targets.len();
    let tiles = ViewMut::new(logits, [rows, vocab]).tiles(Cut::Every(0, ROWS), Cut::Whole);
    let loss_tiles = ViewMut::new(losses, [rows]).tiles(Cut::Every(0, ROWS), Cut::Whole);
    par.run(0, rows.div_ceil(ROWS), (tiles, loss_tiles), &mut ws.reborrow(), 0, |i, (tile, losses), _| {
        let rows = tile.into_slice().chunks_exact_mut(vocab).zip(losses.into_slice());
        for ((logits, loss), &target) in rows.zip(&targets[i * ROWS..]) {
            *loss = cross_entropy(logits, target, scale);
        }
    })
}

/// Checks targets of tokens.
pub(in crate::model) fn check_targets(sizes: &Sizes, tokens: &[u32], targets: &[u32]) -> Result<(), Error> {
    let fault = |why: String| Err(Error::Value { operand: "targets", why });
    if targets.len() != tokens.len() {
        return fault(format!("they are {}, the tokens {}", targets.len(), tokens.len()));
    }
    match targets.iter().enumerate().find(|&(_, &id)| id != IGNORE && id as usize >= sizes.vocab) {
        Some((i, id)) => fault(format!("target {i} is {id}, the vocabulary has {}", sizes.vocab)),
        None => Ok(()),
    }
}

impl<E: HostEngine> MambaLm<E> {
    /// Rows whose logits exist at a time.
    pub(super) fn head_rows(&self, rows: usize) -> usize {
        (LOGITS / self.sizes.vocab).clamp(1, rows.max(1))
    }

    /// The loss of `targets`, (B, L), after `tokens`, (B, L): target t is the token that follows token t, or [`IGNORE`].
    ///
    /// `state` is the state of B rows before the first token; afterwards it is that after the last one, so that a long text can be
    /// taken window by window.
    ///
    /// # Errors
    /// [`Error::Value`] where an operand does not fit the model.
    pub fn loss<T: Real>(
        &self,
        parameters: &Parameters<T>,
        tokens: &[u32],
        targets: &[u32],
        batch: usize,
        state: Option<&mut ModelState<T>>,
        memory: &mut LmMemory<T>,
    ) -> Result<Loss, Error> {
        self.check(parameters, tokens, batch)?;
        check_targets(&self.sizes, tokens, targets)?;
        let mut call = Call { tokens, batch, sequences: Sequences::Rows, states: batch, initial: None, last: None, keep: false };
        match state {
            None => self.hidden(parameters, call, memory)?,
            Some(state) => {
                state.check(&self.sizes, batch)?;
                let mut next = memory.next.take().filter(|next| next.rows == batch && next.check(&self.sizes, batch).is_ok());
                let next_state = next.get_or_insert_with(|| ModelState::zeros(&self.sizes, batch));
                call.initial = Some(state);
                call.last = Some(next_state);
                self.hidden(parameters, call, memory)?;
                core::mem::swap(state, next_state);
                memory.next = next;
            }
        }
        self.head_loss(parameters, targets, None, memory)
    }

    /// The loss of `memory.hidden`; with `gradient`, that of the head (written there) and ∂ℓ/∂hidden in `memory.grad[0]`, of the mean.
    pub(super) fn head_loss<T: Real>(
        &self,
        parameters: &Parameters<T>,
        targets: &[u32],
        mut gradient: Option<&mut [T]>,
        memory: &mut LmMemory<T>,
    ) -> Result<Loss, Error> {
        let (rows, vocab, hidden) = (targets.len(), self.sizes.vocab, self.sizes.hidden);
        let count = targets.iter().filter(|&&id| id != IGNORE).count();
        let scale = gradient.is_some().then(|| 1.0 / count.max(1) as f64);
        let block = self.head_rows(rows);
        let bytes = self.scratch_bytes::<T>(&self.problem(1, rows, 1), block, gradient.is_some());
        let mut ws = memory.buffer.workspace(bytes);
        let weight = View::new(head_weight(parameters), [vocab, hidden]);
        let grad_hidden = grown(&mut memory.grad[0], if gradient.is_some() { rows * hidden } else { 0 });
        let losses = grown(&mut memory.row_loss, rows);
        for from in (0..rows).step_by(block) {
            let range = from..(from + block).min(rows);
            let n = range.len();
            let logits = grown(&mut memory.logits, n * vocab);
            let x = View::new(&memory.hidden[from * hidden..], [n, hidden]);
            self.engine.linear_fwd(LinearFwd { x, weight, bias: None, out: ViewMut::new(logits, [n, vocab]) }, &mut ws.reborrow())?;
            rows_loss(self.par, logits, vocab, &targets[range.clone()], scale, &mut losses[range], &mut ws)?;
            let Some(total) = gradient.as_deref_mut() else { continue };
            // The first block writes the gradient, later ones are added to it.
            let part = if from == 0 { &mut *total } else { grown(&mut memory.grad_weight, vocab * hidden) };
            let args = LinearBwd {
                x,
                weight,
                grad_out: View::new(&*logits, [n, vocab]),
                grad_x: Some(ViewMut::new(&mut grad_hidden[from * hidden..], [n, hidden])),
                grad_weight: Some(ViewMut::new(part, [vocab, hidden])),
                grad_bias: None,
            };
            self.engine.linear_bwd(args, &mut ws.reborrow())?;
            if from > 0 {
                total.iter_mut().zip(&memory.grad_weight).for_each(|(total, &part)| *total += part);
            }
        }
        let mut sum = Sum::default();
        losses.iter().for_each(|&loss| sum.add(loss));
        Ok(Loss { sum: sum.value(), count })
    }
}

//! Gradients of every parameter.

use super::{Call, LmMemory, Loss, MambaLm, ROWS, block_params, check_targets, grown};
use crate::block::HostEngine;
use crate::block::mamba::{MambaBwd, MambaGrads, MambaInputs, MambaProblem};
use crate::buffer::Workspace;
use crate::element::Real;
use crate::error::Error;
use crate::layers::norm::NormBwd;
use crate::model::parameters::Layer;
use crate::model::{Parameters, Sizes};
use crate::par::Par;
use crate::sequences::Sequences;
use crate::view::{Cut, View, ViewMut};

fn vector<T: Real>(v: &mut [T]) -> Option<ViewMut<'_, T, 1>> {
    let count = v.len();
    Some(ViewMut::new(v, [count]))
}

fn matrix<T: Real>(v: &mut [T], dims: [usize; 2]) -> Option<ViewMut<'_, T, 2>> {
    Some(ViewMut::new(v, dims))
}

/// Where the gradients of a layer's block go.
fn block_grads<'a, T: Real>(layer: &'a mut Layer<T>, sizes: &Sizes, x: ViewMut<'a, T, 3>) -> MambaGrads<'a, T> {
    let Sizes { hidden, inner, state, rank, conv, .. } = *sizes;
    MambaGrads {
        x: Some(x),
        in_proj: matrix(&mut layer.in_proj, [2 * inner, hidden]),
        in_proj_bias: layer.in_proj_bias.as_deref_mut().and_then(vector),
        conv_weight: matrix(&mut layer.conv_weight, [inner, conv]),
        conv_bias: layer.conv_bias.as_deref_mut().and_then(vector),
        x_proj: matrix(&mut layer.x_proj, [rank + 2 * state, inner]),
        dt_proj: matrix(&mut layer.dt_proj, [inner, rank]),
        dt_bias: vector(&mut layer.dt_bias),
        A_log: matrix(&mut layer.a_log, [inner, state]),
        D: vector(&mut layer.d),
        out_proj: matrix(&mut layer.out_proj, [hidden, inner]),
        out_proj_bias: layer.out_proj_bias.as_deref_mut().and_then(vector),
        initial_window: None,
        initial_state: None,
    }
}

impl<E: HostEngine> MambaLm<E> {
    /// The loss of `targets` after `tokens`, both (B, L), and the gradient of its mean by every parameter, written to `gradients`.
    ///
    /// # Errors
    /// [`Error::Value`] where an operand does not fit the model.
    pub fn loss_and_gradients<T: Real>(
        &self,
        parameters: &Parameters<T>,
        tokens: &[u32],
        targets: &[u32],
        batch: usize,
        gradients: &mut Parameters<T>,
        memory: &mut LmMemory<T>,
    ) -> Result<Loss, Error> {
        let seqlen = self.check(parameters, tokens, batch)?;
        check_targets(&self.sizes, tokens, targets)?;
        gradients.check("gradients", &self.sizes)?;
        let call = Call { tokens, batch, sequences: Sequences::Rows, states: batch, initial: None, last: None, keep: true };
        self.hidden(parameters, call, memory)?;
        let tied = gradients.lm_head.is_none();
        let head = gradients.lm_head.as_mut().unwrap_or(&mut gradients.embeddings);
        if tokens.is_empty() {
            head.fill(T::ZERO);
        }
        let loss = self.head_loss(parameters, targets, Some(head), memory)?;
        let p = self.problem(batch, seqlen, batch);
        self.layers_backward(parameters, &p, gradients, memory)?;
        let mut ws = memory.buffer.workspace(self.scratch_bytes::<T>(&p, 0, true));
        let by_token = ByToken::new(tokens, self.sizes.vocab, &mut memory.starts, &mut memory.order);
        by_token.sum(self.par, &memory.grad[0], &mut gradients.embeddings, self.sizes.hidden, tied, &mut ws)?;
        Ok(loss)
    }

    /// From ∂ℓ/∂hidden in `memory.grad[0]` through last norm and blocks to ∂ℓ/∂embedded, in `memory.grad[0]` again.
    fn layers_backward<T: Real>(
        &self,
        parameters: &Parameters<T>,
        p: &MambaProblem,
        gradients: &mut Parameters<T>,
        memory: &mut LmMemory<T>,
    ) -> Result<(), Error> {
        let (rows, hidden) = (p.batch * p.seqlen, p.hidden);
        let x_dims = [p.batch, p.seqlen, hidden];
        let mut ws = memory.buffer.workspace(self.scratch_bytes::<T>(p, 0, true));
        // ∂ℓ/∂stream goes to and fro between two buffers; the third holds what a block gives to its norm.
        let [first, second] = &mut memory.grad;
        let (mut from, mut to) = (grown(first, rows * hidden), grown(second, rows * hidden));
        let normed = grown(&mut memory.out, rows * hidden);
        let stream = &memory.residual[..];
        self.norm_backward([rows, hidden], &parameters.norm_f, stream, from, None, to, &mut gradients.norm_f, &mut ws)?;
        for (i, layer) in parameters.layers.iter().enumerate().rev() {
            core::mem::swap(&mut from, &mut to);
            let (own, grads) = (&mut memory.layers[i], &mut gradients.layers[i]);
            let inputs = MambaInputs::new(block_params(layer, &self.sizes, None), View::new(&own.normed, x_dims));
            let args = MambaBwd {
                inputs,
                saved: &own.block.saved(p),
                grad_out: View::new(&*from, x_dims),
                grad_final_window: None,
                grad_last_state: None,
                grads: block_grads(grads, &self.sizes, ViewMut::new(normed, x_dims)),
            };
            self.block().backward(args, &mut ws)?;
            self.norm_backward([rows, hidden], &layer.norm, &own.residual, normed, Some(from), to, &mut grads.norm, &mut ws)?;
        }
        // After an even number of layers the result is in the second buffer.
        if parameters.layers.len().is_multiple_of(2) {
            memory.grad.swap(0, 1);
        }
        Ok(())
    }

    fn norm_backward<T: Real>(
        &self,
        dims: [usize; 2],
        weight: &[T],
        stream: &[T],
        grad_out: &[T],
        grad_stream: Option<&[T]>,
        grad_x: &mut [T],
        grad_weight: &mut [T],
        ws: &mut Workspace<'_>,
    ) -> Result<(), Error> {
        let (stream, weight, eps) = (View::new(stream, dims), View::new(weight, [dims[1]]), self.config.layer_norm_epsilon);
        let args = NormBwd::<T, T> {
            grad_residual_out: grad_stream.map(|g| View::new(g, dims)),
            grad_x: Some(ViewMut::new(grad_x, dims)),
            grad_weight: Some(ViewMut::new(grad_weight, [dims[1]])),
            ..NormBwd::new(stream, weight, eps, View::new(grad_out, dims))
        };
        self.engine.rms_norm_bwd(args, &mut ws.reborrow())
    }
}

/// Positions sorted by their token, those of one token in order: each thread sums whole tokens, so the order of the sum is fixed.
struct ByToken<'a> {
    /// `order[starts[token]..starts[token + 1]]` are the positions of a token.
    starts: &'a [usize],
    order: &'a [usize],
}

impl<'a> ByToken<'a> {
    fn new(tokens: &[u32], vocab: usize, starts: &'a mut Vec<usize>, order: &'a mut Vec<usize>) -> Self {
        starts.clear();
        starts.resize(vocab + 2, 0);
        order.clear();
        order.resize(tokens.len(), 0);
        // Two places on, so that filling moves each start to the next token's.
        tokens.iter().for_each(|&token| starts[token as usize + 2] += 1);
        (2..vocab + 2).for_each(|i| starts[i] += starts[i - 1]);
        for (place, &token) in tokens.iter().enumerate() {
            let next = &mut starts[token as usize + 1];
            order[*next] = place;
            *next += 1;
        }
        ByToken { starts, order }
    }

    /// out[token] = Σ over its positions of grad[position], in f64; added to what is there where `add` is on.
    fn sum<T: Real>(&self, par: Par, grad: &[T], out: &mut [T], hidden: usize, add: bool, ws: &mut Workspace<'_>) -> Result<(), Error> {
        let vocab = self.starts.len() - 2;
        let tiles = ViewMut::new(out, [vocab, hidden]).tiles(Cut::Every(0, ROWS), Cut::Whole);
        par.run(0, vocab.div_ceil(ROWS), (tiles,), &mut ws.reborrow(), hidden * size_of::<f64>(), |i, (tile,), ws| {
            let total = ws.slice::<f64>(hidden).expect("the scratch memory was sized for one row");
            for (j, out) in tile.into_slice().chunks_exact_mut(hidden).enumerate() {
                let token = i * ROWS + j;
                for (total, &out) in total.iter_mut().zip(&*out) {
                    *total = if add { out.to_f64() } else { 0.0 };
                }
                for &place in &self.order[self.starts[token]..self.starts[token + 1]] {
                    let row = &grad[place * hidden..][..hidden];
                    total.iter_mut().zip(row).for_each(|(total, &g)| *total += g.to_f64());
                }
                out.iter_mut().zip(&*total).for_each(|(out, &total)| *out = T::from_f64(total));
            }
        })
    }
}

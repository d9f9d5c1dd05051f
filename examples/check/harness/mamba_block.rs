//! Cases of the whole Mamba block.

use std::time::Instant;

use half::{bf16, f16};
use selective_scan::Error;
use selective_scan::element::{Dtype, Input};
use selective_scan::naive::Naive;
use selective_scan::selective::SelectiveOptions;

use super::array::Array;
use super::case::Case;
use super::compare::{Bound, compare, compare_bits};
use super::conv1d::Conv1d;
use super::engines::{Entry, HostEngine, Visit};
use super::operation::{Check, Named, Operation, Reference, Role, named};
use super::report::Findings;
use super::selective::Selective;
use super::tensor::Layout;
use super::transform::{Packing, Transform};

pub mod typed;

use typed::{Operands, Tensors, steps};

/// What a case may hold: name, rank, and whether it must be there. All but upstream gradients have a gradient.
const OPERANDS: [(&str, usize, bool); 14] = [
    ("x", 3, true),
    ("in_proj.weight", 2, true),
    ("in_proj.bias", 1, false),
    ("conv1d.weight", 3, true),
    ("conv1d.bias", 1, false),
    ("x_proj.weight", 2, true),
    ("dt_proj.weight", 2, true),
    ("dt_proj.bias", 1, true),
    ("A_log", 2, true),
    ("D", 1, true),
    ("out_proj.weight", 2, true),
    ("out_proj.bias", 1, false),
    ("window", 3, false),
    ("h0", 3, false),
];
const UPSTREAM: [(&str, usize, bool); 3] = [("grad_out", 3, true), ("grad_final_window", 3, false), ("grad_last_state", 3, false)];

/// A block, its inputs and its upstream gradients, in f64.
#[derive(Debug, Clone)]
struct Block {
    tensors: Tensors,
    packing: Packing,
}

/// A case that can be run.
pub struct MambaBlock {
    problem: Block,
    reference: Reference,
    n_eff: f64,
}

impl MambaBlock {
    /// Takes a case apart. `Err` is one sentence about what is malformed.
    pub fn read(mut case: Case) -> Result<Self, String> {
        let mut tensors = Tensors::new();
        for (name, rank, needed) in OPERANDS.into_iter().chain(UPSTREAM) {
            match case.optional(name, &[rank], false)? {
                Some(found) => drop(tensors.insert(name.into(), found)),
                None if needed => return Err(format!("tensor `{name}` is missing")),
                None => {}
            }
        }
        let middle = tensors["conv1d.weight"].dims[1];
        if middle != 1 {
            return Err(format!("tensor `conv1d.weight` has {middle} channels a group, wanted 1"));
        }
        let problem = Block { tensors, packing: case.cu_seqlens()?.map_or(Packing::Rows, Packing::CuSeqlens) };
        let p = Operands::<f64>::new(&problem.tensors, &problem.packing, Layout::Contiguous).inputs().check();
        let p = p.map_err(|e| e.to_string())?;
        let window = Array::zeros(&[p.states, p.width - 1, p.inner], false);
        let state = Array::zeros(&[p.states, p.inner, p.dstate], false);
        for (name, like) in [("grad_out", &problem.tensors["x"]), ("grad_final_window", &window), ("grad_last_state", &state)] {
            if let Some(found) = problem.tensors.get(name).filter(|found| found.dims != like.dims) {
                return Err(format!("tensor `{name}` has shape {:?}, wanted {:?}", found.dims, like.dims));
            }
        }
        let mut reference = vec![("out".to_owned(), case.reference("out", &problem.tensors["x"])?)];
        reference.push(("final_window".into(), case.reference("final_window", &window)?));
        reference.push(("last_state".into(), case.reference("last_state", &state)?));
        for (name, like) in OPERANDS.iter().filter_map(|(name, ..)| problem.tensors.get_key_value(*name)) {
            let name = format!("grad.{name}");
            let gradient = case.reference(&name, like)?;
            reference.push((name, gradient));
        }
        case.finish()?;
        let n_eff = problem.n_eff().map_err(|e| e.to_string())?;
        Ok(MambaBlock { problem, reference, n_eff })
    }

    fn wanted(&self, name: &str) -> &Array {
        &self.reference.iter().find(|(n, _)| n == name).expect("the case reader asks for every reference").1
    }

    /// Packed by cu_seqlens, or the packed sequences one by one.
    fn rearranged(&self, place: Place<'_>, findings: &mut Findings) -> Result<(), Error> {
        let arrangements = match &self.problem.packing {
            Packing::CuSeqlens(offsets) => (0..offsets.len() - 1).map(|i| Transform::alone(offsets, i)).collect(),
            _ => {
                let [batch, seqlen] = self.problem.sizes();
                vec![Transform::pack(batch, seqlen)]
            }
        };
        for by in arrangements {
            for found in place.results(&self.problem.transform(&by), Call::Run(Layout::Contiguous))? {
                let wanted = self.wanted(&found.name);
                let wanted = match found.role {
                    Role::Positions => by.positions(wanted),
                    Role::States => wanted.take(&by.states),
                    Role::Shared if by.whole => wanted.clone(),
                    Role::Shared => continue,
                };
                let bound = place.bound.of_terms(largest(self.wanted(&found.name)));
                findings.add(&found.name, compare(&found.array.data, &wanted.data, bound), &by.label);
            }
        }
        Ok(())
    }

    /// In two calls, and a prefill followed by steps.
    fn continued(&self, place: Place<'_>, findings: &mut Findings) -> Result<(), Error> {
        let [batch, seqlen] = self.problem.sizes();
        if self.problem.packing != Packing::Rows || batch == 0 {
            return Ok(());
        }
        let mut splits = vec![0, 1, 2, seqlen / 2, seqlen.saturating_sub(1)];
        splits.sort_unstable();
        splits.dedup();
        for split in splits.into_iter().filter(|&s| s < seqlen) {
            let first = self.problem.transform(&Transform::slice(batch, 0, split));
            let first = place.results(&first, Call::Forward)?;
            let head = &named(&first, "out").array;
            let mut second = self.problem.transform(&Transform::slice(batch, split, seqlen));
            for (name, end) in [("window", "final_window"), ("h0", "last_state")] {
                second.tensors.insert(name.into(), named(&first, end).array.clone());
            }
            for (how, call) in [("in two calls, cut at", Call::Forward), ("steps from", Call::Steps)] {
                for found in place.results(&second, call)? {
                    let whole = if found.name == "out" { Array::join(&[head.clone(), found.array]) } else { found.array };
                    findings.add(&found.name, compare(&whole.data, &self.wanted(&found.name).data, place.bound), &format!("{how} {split}"));
                }
            }
        }
        Ok(())
    }
}

impl Check for MambaBlock {
    fn on(&self, entry: &Entry, dtype: Dtype) -> Result<Findings, Error> {
        let place = Place { entry, dtype, bound: Bound::whole(dtype, self.n_eff) };
        let mut findings = Findings::default();
        let started = Instant::now();
        let base = place.results(&self.problem, Call::Run(Layout::Contiguous))?;
        findings.seconds = started.elapsed().as_secs_f64();
        let strided = Layout::STRIDED.map(|layout| (layout.name(), Call::Run(layout)));
        let mut note = |results: &[Named], how: &str| {
            for found in results {
                findings.add(&found.name, compare(&found.array.data, &self.wanted(&found.name).data, place.bound), how);
            }
        };
        note(&base, "plain");
        for (how, call) in strided {
            note(&place.results(&self.problem, call)?, how);
        }
        for found in place.results(&self.problem, Call::Forward)? {
            let deviation = compare_bits(&found.array.data, &named(&base, &found.name).array.data);
            findings.add(&found.name, deviation, "without keeping activations");
        }
        self.rearranged(place, &mut findings)?;
        self.continued(place, &mut findings)?;
        Ok(findings)
    }

    fn reference_mut(&mut self) -> &mut Reference {
        &mut self.reference
    }
}

fn largest(array: &Array) -> f64 {
    array.data.iter().fold(0.0f64, |most, x| most.max(x.abs()))
}

/// One engine in one storage type, and how far it may be off there.
#[derive(Clone, Copy)]
struct Place<'a> {
    entry: &'a Entry,
    dtype: Dtype,
    bound: Bound,
}

impl Place<'_> {
    fn results(self, problem: &Block, call: Call) -> Result<Vec<Named>, Error> {
        self.entry.visit(Asked { problem, dtype: self.dtype, call })
    }
}

/// One way of calling the block.
#[derive(Debug, Clone, Copy)]
enum Call {
    Run(Layout),
    Forward,
    Steps,
}

struct Asked<'a> {
    problem: &'a Block,
    dtype: Dtype,
    call: Call,
}

impl Asked<'_> {
    fn answer<I: Input, E: HostEngine>(&self, engine: &E) -> Result<Vec<Named>, Error> {
        let operands = |layout| Operands::<I>::new(&self.problem.tensors, &self.problem.packing, layout);
        match self.call {
            Call::Run(layout) => operands(layout).run(engine),
            Call::Forward => operands(Layout::Contiguous).forward(engine),
            Call::Steps => steps::<I, E>(engine, &self.problem.tensors),
        }
    }
}

impl Visit for Asked<'_> {
    type Output = Result<Vec<Named>, Error>;

    fn visit<E: HostEngine>(self, engine: &E) -> Self::Output {
        match self.dtype {
            Dtype::F64 => self.answer::<f64, E>(engine),
            Dtype::F32 => self.answer::<f32, E>(engine),
            Dtype::F16 => self.answer::<f16, E>(engine),
            Dtype::Bf16 => self.answer::<bf16, E>(engine),
            other => panic!("{other:?} is not a storage type of inputs"),
        }
    }
}

impl Block {
    /// B and L.
    fn sizes(&self) -> [usize; 2] {
        [self.tensors["x"].dims[0], self.tensors["x"].dims[1]]
    }

    /// The same block on inputs arranged in another way.
    fn transform(&self, by: &Transform) -> Self {
        let mut tensors = self.tensors.clone();
        for name in ["x", "grad_out"] {
            tensors.insert(name.into(), by.input(&self.tensors[name]));
        }
        for name in ["window", "h0", "grad_final_window", "grad_last_state"] {
            if let Some(state) = self.tensors.get(name) {
                tensors.insert(name.into(), state.take(&by.states));
            }
        }
        Block { tensors, packing: by.packing.clone() }
    }

    /// How many steps the decay of the scan inside remembers.
    fn n_eff(&self) -> Result<f64, Error> {
        let t = &self.tensors;
        let xz = product(&t["x"], &t["in_proj.weight"], t.get("in_proj.bias"));
        let (inner, rank, dstate) = (t["D"].dims[0], t["dt_proj.weight"].dims[1], t["A_log"].dims[1]);
        let x = columns(&xz, 0, inner);
        let conv = Conv1d {
            grad_out: x.clone(),
            x,
            weight: Array { dims: vec![inner, t["conv1d.weight"].dims[2]], ..t["conv1d.weight"].clone() },
            bias: t.get("conv1d.bias").cloned(),
            window: t.get("window").cloned(),
            grad_final_window: None,
            silu: true,
            packing: self.packing.clone(),
        };
        let u = conv.forward::<Naive, f64, f64>(&Naive, Layout::Contiguous)?.swap_remove(0).array;
        let low = product(&u, &t["x_proj.weight"], None);
        let coefficient = |from: usize| {
            let mut part = columns(&low, from, dstate);
            part.dims.insert(2, 1);
            part
        };
        let A = Array { data: t["A_log"].data.iter().map(|log| -log.exp()).collect(), ..t["A_log"].clone() };
        let scan = Selective {
            delta: product(&columns(&low, 0, rank), &t["dt_proj.weight"], None),
            A,
            B: coefficient(rank),
            C: coefficient(rank + dstate),
            D: None,
            z: None,
            delta_bias: Some(t["dt_proj.bias"].clone()),
            h0: t.get("h0").cloned(),
            grad_out: u.clone(),
            grad_last_state: None,
            options: SelectiveOptions { delta_softplus: true, ..Default::default() },
            packing: self.packing.clone(),
            n_eff: 0.0,
            u,
        };
        Ok(scan.measured()?.n_eff)
    }
}

/// x·Wᵀ + bias for x of (B, L, K) and W of (M, K).
fn product(x: &Array, weight: &Array, bias: Option<&Array>) -> Array {
    let (inputs, outputs) = (weight.dims[1], weight.dims[0]);
    let mut data = Vec::new();
    for row in x.data.chunks(inputs) {
        for (m, weights) in weight.data.chunks(inputs).enumerate() {
            let sum: f64 = row.iter().zip(weights).map(|(x, w)| x * w).sum();
            data.push(sum + bias.map_or(0.0, |b| b.data[m]));
        }
    }
    Array { dims: vec![x.dims[0], x.dims[1], outputs], data, complex: false }
}

/// Part of the last of three axes.
fn columns(x: &Array, from: usize, count: usize) -> Array {
    let data = x.data.chunks(x.dims[2]).flat_map(|row| row[from..from + count].iter().copied()).collect();
    Array { dims: vec![x.dims[0], x.dims[1], count], data, complex: false }
}

//! What a device adds: two engines at once, graphs, addresses from elsewhere, faults of the driver, and numbers in device memory that nobody
//! checked.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use selective_scan::Error;
use selective_scan::buffer::Workspace;
use selective_scan::cuda::{Cuda, DeviceBuffer, Regime};
use selective_scan::element::Dtype;
use selective_scan::layers::conv1d::{CausalConv1d, ConvBwd, ConvFwd, ConvGrads, ConvInputs, ConvStep};
use selective_scan::layers::elementwise::Elementwise;
use selective_scan::ops::Rule;
use selective_scan::selective::{
    Coefficient, CoefficientGrad, SelectiveBwd, SelectiveFwd, SelectiveGrads, SelectiveInputs, SelectiveOptions, SelectiveScan,
    SelectiveStep,
};
use selective_scan::sequences::Sequences;
use selective_scan::view::{Device, View, ViewMut};

use super::pairs::Draw;
use super::selective::run_in;
use super::selective_grid::plain;
use super::tensor::Layout;
use super::{Faults, Found, named, same_bits};
use crate::interpreter::Interpreter;
use crate::{carried, engine, is_real, real};

/// B, L, D and N: two carry chunks.
const SIZES: [usize; 4] = [2, 150, 6, 16];
/// Width of the convolution.
const WIDTH: usize = 4;
/// Around what is written on a GPU, in elements. The interpreter checks every access, and there nothing may hide in it.
const MARGIN: usize = 64;
const CANARY: f32 = 1984.0;

/// f32 on the device with a margin on both sides.
struct Held {
    buffer: DeviceBuffer<f32>,
    margin: usize,
    len: usize,
}

impl Held {
    fn new(to: &Cuda, data: &[f32]) -> Self {
        let margin = if is_real() { MARGIN } else { 0 };
        let around = vec![CANARY; margin];
        let all = [&around[..], data, &around].concat();
        Held { buffer: to.upload(&all).expect("a small buffer"), margin, len: data.len() }
    }

    fn view<const R: usize>(&self, dims: [usize; R]) -> View<'_, f32, R, Device> {
        self.buffer.strided(self.margin, dims, selective_scan::view::contiguous(dims))
    }

    fn view_mut<const R: usize>(&mut self, dims: [usize; R]) -> ViewMut<'_, f32, R, Device> {
        self.buffer.strided_mut(self.margin, dims, selective_scan::view::contiguous(dims))
    }

    /// The numbers; panics where the margin has changed.
    fn read(&self) -> Vec<f32> {
        let all = self.buffer.to_vec().expect("it can be read");
        let (low, rest) = all.split_at(self.margin);
        let (own, high) = rest.split_at(self.len);
        assert!(low.iter().chain(high).all(|x| *x == CANARY), "a kernel wrote outside its tensor");
        own.to_vec()
    }

    fn set(&mut self, data: &[f32]) {
        let around = vec![CANARY; self.margin];
        self.buffer.upload(&[&around[..], data, &around].concat()).expect("it can be written");
    }
}

/// Everything of a forward and a backward scan, a step and a convolution, in memory of its own on the device.
struct Work {
    u: Held,
    delta: Held,
    a: Held,
    b: Held,
    z: Held,
    state: Held,
    out: Held,
    last: Held,
    grad_u: Held,
    grad_delta: Held,
    grad_a: Held,
    grad_b: Held,
    step: Held,
    moved: Held,
    weight: Held,
    window: Held,
    conv: Held,
    grad_x: Held,
    grad_weight: Held,
    room: DeviceBuffer<u8>,
    sizes: [usize; 4],
    /// Entries of states.
    states: usize,
}

/// As many numbers as `dims` has.
fn numbers(draw: &mut Draw, dims: &[usize], low: f64, high: f64) -> Vec<f32> {
    draw.array(dims, false, Dtype::F32, low, high).data.into_iter().map(|x| x as f32).collect()
}

impl Work {
    fn new(on: &Cuda, sizes @ [batch, seqlen, dim, dstate]: [usize; 4], states: usize) -> Self {
        let mut draw = Draw(17);
        let mut held = |dims: &[usize], low, high| Held::new(on, &numbers(&mut draw, dims, low, high));
        let (positions, kept, window) = ([batch, seqlen, dim], [states, dim, dstate], [states, WIDTH - 1, dim]);
        let (u, delta, a) = (held(&positions, -1.0, 1.0), held(&positions, -3.0, 2.0), held(&[dim, dstate], -2.0, -0.05));
        let (b, z, state) = (held(&[batch, seqlen, 2, dstate], -1.0, 1.0), held(&positions, -2.0, 2.0), held(&kept, -1.0, 1.0));
        let (weight, windows) = (held(&[dim, WIDTH], -1.0, 1.0), held(&window, -1.0, 1.0));
        let blank = |dims: &[usize]| Held::new(on, &vec![f32::NAN; dims.iter().product()]);
        Work {
            u,
            delta,
            a,
            b,
            z,
            state,
            out: blank(&positions),
            last: blank(&kept),
            grad_u: blank(&positions),
            grad_delta: blank(&positions),
            grad_a: blank(&[dim, dstate]),
            grad_b: blank(&[batch, seqlen, 2, dstate]),
            step: blank(&[batch, dim]),
            moved: blank(&[batch, dim]),
            weight,
            window: windows,
            conv: blank(&positions),
            grad_x: blank(&positions),
            grad_weight: blank(&[dim, WIDTH]),
            room: on.buffer(8 << 20).expect("a small buffer"),
            sizes,
            states,
        }
    }

    /// Everything in order; the steps move their states.
    fn run(&mut self, on: &Cuda, sequences: Sequences<'_, Device>) -> Result<(), Error> {
        self.scan(on, sequences, false)?;
        self.scan(on, sequences, true)?;
        self.convolve(on, sequences)?;
        self.steps(on, None)?;
        self.moves(on, None)
    }

    /// The scan forward, or backward.
    fn scan(&mut self, on: &Cuda, sequences: Sequences<'_, Device>, backward: bool) -> Result<(), Error> {
        let [batch, seqlen, dim, dstate] = self.sizes;
        let (positions, kept, groups) = ([batch, seqlen, dim], [self.states, dim, dstate], [batch, seqlen, 2, dstate]);
        let ws = &mut self.room.workspace();
        let inputs = SelectiveInputs {
            u: self.u.view(positions),
            delta: self.delta.view(positions),
            A: self.a.view([dim, dstate]),
            B: Coefficient::<f32, f32, 4, Device>::Varying(self.b.view(groups)),
            C: Coefficient::Varying(self.b.view(groups)),
            D: None,
            z: Some(self.z.view(positions)),
            delta_bias: None,
            initial_state: Some(self.state.view(kept)),
            sequences,
            options: SelectiveOptions { delta_softplus: true, ..Default::default() },
        };
        if !backward {
            let args = SelectiveFwd { inputs, out: self.out.view_mut(positions), last_state: Some(self.last.view_mut(kept)) };
            return on.selective_scan_fwd(args, ws);
        }
        let grads = SelectiveGrads {
            u: Some(self.grad_u.view_mut(positions)),
            delta: Some(self.grad_delta.view_mut(positions)),
            A: Some(self.grad_a.view_mut([dim, dstate])),
            B: Some(CoefficientGrad::Varying(self.grad_b.view_mut(groups))),
            ..Default::default()
        };
        let args = SelectiveBwd { inputs, grad_out: self.z.view(positions), grad_last_state: None, grads };
        on.selective_scan_bwd(args, ws)
    }

    fn convolve(&mut self, on: &Cuda, sequences: Sequences<'_, Device>) -> Result<(), Error> {
        let [batch, seqlen, dim, _] = self.sizes;
        let (positions, ws) = ([batch, seqlen, dim], &mut self.room.workspace());
        let inputs = ConvInputs {
            x: self.u.view(positions),
            weight: self.weight.view([dim, WIDTH]),
            bias: None,
            initial_window: Some(self.window.view([self.states, WIDTH - 1, dim])),
            sequences,
            silu: true,
        };
        on.causal_conv1d_fwd(ConvFwd { inputs, out: self.conv.view_mut(positions), final_window: None }, &mut ws.reborrow())?;
        let grads = ConvGrads {
            x: Some(self.grad_x.view_mut(positions)),
            weight: Some(self.grad_weight.view_mut([dim, WIDTH])),
            ..Default::default()
        };
        on.causal_conv1d_bwd(ConvBwd { inputs, grad_out: self.z.view(positions), grad_final_window: None, grads }, &mut ws.reborrow())
    }

    /// A step of the scan from the first position of every row.
    fn steps(&mut self, on: &Cuda, slots: Option<View<'_, i32, 1, Device>>) -> Result<(), Error> {
        let [batch, seqlen, dim, dstate] = self.sizes;
        let strides = [(seqlen * dim) as isize, 1];
        fn at(x: &Held, dims: [usize; 2], strides: [isize; 2]) -> View<'_, f32, 2, Device> {
            x.buffer.strided(x.margin, dims, strides)
        }
        let b = self.b.buffer.strided(self.b.margin, [batch, 2, dstate], [(seqlen * 2 * dstate) as isize, dstate as isize, 1]);
        let args = SelectiveStep {
            u: at(&self.u, [batch, dim], strides),
            delta: at(&self.delta, [batch, dim], strides),
            A: self.a.view([dim, dstate]),
            B: Coefficient::<f32, f32, 3, Device>::Varying(b),
            C: Coefficient::Varying(b),
            D: None,
            z: Some(at(&self.z, [batch, dim], strides)),
            delta_bias: None,
            state: self.state.view_mut([self.states, dim, dstate]),
            slots,
            out: self.step.view_mut([batch, dim]),
            options: SelectiveOptions { delta_softplus: true, ..Default::default() },
        };
        on.selective_state_update(args, &mut self.room.workspace())
    }

    /// A step of the convolution.
    fn moves(&mut self, on: &Cuda, slots: Option<View<'_, i32, 1, Device>>) -> Result<(), Error> {
        let [batch, seqlen, dim, _] = self.sizes;
        let args = ConvStep {
            x: self.u.buffer.strided(self.u.margin, [batch, dim], [(seqlen * dim) as isize, 1]),
            weight: self.weight.view([dim, WIDTH]),
            bias: None,
            window: self.window.view_mut([self.states, WIDTH - 1, dim]),
            slots,
            out: self.moved.view_mut([batch, dim]),
            silu: false,
        };
        on.causal_conv1d_update(args, &mut self.room.workspace())
    }

    /// Every number that is written.
    fn results(&self) -> Vec<Vec<f32>> {
        let scans = [&self.out, &self.last, &self.grad_u, &self.grad_delta, &self.grad_a, &self.grad_b, &self.state];
        scans
            .into_iter()
            .chain([&self.step, &self.moved, &self.window, &self.conv, &self.grad_x, &self.grad_weight])
            .map(Held::read)
            .collect()
    }

    /// Forgets what was written, states aside.
    fn blank(&mut self) {
        let scans = [&mut self.out, &mut self.last, &mut self.grad_u, &mut self.grad_delta, &mut self.grad_a, &mut self.grad_b];
        for held in scans.into_iter().chain([&mut self.step, &mut self.moved, &mut self.conv, &mut self.grad_x, &mut self.grad_weight]) {
            held.set(&vec![f32::NAN; held.len]);
        }
    }
}

fn bits(results: &[Vec<f32>]) -> Vec<Vec<u32>> {
    results.iter().map(|r| r.iter().map(|x| x.to_bits()).collect()).collect()
}

/// A recording that is replayed gives what plain calls give; nothing is allocated, loaded or waited for in any call.
#[test]
fn a_graph_replays_to_the_bit() {
    for regime in [Regime::Walk, Regime::Split] {
        let on = engine().clone().with_regime(Some(regime));
        let mut plain = Work::new(&on, SIZES, SIZES[0]);
        let wanted: Vec<_> = (0..2)
            .map(|_| {
                plain.run(&on, Sequences::Rows).expect("the operands are right");
                bits(&plain.results())
            })
            .collect();
        assert!(wanted[0] != wanted[1], "the steps move the state");
        assert!(wanted.iter().flatten().flatten().all(|x| !f32::from_bits(*x).is_nan()), "everything is written");
        let mut work = Work::new(&on, SIZES, SIZES[0]);
        let graph = on.capture(|| work.run(&on, Sequences::Rows)).expect("calls that are compiled can be recorded");
        for want in wanted {
            work.blank();
            // SAFETY: the buffers are those of `work`, which is here.
            unsafe { graph.replay() }.expect("it can be replayed");
            assert!(bits(&work.results()) == want, "{regime:?}: a replay differs from the plain call");
        }
    }
}

/// An engine of its own, which nobody else asks anything of.
fn another() -> Cuda {
    if is_real() { Cuda::new(0).expect("the GPU is there") } else { Cuda::with_driver(Arc::new(Interpreter::new())) }
}

/// What may hang is waited for so long, and then fails.
fn ends(what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    if let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(Duration::from_secs(120)) {
        panic!("{what} hangs");
    }
    thread.join().unwrap_or_else(|fault| std::panic::resume_unwind(fault));
}

/// What is timed may record, in two threads at once.
#[test]
fn what_is_timed_may_be_recorded() {
    let on = another();
    let work = move |on: &Cuda| {
        let (from, mut to) = (on.upload(&[1.0f32, 2.0])?, on.upload(&[0.0f32; 2])?);
        on.copy(from.view([1, 1, 2]), to.view_mut([1, 1, 2]))?;
        on.time(|| {
            let graph = on.capture(|| on.copy(from.view([1, 1, 2]), to.view_mut([1, 1, 2])))?;
            // SAFETY: both buffers are here, and the time is waited for.
            unsafe { graph.replay() }
        })?;
        to.to_vec()
    };
    ends("a capture while timed", move || {
        let both = std::thread::scope(|scope| [scope.spawn(|| work(&on)), scope.spawn(|| work(&on))].map(|t| t.join().expect("no panic")));
        assert_eq!(both, [Ok(vec![1.0, 2.0]), Ok(vec![1.0, 2.0])]);
    });
}

/// Two engines of one device at once in two threads: one in the primary context, the other in a context of its own.
#[test]
fn two_engines_at_once() {
    let own = || {
        if !is_real() {
            return another();
        }
        let context = cudarc::driver::CudaContext::new_non_primary(0, 0).expect("a second context");
        Cuda::on(context.new_stream().expect("a stream")).expect("the GPU is new enough")
    };
    let of = plain(SIZES, Dtype::F32, false, Rule::Euler);
    let want = run_in(&carried(), Dtype::F32, &of, Layout::Contiguous).expect("the operands are right");
    let rounds = if is_real() { 20 } else { 2 };
    let work = |engine: Cuda| {
        // The adapter wants an engine for good.
        let one = carried().to(Box::leak(Box::new(engine)));
        (0..rounds).flat_map(|_| run_in(&one, Dtype::F32, &of, Layout::Contiguous).expect("the operands are right")).collect::<Vec<Found>>()
    };
    let engines = [another(), own()];
    let both = std::thread::scope(|scope| engines.map(|e| scope.spawn(|| work(e))).map(|t| t.join().expect("no panic")));
    for found in both.iter().flatten() {
        same_bits(found, &named(&want, found.name).array).unwrap_or_else(|why| panic!("{why}"));
    }
}

#[test]
fn addresses_from_elsewhere_are_tensors() {
    let mut work = Work::new(engine(), SIZES, SIZES[0]);
    let [batch, seqlen, dim, _] = SIZES;
    let (from, len) = work.u.view([batch, seqlen, dim]).buffer();
    let (to, _) = work.out.view([batch, seqlen, dim]).buffer();
    let (margin, strides) = (work.u.margin, [(seqlen * dim) as isize, dim as isize, 1]);
    // SAFETY: both are buffers of `work` on this device, as long as each other; nobody else uses them meanwhile.
    let (from, to) = unsafe {
        let to = ViewMut::<f32, 3, Device>::from_address(to, len, margin, [batch, seqlen, dim], strides);
        (View::<f32, 3, Device>::from_address(from, len, margin, [batch, seqlen, dim], strides), to)
    };
    engine().copy(from, to).expect("the operands are right");
    assert_eq!(work.out.read(), work.u.read());
    work.blank();
}

/// Slices of cudarc, on the caller's own stream.
#[test]
fn slices_of_cudarc_are_tensors() {
    if real("slices_of_cudarc_are_tensors").is_none() {
        return;
    }
    let context = cudarc::driver::CudaContext::new(0).expect("the GPU is there");
    let stream = context.new_stream().expect("a stream");
    let on = Cuda::on(stream.clone()).expect("the GPU is new enough");
    let data: Vec<f32> = (0..60).map(|i| i as f32).collect();
    let from = stream.clone_htod(&data).expect("a small slice");
    let mut to = stream.clone_htod(&vec![0.0f32; 60]).expect("a small slice");
    let dims = [3, 4, 5];
    let turned = on.view(&from, dims, [1, 15, 3]).expect("the engine's stream");
    on.copy(turned, on.view_mut(&mut to, dims, [20, 5, 1]).expect("the engine's stream")).expect("the operands are right");
    let got = stream.clone_dtoh(&to).expect("it can be read");
    let place = |i: usize| (i / 20) + 15 * (i / 5 % 4) + 3 * (i % 5);
    assert_eq!(got, (0..60).map(|i| data[place(i)]).collect::<Vec<_>>());
}

/// A slice of another stream or context could be freed while the engine reads it.
#[test]
fn slices_of_other_streams_are_refused() {
    if real("slices_of_other_streams_are_refused").is_none() {
        return;
    }
    let context = cudarc::driver::CudaContext::new(0).expect("the GPU is there");
    let apart = cudarc::driver::CudaContext::new_non_primary(0, 0).expect("a second context");
    let on = Cuda::on(context.new_stream().expect("a stream")).expect("the GPU is new enough");
    for stream in [context.new_stream().expect("a stream"), context.default_stream(), apart.new_stream().expect("a stream")] {
        let mut slice = stream.clone_htod(&[1.0f32; 6]).expect("a small slice");
        let refused = |done: bool, why: Option<Error>| !done && matches!(why, Some(Error::Value { operand: "slice", .. }));
        let seen = on.view(&slice, [6], [1]);
        assert!(refused(seen.is_ok(), seen.err()));
        let written = on.view_mut(&mut slice, [6], [1]);
        assert!(refused(written.is_ok(), written.err()));
    }
    // With the default stream of either context, which has the same number, too.
    let on = Cuda::on(context.default_stream()).expect("the GPU is new enough");
    let slice = apart.default_stream().clone_htod(&[1.0f32; 6]).expect("a small slice");
    assert!(matches!(on.view(&slice, [6], [1]), Err(Error::Value { operand: "slice", .. })));
}

/// Scans in both directions and a recording on streams of the caller, to the bit as on the engine's own.
#[test]
fn streams_of_the_caller_serve() {
    if real("streams_of_the_caller_serve").is_none() {
        return;
    }
    let run = |on: &Cuda| {
        let mut work = Work::new(on, SIZES, SIZES[0]);
        work.run(on, Sequences::Rows).expect("the operands are right");
        (bits(&work.results()), work)
    };
    let (want, _) = run(engine());
    let context = cudarc::driver::CudaContext::new(0).expect("the GPU is there");
    for stream in [context.new_stream().expect("a stream"), context.default_stream()] {
        let on = Cuda::on(stream.clone()).expect("the GPU is new enough");
        let (found, _) = run(&on);
        assert!(found == want, "on {stream:?}");
        let mut work = Work::new(&on, SIZES, SIZES[0]);
        let graph = on.capture(|| work.run(&on, Sequences::Rows));
        if stream.cu_stream().is_null() {
            // The driver does not record its default stream, and says so.
            assert!(matches!(graph, Err(Error::Driver { .. })), "{graph:?}");
            assert!(run(&on).0 == want, "and the engine goes on");
            continue;
        }
        // SAFETY: the buffers are those of `work`, which is here.
        unsafe { graph.expect("what is compiled can be recorded").replay() }.expect("it can be replayed");
        assert!(bits(&work.results()) == want, "a replay on {stream:?}");
    }
}

/// Memory that the driver has locked is read by the device itself, later, unless the copy is waited for.
#[test]
fn locked_memory_of_the_host_may_be_reused() {
    let Some(on) = real("locked_memory_of_the_host_may_be_reused") else { return };
    let context = cudarc::driver::CudaContext::new(0).expect("the GPU is there");
    const COUNT: usize = 1 << 20;
    // SAFETY: it is written before it is read.
    let mut locked = unsafe { context.alloc_pinned_with_flags::<f32>(COUNT, 0) }.expect("memory");
    let locked = locked.as_mut_slice().expect("nothing uses it");
    let mut to = on.buffer::<f32>(COUNT).expect("memory");
    let (large, mut other) = (on.buffer::<u8>(2 << 30).expect("memory"), on.buffer::<u8>(2 << 30).expect("memory"));
    for round in 0..4 {
        locked.fill(round as f32);
        // Some milliseconds for the device, so that the next copy cannot begin at once.
        (0..4).for_each(|_| other.copy_at(0, &large, 2 << 30).expect("it can be copied"));
        to.upload(locked).expect("it can be written");
        locked.fill(f32::NAN);
        assert!(to.to_vec().expect("it can be read").iter().all(|x| *x == round as f32), "round {round}");
    }
}

/// A copy from the host that was recorded would read its memory at every replay.
#[test]
fn what_is_recorded_reads_no_memory_of_the_host() {
    let on = another();
    let mut to = on.upload(&[1.0f32]).expect("small");
    let done = on.capture(|| to.upload(&[2.0]));
    assert!(matches!(done, Err(Error::Driver { .. })), "{done:?}");
    drop(done);
    assert_eq!(to.to_vec().expect("it can be read"), [1.0]);
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error_with_its_log() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n    add.s33 %r1, %r2, %r3;\n    ret;\n}\n";
    for broken in [text, "nonsense", "", "\0"] {
        let done = engine().driver().load(broken, "k");
        let Err(Error::Driver { why }) = &done else { panic!("{broken:?}: {done:?}") };
        assert!(!why.is_empty());
        if broken == text {
            assert!(why.contains("s33") || why.contains("line 6"), "the log says where: {why}");
        }
    }
    let whole = text.replace("    add.s33 %r1, %r2, %r3;\n", "");
    assert!(engine().driver().load(&whole, "k").is_ok());
    assert!(matches!(engine().driver().load(&whole, "another"), Err(Error::Driver { .. })));
    // And the engine goes on.
    let (from, mut to) = (engine().upload(&[1.0f32, 2.0]).expect("small"), engine().upload(&[0.0f32; 2]).expect("small"));
    engine().copy(from.view([1, 1, 2]), to.view_mut([1, 1, 2])).expect("the operands are right");
    assert_eq!(to.to_vec().expect("it can be read"), [1.0, 2.0]);
}

#[test]
fn a_device_that_is_not_there_is_unavailable() {
    assert!(matches!(Cuda::new(999), Err(Error::Unavailable { .. })));
    if !is_real() {
        assert!(matches!(Cuda::new(0), Err(Error::Unavailable { .. })));
    }
}

/// A capture that fails leaves the engine as it was.
#[test]
fn what_may_not_be_recorded_is_an_error() {
    let on = another();
    let done = on.capture(|| Err(Error::Unsupported { what: "this".into() }));
    assert!(matches!(done, Err(Error::Unsupported { .. })), "the closure's own error: {done:?}");
    let buffer = on.upload(&[1.0f32]).expect("it is not recording any more");
    assert_eq!(buffer.to_vec().expect("it can be read"), [1.0]);
}

#[test]
fn a_small_workspace_is_refused() {
    let mut work = Work::new(engine(), SIZES, SIZES[0]);
    let [batch, seqlen, dim, dstate] = SIZES;
    let positions = [batch, seqlen, dim];
    let inputs = SelectiveInputs {
        u: work.u.view(positions),
        delta: work.delta.view(positions),
        A: work.a.view([dim, dstate]),
        B: Coefficient::<f32, f32, 4, Device>::Constant(work.a.view([dim, dstate])),
        C: Coefficient::Constant(work.a.view([dim, dstate])),
        D: None,
        z: None,
        delta_bias: None,
        initial_state: None,
        sequences: Sequences::Rows,
        options: SelectiveOptions::default(),
    };
    let on = engine().clone().with_regime(Some(Regime::Split));
    let problem = inputs.check().expect("the operands are right");
    let mut faults = Faults::default();
    let (forward, backward) =
        (on.selective_scan_fwd_workspace::<f32, f32>(&problem), on.selective_scan_bwd_workspace::<f32, f32>(&problem));
    for (bytes, backwards) in [(forward, false), (backward, true)] {
        // The query is for every gradient; one alone takes less than half of that.
        let few = bytes.min(64);
        let mut room = on.buffer::<u8>(few).expect("small");
        let mut ws = Workspace::over(room.view_mut([few])).expect("contiguous");
        let done = if backwards {
            let grads = SelectiveGrads { u: Some(work.out.view_mut(positions)), ..Default::default() };
            on.selective_scan_bwd(SelectiveBwd { inputs, grad_out: work.u.view(positions), grad_last_state: None, grads }, &mut ws)
        } else {
            on.selective_scan_fwd(SelectiveFwd { inputs, out: work.out.view_mut(positions), last_state: None }, &mut ws)
        };
        let untouched = work.out.read().iter().all(|x| x.is_nan());
        let right = bytes == 0 || (untouched && matches!(done, Err(Error::Workspace { .. })));
        faults.case(&|| format!("backwards {backwards}, {bytes} bytes"), || right.then_some(()).ok_or(format!("{done:?}")));
    }
    faults.none();
}

/// The calls that know sequences, each by itself.
fn with_sequences(faults: &mut Faults, what: &str, on: &Cuda, work: impl Fn() -> Work, sequences: Sequences<'_, Device>) {
    type Call = fn(&mut Work, &Cuda, Sequences<'_, Device>) -> Result<(), Error>;
    let calls: [(&str, Call); 3] = [
        ("forward", |work, on, sequences| work.scan(on, sequences, false)),
        ("backward", |work, on, sequences| work.scan(on, sequences, true)),
        ("convolution", Work::convolve),
    ];
    for (name, call) in calls {
        faults.case(&|| format!("{name}, {what}"), || {
            let mut work = work();
            call(&mut work, on, sequences).and_then(|()| on.synchronize()).map_err(|e| e.to_string())?;
            work.results();
            Ok(())
        });
    }
}

/// Offsets that mean nothing: whatever comes out, nothing outside a tensor is read or written.
#[test]
fn hostile_offsets_in_device_memory_do_no_harm() {
    let (long, most) = (SIZES[1] as i64, i64::MAX);
    let offsets: [[i64; 5]; 7] = [
        [0, 100, 50, 120, 150],
        [0, 10, 200, 300, 150],
        [-5, 10, 20, 30, 150],
        [150, 100, 50, 20, 0],
        [most, most, most, most, most],
        [i64::MIN, -1, most, 3, 1 << 40],
        [long, long, 0, 0, long],
    ];
    let mut faults = Faults::default();
    for (regime, of) in [Regime::Walk, Regime::Split].into_iter().flat_map(|r| offsets.map(|of| (r, of))) {
        let (on, held) = (engine().clone().with_regime(Some(regime)), engine().upload(&of).expect("small"));
        let work = || Work::new(&on, [1, SIZES[1], SIZES[2], SIZES[3]], 4);
        with_sequences(&mut faults, &format!("{regime:?}, offsets {of:?}"), &on, work, Sequences::CuSeqlens(held.view([5])));
    }
    faults.none();
}

/// Ids that decrease, jump and end.
#[test]
fn hostile_ids_in_device_memory_do_no_harm() {
    let [batch, seqlen, ..] = SIZES;
    let (mut faults, mut draw) = (Faults::default(), Draw(5));
    for (regime, kind) in [Regime::Walk, Regime::Split].into_iter().flat_map(|r| (0..4).map(move |kind| (r, kind))) {
        let id = |t: i32, draw: &mut Draw| match kind {
            0 => -t,
            1 => 1000 - t,
            2 => draw.bits() as i32,
            _ if t % 2 == 0 => i32::MAX,
            _ => i32::MIN,
        };
        let ids: Vec<i32> = (0..(batch * seqlen) as i32).map(|t| id(t, &mut draw)).collect();
        let (on, held) = (engine().clone().with_regime(Some(regime)), engine().upload(&ids).expect("small"));
        let sequences = Sequences::SeqIdx(held.view([batch, seqlen]));
        with_sequences(&mut faults, &format!("{regime:?}, ids of kind {kind}"), &on, || Work::new(&on, SIZES, batch), sequences);
    }
    faults.none();
}

/// A slot that is not there skips its row, as a negative one does.
#[test]
fn hostile_slots_in_device_memory_do_no_harm() {
    let mut faults = Faults::default();
    for slots in [[5, 1], [i32::MAX, 0], [2, i32::MIN], [-1, -2], [1 << 30, 3]] {
        for scan in [true, false] {
            faults.case(&|| format!("slots {slots:?}, {}", if scan { "scan" } else { "convolution" }), || {
                let (mut work, held) = (Work::new(engine(), SIZES, 3), engine().upload(&slots).expect("small"));
                let state = |work: &Work| if scan { work.state.read() } else { work.window.read() };
                let (before, given) = (state(&work), Some(held.view([2])));
                let done = if scan { work.steps(engine(), given) } else { work.moves(engine(), given) };
                done.and_then(|()| engine().synchronize()).map_err(|e| e.to_string())?;
                let (after, out) = (state(&work), if scan { work.step.read() } else { work.moved.read() });
                only_these_slots(&slots, &before, &after, &out)
            });
        }
    }
    faults.none();
}

/// The slots that rows have are updated, of three; the others, and the out of rows without one, are as they were.
fn only_these_slots(slots: &[i32], before: &[f32], after: &[f32], out: &[f32]) -> Result<(), String> {
    let each = before.len() / 3;
    for slot in 0..3 {
        let (x, y) = (&before[slot * each..][..each], &after[slot * each..][..each]);
        if (x != y) != slots.contains(&(slot as i32)) {
            return Err(format!("slot {slot} is {}", if x == y { "not updated" } else { "updated" }));
        }
    }
    for (row, slot) in slots.iter().enumerate().filter(|(_, s)| !(0..3).contains(*s)) {
        if out[row * SIZES[2]..][..SIZES[2]].iter().any(|x| !x.is_nan()) {
            return Err(format!("row {row} with slot {slot} wrote its out"));
        }
    }
    Ok(())
}

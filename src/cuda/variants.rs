//! The shipping table: every variant of every template that the engine can ask for.

use super::launch::Kernel;
use super::linear;
pub use super::params::Field;
use super::params::Params;
use super::selective_scan_bwd::kernels as bwd;
use super::{adamw, argmax, cast, cross_entropy, elementwise, embedding, rms_norm, scan, sum};

/// A variant as a test or a reader wants it.
#[derive(Debug, Clone)]
pub struct Variant {
    /// The template's name.
    pub template: &'static str,
    /// The entry's name.
    pub entry: String,
    /// The expanded PTX.
    pub text: String,
    /// Its parameters as the host lays them out.
    pub fields: &'static [Field],
}

fn add<K: Kernel>(out: &mut Vec<Variant>) {
    let variant =
        |kernel: K| Variant { template: K::TEMPLATE.name, entry: kernel.entry(), text: kernel.expand(), fields: K::Params::FIELDS };
    out.extend(K::shipped().into_iter().map(variant));
}

/// All of them.
pub fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    // One line a kernel, in the order of the templates' names: add::<causal_conv1d::Forward>(&mut all);
    add::<adamw::Step>(&mut all);
    add::<argmax::Argmax>(&mut all);
    add::<super::causal_conv1d::backward::Backward>(&mut all);
    add::<super::causal_conv1d::backward::Sum>(&mut all);
    add::<super::causal_conv1d::forward::Forward>(&mut all);
    add::<super::causal_conv1d::update::Update>(&mut all);
    add::<super::ceilings::Copy>(&mut all);
    add::<super::ceilings::Exponentials>(&mut all);
    add::<super::ceilings::MultiplyAdds>(&mut all);
    add::<bwd::Carry>(&mut all);
    add::<bwd::Padding>(&mut all);
    add::<bwd::Plan>(&mut all);
    add::<bwd::Rows>(&mut all);
    add::<bwd::Tiles>(&mut all);
    add::<bwd::Totals>(&mut all);
    add::<bwd::Walk>(&mut all);
    add::<super::selective_state_update::StateUpdate>(&mut all);
    add::<super::selective_state_update::Rows>(&mut all);
    add::<linear::Tiles>(&mut all);
    add::<linear::Bias>(&mut all);
    add::<linear::TilesMma>(&mut all);
    add::<linear::Rows>(&mut all);
    add::<linear::RowsMma>(&mut all);
    add::<linear::Sum>(&mut all);
    add::<cast::Cast>(&mut all);
    add::<cross_entropy::CrossEntropy>(&mut all);
    add::<elementwise::Each>(&mut all);
    add::<embedding::Backward>(&mut all);
    add::<embedding::Forward>(&mut all);
    add::<embedding::Sort>(&mut all);
    add::<scan::Forward>(&mut all);
    add::<scan::Backward>(&mut all);
    add::<scan::Carry>(&mut all);
    add::<rms_norm::Backward>(&mut all);
    add::<rms_norm::Forward>(&mut all);
    add::<sum::Sum>(&mut all);
    add::<sum::SumColumns>(&mut all);
    add::<super::selective_scan_fwd::Carries>(&mut all);
    add::<super::selective_scan_fwd::Forward>(&mut all);
    add::<super::selective_scan_fwd::Tile>(&mut all);
    add::<super::selective_scan_fwd::Local>(&mut all);
    all
}

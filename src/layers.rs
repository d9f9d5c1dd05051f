//! Layer 3: the block's other parts: causal conv1d, RMSNorm, linear, and what is done element by element between them.

pub mod conv1d;
pub mod elementwise;
pub mod linear;
pub mod norm;
mod rows;

/// Gives a host engine one of these layers as it is for host memory: `host_layer!(conv1d, Engine, |engine| engine.par)`. The
/// closure says who runs the parts.
macro_rules! host_layer {
    (conv1d, $engine:ty, $par:expr) => {
        impl $crate::layers::conv1d::CausalConv1d for $engine {
            type Memory = $crate::view::Host;
            fn causal_conv1d_fwd_workspace<I: $crate::element::Input>(&self, problem: &$crate::layers::conv1d::ConvProblem) -> usize {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::conv1d::causal_conv1d_fwd_workspace::<I>(problem, par(self))
            }
            fn causal_conv1d_fwd<I: $crate::element::Input>(
                &self,
                args: $crate::layers::conv1d::ConvFwd<'_, I>,
                ws: &mut $crate::buffer::Workspace<'_>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::conv1d::causal_conv1d_fwd(args, par(self), ws)
            }
            fn causal_conv1d_bwd_workspace<I: $crate::element::Input>(&self, problem: &$crate::layers::conv1d::ConvProblem) -> usize {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::conv1d::causal_conv1d_bwd_workspace::<I>(problem, par(self))
            }
            fn causal_conv1d_bwd<I: $crate::element::Input>(
                &self,
                args: $crate::layers::conv1d::ConvBwd<'_, I>,
                ws: &mut $crate::buffer::Workspace<'_>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::conv1d::causal_conv1d_bwd(args, par(self), ws)
            }
            fn causal_conv1d_update_workspace<I: $crate::element::Input>(&self, problem: &$crate::layers::conv1d::ConvProblem) -> usize {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::conv1d::causal_conv1d_update_workspace::<I>(problem, par(self))
            }
            fn causal_conv1d_update<I: $crate::element::Input>(
                &self,
                args: $crate::layers::conv1d::ConvStep<'_, I>,
                ws: &mut $crate::buffer::Workspace<'_>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::conv1d::causal_conv1d_update(args, par(self), ws)
            }
        }
    };
    (norm, $engine:ty, $par:expr) => {
        impl $crate::layers::norm::RmsNorm for $engine {
            type Memory = $crate::view::Host;
            fn rms_norm_fwd_workspace<I: $crate::element::Input>(&self, problem: [usize; 2]) -> usize {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::norm::rms_norm_fwd_workspace::<I>(problem, par(self))
            }
            fn rms_norm_fwd<I: $crate::element::Input, R: $crate::element::Input<Accum = I::Accum>>(
                &self,
                args: $crate::layers::norm::NormFwd<'_, I, R>,
                ws: &mut $crate::buffer::Workspace<'_>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::norm::rms_norm_fwd(args, par(self), ws)
            }
            fn rms_norm_bwd_workspace<I: $crate::element::Input>(&self, problem: [usize; 2]) -> usize {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::norm::rms_norm_bwd_workspace::<I>(problem, par(self))
            }
            fn rms_norm_bwd<I: $crate::element::Input, R: $crate::element::Input<Accum = I::Accum>>(
                &self,
                args: $crate::layers::norm::NormBwd<'_, I, R>,
                ws: &mut $crate::buffer::Workspace<'_>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::norm::rms_norm_bwd(args, par(self), ws)
            }
        }
    };
    (linear, $engine:ty, $par:expr) => {
        impl $crate::layers::linear::Linear for $engine {
            type Memory = $crate::view::Host;
            fn linear_fwd_workspace<I: $crate::element::Input>(&self, problem: $crate::layers::linear::LinearProblem) -> usize {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::linear::linear_fwd_workspace::<I>(problem, par(self))
            }
            fn linear_fwd<I: $crate::element::Input>(
                &self,
                args: $crate::layers::linear::LinearFwd<'_, I>,
                ws: &mut $crate::buffer::Workspace<'_>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::linear::linear_fwd(args, par(self), ws)
            }
            fn linear_bwd_workspace<I: $crate::element::Input>(&self, problem: $crate::layers::linear::LinearProblem) -> usize {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::linear::linear_bwd_workspace::<I>(problem, par(self))
            }
            fn linear_bwd<I: $crate::element::Input>(
                &self,
                args: $crate::layers::linear::LinearBwd<'_, I>,
                ws: &mut $crate::buffer::Workspace<'_>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::linear::linear_bwd(args, par(self), ws)
            }
        }
    };
    (elementwise, $engine:ty, $par:expr) => {
        impl $crate::layers::elementwise::Elementwise for $engine {
            type Memory = $crate::view::Host;
            fn copy<T: $crate::element::Element>(
                &self,
                from: $crate::view::View<'_, T, 3>,
                to: $crate::view::ViewMut<'_, T, 3>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::elementwise::copy(from, to, par(self))
            }
            fn zero<T: $crate::element::Element>(&self, to: $crate::view::ViewMut<'_, T, 3>) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::elementwise::zero(to, par(self))
            }
            fn add<I: $crate::element::Input>(
                &self,
                from: $crate::view::View<'_, I, 3>,
                to: $crate::view::ViewMut<'_, I, 3>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::elementwise::add(from, to, par(self))
            }
            fn decay<A: $crate::element::Real>(
                &self,
                a_log: $crate::view::View<'_, A, 2>,
                a: $crate::view::ViewMut<'_, A, 2>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::elementwise::decay(a_log, a, par(self))
            }
            fn scale<A: $crate::element::Real>(
                &self,
                by: $crate::view::View<'_, A, 2>,
                to: $crate::view::ViewMut<'_, A, 2>,
            ) -> Result<(), $crate::error::Error> {
                let par: fn(&Self) -> $crate::par::Par = $par;
                $crate::layers::elementwise::scale(by, to, par(self))
            }
        }
    };
}

pub(crate) use host_layer;

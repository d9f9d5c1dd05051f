//! The kernels as methods: what the drivers call.

use crate::arch::generic::decode::{ConvUpdate, ScanUpdate};
use crate::arch::generic::product::Product;
use crate::arch::generic::tiles::{
    ConvBwd, ConvFwd, ConvRows, ConvRowsBwd, Lines, LinesMut, ScanTile, SelectiveBwd, SelectiveFwd, StepRow, Turn,
};
use crate::arch::{Kernels, Lanes};

impl Kernels {
    /// One tile of the selective scan, forward; with one step it is the decode step.
    pub fn selective_scan_fwd<R: Lanes>(self, args: SelectiveFwd<'_, R>) {
        self.run(args);
    }

    /// One step of many blocks in Mamba's own case.
    pub fn selective_state_update<R: Lanes>(self, args: StepRow<'_, R, impl Lines<R>, impl LinesMut<R>>) {
        self.run(args);
    }

    /// Channels for states.
    pub fn turn<R: Lanes>(self, args: Turn<'_, R>) {
        self.run(args);
    }

    /// One tile of the selective scan, backward.
    pub fn selective_scan_bwd<R: Lanes>(self, args: SelectiveBwd<'_, R>) {
        self.run(args);
    }

    /// One tile of the linear recurrence.
    pub fn scan<R: Lanes>(self, args: ScanTile<'_, R>) {
        self.run(args);
    }

    /// A product of few rows with a packed weight.
    pub fn product<R: Lanes>(self, args: Product<'_, R>) {
        self.run(args);
    }

    /// The convolution of one position of each row, as decoding needs it.
    pub fn conv_update<R: Lanes>(self, args: ConvUpdate<'_, R>) {
        self.run(args);
    }

    /// The scan of one position of each row, as decoding needs it.
    pub fn scan_update<R: Lanes>(self, args: ScanUpdate<'_, R>) {
        self.run(args);
    }

    /// One tile of the causal convolution, forward.
    pub fn causal_conv1d_fwd<R: Lanes>(self, args: ConvFwd<'_, R>) {
        self.run(args);
    }

    /// The causal convolution over whole rows, forward.
    pub fn causal_conv1d_rows<R: Lanes>(self, args: ConvRows<'_, R, impl Lines<R>, impl LinesMut<R>>) {
        self.run(args);
    }

    /// Some steps of the causal convolution over whole rows, backward.
    pub fn causal_conv1d_rows_bwd<R: Lanes>(self, args: ConvRowsBwd<'_, R, impl Lines<R>, impl LinesMut<R>>) {
        self.run(args);
    }

    /// One tile of the causal convolution, backward.
    pub fn causal_conv1d_bwd<R: Lanes>(self, args: ConvBwd<'_, R>) {
        self.run(args);
    }
}

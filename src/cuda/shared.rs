//! The snippets of `ptx/shared`, which templates paste by `//!use NAME`.

/// The text of `ptx/shared/NAME.ptx`.
pub fn snippet(name: &str) -> Option<&'static str> {
    SNIPPETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

macro_rules! snippets {
    ($($name:literal)*) => {
        /// Every snippet by name.
        pub const SNIPPETS: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../ptx/shared/", $name, ".ptx"))),)*];
    };
}

snippets! {
    "block_fold"
    "cexp"
    "cexp2"
    "cphi1"
    "crcp"
    "exp"
    "exp2"
    "exp2_fast"
    "exp_parts"
    "expm1"
    "load"
    "load_as"
    "load_pair"
    "log1p"
    "narrow"
    "phi1"
    "pieces_load"
    "pieces_store"
    "rcp_near"
    "scale"
    "selective_advance"
    "selective_base"
    "selective_begin"
    "selective_butterfly"
    "selective_coefficient"
    "selective_collect"
    "selective_combine"
    "selective_constant"
    "selective_decay"
    "selective_link"
    "selective_map"
    "selective_out"
    "selective_padding"
    "selective_place"
    "selective_product"
    "selective_reduce"
    "selective_rows"
    "selective_running"
    "selective_setup"
    "selective_stage"
    "selective_states"
    "selective_swap"
    "selective_unit"
    "selective_vectors"
    "selective_weights"
    "sigmoid"
    "silu"
    "silu_fast"
    "silu_grad"
    "sincos"
    "sincos_sum"
    "softplus"
    "softplus_fast"
    "sort_digit"
    "store"
    "store_as"
    "store_pair"
    "widen"
}

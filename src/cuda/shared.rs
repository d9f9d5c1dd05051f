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
    "bwd_ahead"
    "bwd_back"
    "bwd_butterfly"
    "bwd_by_position"
    "bwd_coefficient"
    "bwd_discretize"
    "bwd_emit"
    "bwd_fast"
    "bwd_finish"
    "bwd_finish_begin"
    "bwd_finish_end"
    "bwd_finite"
    "bwd_general"
    "bwd_general_back"
    "bwd_general_fresh"
    "bwd_general_step"
    "bwd_group"
    "bwd_item"
    "bwd_load"
    "bwd_matrix"
    "bwd_offset"
    "bwd_piece"
    "bwd_places"
    "bwd_row"
    "bwd_scatter"
    "bwd_shfl"
    "bwd_stage"
    "bwd_state"
    "bwd_store"
    "bwd_term"
    "bwd_times"
    "bwd_times_conj"
    "bwd_zero"
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
    "load_pair"
    "log1p"
    "narrow"
    "phi1"
    "pieces_load"
    "pieces_store"
    "rcp_near"
    "scale"
    "sigmoid"
    "silu"
    "sincos"
    "sincos_sum"
    "softplus"
    "store"
    "store_pair"
    "widen"
}

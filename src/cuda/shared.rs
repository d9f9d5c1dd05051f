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
    "load_pair"
    "log1p"
    "narrow"
    "phi1"
    "pieces_load"
    "pieces_store"
    "rcp_near"
    "scale"
    "scan_fma"
    "scan_load"
    "scan_mul"
    "scan_pack"
    "scan_place"
    "scan_shift"
    "scan_state"
    "scan_store"
    "scan_tree"
    "scan_turn"
    "scan_unpack"
    "scan_widen"
    "sigmoid"
    "silu"
    "sincos"
    "sincos_sum"
    "softplus"
    "store"
    "store_pair"
    "widen"
}

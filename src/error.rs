//! The one error enum of the crate.

/// What a caller can get wrong, or a machine can lack. Each message names the operand, what it got and what was wanted.
///
/// Errors are found before any kernel runs: an output is either complete or untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has the wrong dimensions.
    #[error("`{operand}` has shape {got:?}, wanted {want:?}")]
    Shape {
        /// The operand's name, as in the operands struct.
        operand: &'static str,
        /// Its dimensions.
        got: Vec<usize>,
        /// The dimensions it should have.
        want: Vec<usize>,
    },
    /// An operand's strides leave its buffer, or an output's elements overlap.
    #[error("`{operand}`: {why}")]
    Layout {
        /// The operand's name.
        operand: &'static str,
        /// What is wrong with its layout.
        why: String,
    },
    /// An operand has a value that has no meaning here (offsets that decrease, an index out of range, a group count that does not divide).
    #[error("`{operand}`: {why}")]
    Value {
        /// The operand's name.
        operand: &'static str,
        /// What is wrong with its value.
        why: String,
    },
    /// A combination that this engine cannot represent.
    #[error("unsupported: {what}")]
    Unsupported {
        /// The combination.
        what: String,
    },
    /// The workspace is too small.
    #[error("the workspace has {got} bytes left, {want} are wanted: ask the query of the same call")]
    Workspace {
        /// Bytes that were left.
        got: usize,
        /// Bytes that were wanted.
        want: usize,
    },
    /// Something this machine or this build does not have.
    #[error("unavailable: {what}")]
    Unavailable {
        /// What is missing.
        what: String,
    },
    /// The driver of a GPU refused something; `why` has its name for the fault and, for a kernel that it could not compile, its log.
    #[error("CUDA: {why}")]
    Driver {
        /// What happened.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What happened.
        why: String,
    },
}

/// Checks an operand that may be absent.
pub(crate) fn given<T>(operand: Option<&T>, check: impl FnOnce(&T) -> Result<(), Error>) -> Result<(), Error> {
    operand.map_or(Ok(()), check)
}

/// A gradient needs the operand it is the gradient of.
pub(crate) fn only_with(operand: &'static str, grad: bool, has: bool) -> Result<(), Error> {
    if has || !grad { Ok(()) } else { Err(Error::Value { operand, why: "its tensor is absent, so it has no gradient".into() }) }
}

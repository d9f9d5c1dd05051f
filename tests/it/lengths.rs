//! The interesting lengths, in one list: around every power of two, vector width and chunk length in use, and the ends.

/// Sequence lengths at which something is different from the length before or after.
pub const LENGTHS: [usize; 18] = [0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257, 300];

/// Channel counts around the vector widths.
pub const CHANNELS: [usize; 9] = [1, 2, 3, 4, 7, 8, 9, 16, 33];

/// State sizes: the ones with kernels of their own, and others.
pub const STATES: [usize; 7] = [1, 2, 3, 4, 8, 16, 21];

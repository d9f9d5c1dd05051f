//! Layer 3: the functions for host memory, run by the engine's own threads.

use super::Blelloch;
use crate::layers::host_layer;

host_layer!(conv1d, Blelloch, |engine| engine.par);
host_layer!(norm, Blelloch, |engine| engine.par);
host_layer!(linear, Blelloch, |engine| engine.par);
host_layer!(elementwise, Blelloch, |engine| engine.par);

//! Layer 3: the functions for host memory, run by the engine's own threads.

use super::Cpu;
use crate::layers::host_layer;

host_layer!(norm, Cpu, |engine| engine.par);
host_layer!(linear, Cpu, |engine| engine.par);
host_layer!(elementwise, Cpu, |engine| engine.par);

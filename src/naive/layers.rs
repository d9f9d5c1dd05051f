//! Layer 3: the functions for host memory, on this thread.

use super::Naive;
use crate::layers::host_layer;
use crate::par::Par;

host_layer!(conv1d, Naive, |_| Par::Seq);
host_layer!(norm, Naive, |_| Par::Seq);
host_layer!(linear, Naive, |_| Par::Seq);
host_layer!(elementwise, Naive, |_| Par::Seq);

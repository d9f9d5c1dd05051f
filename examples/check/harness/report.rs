//! What was found about one case on one engine in one storage type.

use super::compare::Deviation;

/// The worst deviation of one tensor, and in which way of calling it was seen.
#[derive(Debug, Clone)]
pub struct Finding {
    pub tensor: String,
    pub worst: Deviation,
    pub how: String,
}

/// Every tensor's worst deviation.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    pub list: Vec<Finding>,
    /// Time of the plain call, forward and backward.
    pub seconds: f64,
}

impl Findings {
    /// Notes a deviation; the worse one is kept.
    pub fn add(&mut self, tensor: &str, deviation: Deviation, how: &str) {
        match self.list.iter_mut().find(|f| f.tensor == tensor) {
            None => self.list.push(Finding { tensor: tensor.into(), worst: deviation, how: how.into() }),
            Some(found) => {
                if deviation.used > found.worst.used {
                    (found.worst.used, found.how) = (deviation.used, how.into());
                }
                found.worst.error = found.worst.error.max(deviation.error);
            }
        }
    }

    /// Tensors that are further from their reference than allowed.
    pub fn exceeding(&self) -> impl Iterator<Item = &Finding> {
        self.list.iter().filter(|f| f.worst.used > 1.0)
    }
}

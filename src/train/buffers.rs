//! A copy of the BatchNorm buffers from before a step, to undo what an unfinished step did to them.

use tch::Tensor;

use crate::error::Result;
use crate::model::Parameters;

/// Copies of all buffers (running means, variances and counters), a few hundred kilobytes.
#[derive(Debug)]
pub struct BufferCopy {
    copies: Vec<Tensor>,
}

impl BufferCopy {
    /// A copy of the present buffers.
    pub fn new(parameters: &Parameters) -> Result<Self> {
        let copies = parameters.buffers().map(|(_, buffer)| buffer.f_detach_copy()).collect::<Result<_, _>>()?;
        Ok(Self { copies })
    }

    /// Takes over the present buffers.
    pub fn take(&mut self, parameters: &Parameters) -> Result<()> {
        tch::no_grad(|| {
            for (copy, (_, buffer)) in self.copies.iter_mut().zip(parameters.buffers()) {
                copy.f_copy_(buffer)?;
            }
            Ok(())
        })
    }

    /// Gives the buffers the values they had when they were last taken.
    pub fn put_back(&self, parameters: &Parameters) -> Result<()> {
        tch::no_grad(|| {
            for (copy, (_, buffer)) in self.copies.iter().zip(parameters.buffers()) {
                buffer.shallow_clone().f_copy_(copy)?;
            }
            Ok(())
        })
    }
}

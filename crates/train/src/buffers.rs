//! Packs the BatchNorm buffers (running means, variances and counters) of a model into one tensor of a few hundred
//! kilobytes, which is copied, broadcast between ranks and restored.

use tch::{Kind, Tensor};

use fnet_common::{Error, Result};
use fnet_model::Parameters;

use super::disk::bytes;

/// Copies all buffers into one byte tensor on their device, in the order of the parameters.
pub fn pack(parameters: &Parameters) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let rows = parameters
        .buffers()
        .map(|(_, buffer)| Ok(buffer.f_reshape([-1])?.f_view_dtype(Kind::Uint8)?))
        .collect::<Result<Vec<_>>>()?;
    match rows.as_slice() {
        [] => Ok(Tensor::f_zeros([0], (Kind::Uint8, parameters.device()))?),
        rows => Ok(Tensor::f_cat(rows, 0)?),
    }
}

/// Copies of the buffers by name, from the result of [`pack`] on any rank.
/// Errors: a bug if they belong to another model.
pub fn unpack(parameters: &Parameters, packed: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let mut start = 0;
    let mut buffers = Vec::new();
    for (name, like) in parameters.buffers() {
        let length = bytes(like) as i64;
        if start + length > packed.size1()? {
            return Err(Error::bug(format!("packed buffers end before {name}")));
        }
        // Copied because a view of another type must be aligned.
        let part = packed.f_narrow(0, start, length)?.f_detach_copy()?;
        buffers.push((name.to_owned(), part.f_view_dtype(like.kind())?.f_reshape(like.size())?));
        start += length;
    }
    Ok(buffers)
}

/// Restores the buffers from their packed values.
pub(crate) fn put_back(parameters: &Parameters, packed: &Tensor) -> Result<()> {
    let values = unpack(parameters, packed)?;
    let _guard = tch::no_grad_guard();
    for ((_, buffer), (_, value)) in parameters.buffers().zip(&values) {
        buffer.shallow_clone().f_copy_(value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use fnet_config::Config;
    use fnet_model::MaskRcnn;

    use super::*;

    #[test]
    fn packed_buffers_are_restored_bit_for_bit() {
        let mut config = Config::default();
        (config.model.backbone.embed_dim, config.model.backbone.depths) = (8, [1; 4]);
        let mut parameters = Parameters::new();
        MaskRcnn::new(&config.model, &mut parameters, Device::Cpu, 0).unwrap();
        let packed = pack(&parameters).unwrap();
        let before: Vec<Tensor> = parameters.buffers().map(|(_, buffer)| buffer.copy()).collect();
        assert!(before.iter().any(|buffer| buffer.kind() == Kind::Int64), "counters of batches");
        for (_, buffer) in parameters.buffers() {
            let _ = buffer.shallow_clone().fill_(3);
        }
        assert_ne!(pack(&parameters).unwrap(), packed);
        put_back(&parameters, &packed).unwrap();
        for ((name, buffer), before) in parameters.buffers().zip(&before) {
            assert_eq!(buffer, before, "{name}");
        }
        assert!(unpack(&parameters, &packed.narrow(0, 0, 8)).is_err());
    }
}

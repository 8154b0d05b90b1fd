//! What a file of weights is, and what it says beside its tensors.

/// What a file of weights is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A PyTorch file: a dictionary with the tensors under `state_dict`, as MMDetection writes.
    StateDict,
    /// A PyTorch file with the tensors under `model`.
    Model,
    /// A PyTorch file that is nothing but the dictionary of tensors.
    Bare,
    /// A safetensors file; checkpoints of this program are such, with the weights' names below `model.`.
    Safetensors,
}

/// What the file says about the training that the weights come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Names of the object classes in the order of their labels; empty if not told.
    pub classes: Vec<String>,
    /// Number of finished epochs.
    pub epoch: Option<u64>,
    /// Number of finished iterations.
    pub iter: Option<u64>,
}

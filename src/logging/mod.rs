//! The log as text, as JSON lines and for TensorBoard.

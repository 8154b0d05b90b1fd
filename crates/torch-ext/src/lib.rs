//! What tch lacks of libtorch.

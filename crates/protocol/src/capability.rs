//! Compute capabilities of GPUs, and which of them can be used.

/// Compute capabilities, (major, minor), that the wheel torch 2.11.0+cu130 has kernels for.
pub const SUPPORTED: [(i32, i32); 6] = [(7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)];

/// Whether a GPU of this compute capability runs kernels of the wheel: those of its own major version, and of its minor
/// version or a lower one. The wheel holds no code that the driver could compile for other GPUs.
pub fn is_supported(capability: (i32, i32)) -> bool {
    SUPPORTED.iter().any(|&(major, minor)| major == capability.0 && minor <= capability.1)
}

/// What to say of a GPU that is not supported.
pub fn not_supported(capability: (i32, i32)) -> String {
    let wheel: Vec<String> = SUPPORTED.iter().map(|(major, minor)| format!("{major}.{minor}")).collect();
    format!(
        "its compute capability is {}.{}, and torch 2.11.0+cu130 has kernels for {} only",
        capability.0,
        capability.1,
        wheel.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_runs_the_kernels_of_its_own_generation() {
        // T4, A100, A40, L4, H100, B300, RTX 5090, GB10.
        for capability in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 3), (12, 0), (12, 1)] {
            assert!(is_supported(capability), "{capability:?}");
        }
        // V100, P100, Thor, a later generation.
        for capability in [(7, 0), (6, 0), (11, 0), (13, 0)] {
            assert!(!is_supported(capability), "{capability:?}");
        }
        assert!(
            not_supported((7, 0))
                .starts_with("its compute capability is 7.0, and torch 2.11.0+cu130 has kernels for 7.5,")
        );
    }
}

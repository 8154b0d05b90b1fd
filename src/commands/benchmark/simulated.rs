//! Counters of simulated GPUs, for tests and measurements on machines without a GPU.

use std::collections::BTreeMap;

/// Names a file; the simulation writes its counters to FILE.PID, with lines of the form `COUNT KIND NAME`.
const REPORT: &str = "FNET_SIM_REPORT";
/// If set, kernels compute nothing, so a step takes only the time of the host.
const NO_COMPUTE: &str = "FNET_SIM_NO_COMPUTE";

/// Whether values are computed: always, except on simulated GPUs with FNET_SIM_NO_COMPUTE.
pub fn computes() -> bool {
    std::env::var(NO_COMPUTE).map_or(true, |value| value.is_empty() || value == "0")
}

/// Operators and waits since this process started; empty on real devices.
pub fn counts() -> BTreeMap<String, f64> {
    let read = |file| std::fs::read_to_string(format!("{file}.{}", std::process::id())).ok();
    std::env::var(REPORT).ok().and_then(read).map_or_else(BTreeMap::new, |text| by_kind(&text))
}

fn by_kind(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if let (Some(Ok(count)), Some(kind @ ("operator" | "wait"))) =
            (words.next().map(str::parse::<f64>), words.next())
        {
            *sums.entry(kind.to_owned()).or_default() += count;
        }
    }
    sums
}

/// The increase per step over `steps` steps.
pub fn per_step(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, steps: usize) -> BTreeMap<String, f64> {
    let since = |(kind, count): (&String, &f64)| {
        (kind.clone(), (count - before.get(kind).unwrap_or(&0.0)) / steps.max(1) as f64)
    };
    after.iter().map(since).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_by_kind_and_divided_by_the_steps() {
        let before = by_kind("           4 operator aten::add\n\n\n           1 wait     nonzero of x\n");
        let after = by_kind(
            "24 operator aten::add\n10 operator aten::mul\n5 wait nonzero of x\n3 wait download\n900 other bytes\n",
        );
        let counts = per_step(&before, &after, 2);
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("operator".to_owned(), 15.0), ("wait".to_owned(), 3.5)]);
    }
}

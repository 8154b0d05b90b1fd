//! `benchmark train --profile`: which operators take the time of a step, and how near they come to what the machine can do.

use std::fmt::Write as _;
use std::time::Instant;

use serde::Serialize;
use tch::{Device, Kind, Tensor};
use torch_ext::memory::channels_last;
use torch_ext::profile::{self, Operator};

use fnet_common::Result;

/// Operators with a smaller share of the time are added up in one row.
const MIN_SHARE: f64 = 0.005;
/// Measurements of each probe; the best one counts.
const REPEATS: usize = 5;

/// Where the time of one step goes.
#[derive(Debug, Serialize)]
pub struct Profile {
    /// Milliseconds of the step.
    ms: f64,
    /// What the machine reaches in a large convolution or matrix product: billions of floating-point operations per second.
    peak_gflops: f64,
    /// What it reaches in a copy of 256 MiB, read and written: GB/s.
    peak_gbytes: f64,
    /// The longest first.
    operators: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    shapes: String,
    calls: u64,
    ms: f64,
    /// Share of the step.
    share: f64,
    /// Speed of convolutions and matrix products.
    #[serde(skip_serializing_if = "Option::is_none")]
    gflops: Option<f64>,
    /// Arguments and results per second.
    gbytes: f64,
}

impl Profile {
    /// The profile of `step`.
    /// Errors: those of the step.
    pub fn of(step: impl FnOnce() -> Result<()>) -> Result<Self> {
        let (peak_gflops, peak_gbytes) = (peak_gflops()?, peak_gbytes()?);
        let started = Instant::now();
        let (result, operators) = profile::profiled(step)?;
        let seconds = started.elapsed().as_secs_f64();
        result?;
        Ok(Self { ms: seconds * 1e3, peak_gflops, peak_gbytes, operators: rows(&operators, seconds) })
    }

    /// A table of the operators.
    pub fn table(&self) -> String {
        let mut text = format!(
            "one step under the profiler: {:.1} ms; this machine reaches {:.0} GFLOP/s and {:.1} GB/s\n",
            self.ms, self.peak_gflops, self.peak_gbytes
        );
        let _ = writeln!(
            text,
            "{:>9} {:>6} {:>6} {:>8} {:>6} {:>7}  operator",
            "ms", "share", "calls", "GFLOP/s", "of max", "GB/s"
        );
        for row in &self.operators {
            let speed = row.gflops.map_or([String::new(), String::new()], |gflops| {
                [format!("{gflops:.0}"), format!("{:.0} %", 100.0 * gflops / self.peak_gflops)]
            });
            let _ = writeln!(
                text,
                "{:>9.1} {:>4.1} % {:>6} {:>8} {:>6} {:>7.1}  {} {}",
                row.ms,
                100.0 * row.share,
                row.calls,
                speed[0],
                speed[1],
                row.gbytes,
                row.name,
                row.shapes
            );
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// Rows of the operators above the minimum share, one of all others, and one of the time outside of operators.
fn rows(operators: &[Operator], seconds: f64) -> Vec<Row> {
    let (long, short): (Vec<_>, Vec<_>) = operators.iter().partition(|one| one.seconds >= MIN_SHARE * seconds);
    let row = |name: &str, shapes: &str, calls, time: f64, operations: f64, bytes: f64| Row {
        name: name.to_owned(),
        shapes: shapes.to_owned(),
        calls,
        ms: time * 1e3,
        share: time / seconds,
        gflops: (operations > 0.0).then(|| operations / time * 1e-9),
        gbytes: bytes / time.max(1e-9) * 1e-9,
    };
    let mut rows: Vec<Row> =
        long.iter().map(|one| row(&one.name, &one.shapes, one.calls, one.seconds, one.operations, one.bytes)).collect();
    let sum = |of: fn(&Operator) -> f64| short.iter().map(|one| of(one)).sum::<f64>();
    let calls = short.iter().map(|one| one.calls).sum();
    rows.push(row("(all others)", "", calls, sum(|one| one.seconds), 0.0, sum(|one| one.bytes)));
    let inside: f64 = operators.iter().map(|one| one.seconds).sum();
    rows.push(row("(outside of libtorch's operators)", "", 0, (seconds - inside).max(0.0), 0.0, 0.0));
    rows
}

/// Seconds of the fastest of some calls.
fn fastest<T, E>(mut call: impl FnMut() -> std::result::Result<T, E>) -> std::result::Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let started = Instant::now();
        call()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn peak_gflops() -> Result<f64> {
    let random = |shape: &[i64]| Tensor::f_rand(shape, (Kind::Float, Device::Cpu));
    let (side, channels, pixels) = (1024, 256, 64);
    let square = random(&[side, side])?;
    let product = fastest(|| square.f_mm(&square))?;
    let (input, weight) = (
        channels_last(&random(&[1, channels, pixels, pixels])?)?,
        channels_last(&random(&[channels, channels, 3, 3])?)?,
    );
    let convolution = fastest(|| input.f_conv2d(&weight, None::<Tensor>, 1, 1, 1, 1))?;
    let gflops = |count: i64, seconds: f64| 2.0 * count as f64 / seconds * 1e-9;
    Ok(gflops(side.pow(3), product).max(gflops(channels * channels * 9 * pixels * pixels, convolution)))
}

fn peak_gbytes() -> Result<f64> {
    let source = Tensor::f_zeros([64 << 20], (Kind::Float, Device::Cpu))?;
    let mut target = source.f_zeros_like()?;
    let seconds = fastest(|| target.f_copy_(&source))?;
    Ok(2.0 * 4.0 * source.numel() as f64 / seconds * 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_add_up_to_the_step() {
        let one = |name: &str, seconds: f64, operations: f64| Operator {
            name: name.into(),
            shapes: "2x3".into(),
            calls: 2,
            seconds,
            operations,
            bytes: 1e9,
        };
        let rows = rows(&[one("aten::mm", 0.5, 1e9), one("aten::add", 0.004, 0.0), one("aten::mul", 0.001, 0.0)], 1.0);
        let shares: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.calls, row.share)).collect();
        assert_eq!(shares[0], ("aten::mm", 2, 0.5));
        assert_eq!((shares[1].0, shares[1].1), ("(all others)", 4));
        assert!((rows.iter().map(|row| row.share).sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!((rows[0].gflops, rows[1].gflops), (Some(2.0), None));
        let table = Profile { ms: 1000.0, peak_gflops: 4.0, peak_gbytes: 8.0, operators: rows }.table();
        assert!(table.contains("50 %") && table.contains("aten::mm 2x3"), "{table}");
    }
}

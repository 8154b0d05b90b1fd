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
/// Steps under the profiler; of each operator the fastest one counts, for one step shows whatever else the machine did.
const STEPS: usize = 3;

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
    pub fn of(mut step: impl FnMut() -> Result<()>) -> Result<Self> {
        let (peak_gflops, peak_gbytes) = (peak_gflops()?, peak_gbytes()?);
        let (mut fastest, mut outside) = (Vec::new(), f64::INFINITY);
        for _ in 0..STEPS {
            let started = Instant::now();
            let (result, operators) = profile::profiled(&mut step)?;
            let seconds = started.elapsed().as_secs_f64();
            result?;
            outside = outside.min((seconds - inside(&operators)).max(0.0));
            keep_fastest(&mut fastest, operators);
        }
        fastest.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let ms = 1e3 * (inside(&fastest) + outside);
        Ok(Self { ms, peak_gflops, peak_gbytes, operators: rows(&fastest, outside) })
    }

    /// A table of the operators.
    pub fn table(&self) -> String {
        let mut text = format!(
            "under the profiler {:.1} ms, the fastest of {STEPS} steps for each operator; this machine reaches {:.0} GFLOP/s \
             and {:.1} GB/s\n",
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

/// Seconds in operators.
fn inside(operators: &[Operator]) -> f64 {
    operators.iter().map(|one| one.seconds).sum()
}

/// Replaces the operators of the first step by the same ones of another step where these were faster.
fn keep_fastest(fastest: &mut Vec<Operator>, others: Vec<Operator>) {
    if fastest.is_empty() {
        *fastest = others;
        return;
    }
    for one in fastest.iter_mut() {
        let same = others.iter().filter(|other| (&other.name, &other.shapes) == (&one.name, &one.shapes));
        one.seconds = same.fold(one.seconds, |seconds, other| seconds.min(other.seconds));
    }
}

/// Rows of the operators above the minimum share, one of all others, and one of the `outside` seconds without an operator.
fn rows(operators: &[Operator], outside: f64) -> Vec<Row> {
    let seconds = inside(operators) + outside;
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
    rows.push(row("(outside of libtorch's operators)", "", 0, outside, 0.0, 0.0));
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
        let mut fastest = Vec::new();
        for seconds in [0.7, 0.5, 0.6] {
            let step = vec![one("aten::mm", seconds, 1e9), one("aten::add", 0.004, 0.0), one("aten::mul", 0.001, 0.0)];
            keep_fastest(&mut fastest, step);
        }
        let rows = rows(&fastest, 0.495);
        let shares: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.calls, row.share)).collect();
        assert_eq!(shares[0], ("aten::mm", 2, 0.5));
        assert_eq!((shares[1].0, shares[1].1), ("(all others)", 4));
        assert!((rows.iter().map(|row| row.share).sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!((rows[0].gflops, rows[1].gflops), (Some(2.0), None));
        let table = Profile { ms: 1000.0, peak_gflops: 4.0, peak_gbytes: 8.0, operators: rows }.table();
        assert!(table.contains("50 %") && table.contains("aten::mm 2x3"), "{table}");
    }
}

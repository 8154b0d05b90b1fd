//! The learning rate over a job, as a table and a plot of text.

use std::fmt::Write as _;

use fnet_common::Result;
use fnet_common::text::count;
use fnet_config::{Config, Policy};
use fnet_data::{Dataset, Split};

use super::job;
use super::learning_rate::LearningRate;
use super::progress::TrainSchedule;

/// The maximum number of epochs with a row of their own.
const EPOCHS: usize = 24;
/// Columns and rows of the plot.
const PLOT: (usize, usize) = (64, 10);

/// The learning rate over the job of `config` on `world_size` ranks. Reads the training set, which determines the length of
/// an epoch.
/// Errors: a data error if the training set cannot be used.
pub fn schedule_table(config: &Config, world_size: usize) -> Result<String> {
    let schedule = job::schedule(config, &Dataset::open(&config.data, Split::Train)?, world_size)?;
    let (epochs, steps) = (schedule.epochs, schedule.steps_per_epoch);
    let workers = count(world_size, "worker");
    let batch = config.effective_batch(world_size);
    Ok(format!(
        "Learning rate of {epochs} epochs of {steps} steps on {workers}, {batch} images per update:\n\n{}",
        render(config, &schedule)
    ))
}

fn render(config: &Config, schedule: &TrainSchedule) -> String {
    let length = schedule.steps_per_epoch;
    let total = schedule.epochs * length;
    let rates =
        LearningRate { schedule: &config.schedule, base: config.optimizer.lr, epochs: schedule.epochs, steps: total };
    let rate = |step: usize| rates.at(step / length, step).plain();

    let mut out = format!("{:>8} {:>10} {:>15}\n", "epoch", "step", "learning rate");
    let mut last = None;
    for step in rows(&rates, length) {
        let now = rate(step);
        if last == Some(now) && step + 1 != total {
            continue;
        }
        last = Some(now);
        let note = if step < rates.warmup_steps() { "  warm-up" } else { "" };
        let _ = writeln!(out, "{:>8} {:>10} {now:>15.4e}{note}", step / length + 1, step + 1);
    }

    let (columns, lines) = (PLOT.0.min(total), PLOT.1);
    let heights: Vec<f64> = (0..columns).map(|column| rate((2 * column + 1) * total / (2 * columns))).collect();
    let highest = heights.iter().copied().fold(0.0, f64::max);
    out.push('\n');
    for line in (0..lines).rev() {
        let is_here = |&value: &f64| highest > 0.0 && (value / highest * (lines - 1) as f64).round() as usize == line;
        let marks: String = heights.iter().map(|value| if is_here(value) { '*' } else { ' ' }).collect();
        let label = match line {
            0 => "0".to_owned(),
            top if top + 1 == lines => format!("{highest:.2e}"),
            _ => String::new(),
        };
        let _ = writeln!(out, "{label:>10} |{}", marks.trim_end());
    }
    let _ = writeln!(out, "{:>10} +{}", "", "-".repeat(columns));
    let _ = writeln!(out, "{:>10}  epoch 1{:>2$}", "", schedule.epochs, columns.saturating_sub(7).max(2));
    out
}

/// The steps of the table, from 0: points of the warm-up, starts of epochs, changes of the policy, and the last step.
fn rows(rates: &LearningRate<'_>, length: usize) -> Vec<usize> {
    let (schedule, epochs, total, warmup) = (rates.schedule, rates.epochs, rates.steps, rates.warmup_steps());
    let mut rows: Vec<usize> = (0..=4).map(|quarter| warmup.saturating_mul(quarter) / 4).collect();
    rows.extend((0..epochs).step_by(epochs.div_ceil(EPOCHS)).map(|epoch| epoch * length));
    if schedule.policy == Policy::Step {
        let unit = if schedule.by_epoch { length } else { 1 };
        rows.extend(schedule.steps.iter().map(|step| step.saturating_mul(unit)));
    }
    rows.push(total - 1);
    rows.retain(|&step| step < total);
    rows.sort_unstable();
    rows.dedup();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_the_warm_up_each_change_and_the_end() {
        let mut config = Config::default();
        config.schedule.warmup_iters = 4;
        let text = render(&config, &TrainSchedule::new(12, 10, 1));
        let rows: Vec<Vec<&str>> = text
            .lines()
            .take_while(|line| !line.is_empty())
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        let expected = [
            ["1", "1", "2.0000e-7"],
            ["1", "2", "5.0150e-5"],
            ["1", "3", "1.0010e-4"],
            ["1", "4", "1.5005e-4"],
            ["1", "5", "2.0000e-4"],
            ["9", "81", "2.0000e-5"],
            ["12", "111", "2.0000e-6"],
            ["12", "120", "2.0000e-6"],
        ];
        assert_eq!(rows.iter().map(|row| &row[..3]).collect::<Vec<_>>(), expected, "{text}");
        let top: Vec<&str> = text.lines().filter(|line| line.contains("2.00e-4 |")).collect();
        assert_eq!(top[0].matches('*').count(), 41, "eight of twelve epochs, without the warm-up\n{text}");
    }

    #[test]
    fn jobs_of_any_length_have_a_table_of_bounded_size() {
        for (epochs, length) in [(1, 1), (1, 3), (1000, 7), (3, 100_000)] {
            for policy in [Policy::Step, Policy::Cosine, Policy::Poly, Policy::Constant] {
                let mut config = Config::default();
                config.schedule.policy = policy;
                let text = render(&config, &TrainSchedule::new(epochs, length, 1));
                assert!(text.lines().count() < 50, "{text}");
            }
        }
    }
}

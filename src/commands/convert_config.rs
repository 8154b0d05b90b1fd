//! `convert-config`: converts a Python config of MMDetection to TOML.

use std::path::Path;

use fnet_common::{Error, Result, atomic};
use fnet_protocol::cli::ConvertConfig;
use fnet_protocol::exit;

/// Runs `convert-config`: reports through `say` what became of each field, and writes the config to a file, or without one prints it and reports on stderr.
/// Errors: if the config cannot be converted, or the file exists or cannot be written.
pub fn convert_config(
    arguments: &ConvertConfig,
    say: impl FnOnce(String),
    print: impl FnOnce(&str) -> Result<()>,
) -> Result<i32> {
    if let Some(out) = &arguments.out {
        check_out(out)?;
    }
    let converted = fnet_convert::convert(&arguments.config)?;
    let report = converted.report.to_string();
    match &arguments.out {
        None => {
            say(report.trim_end().to_owned());
            print(converted.toml.trim_end())?;
        }
        Some(out) => {
            atomic::create(out, |file| {
                file.write_all(converted.toml.as_bytes()).map_err(|error| Error::environment(error.to_string()))
            })?;
            print(&format!("{report}wrote {}; its data: fnet-launch check-data {0}", out.display()))?;
        }
    }
    Ok(exit::SUCCESS)
}

fn check_out(out: &Path) -> Result<()> {
    if out.extension().is_none_or(|ending| ending != "toml") {
        return Err(Error::usage(format!("--out {}: expected the name of a .toml file", out.display())));
    }
    if out.exists() {
        return Err(Error::usage(format!(
            "--out {}: the file exists and may have changes; expected a new name, or remove it first",
            out.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use fnet_config::Config;
    use fnet_train::LearningRate;

    const EPOCHS: usize = 4;
    const LENGTH: usize = 10;
    const BASE: f64 = 0.02;

    /// The learning rates of a job with the schedule of a Python config, and the report of its conversion.
    fn converted(schedule: &str) -> (Vec<f64>, String) {
        let python = format!(
            "model = dict(type='MaskRCNN', roi_head=dict(mask_head=dict(type='FCNMaskHead')))\noptimizer = dict(type='SGD', lr={BASE})\n\
             runner = dict(type='EpochBasedRunner', max_epochs={EPOCHS})\n{schedule}\n"
        );
        let folder = fnet_test_support::folder(&[("a.py", &python)]);
        let converted = fnet_convert::convert(&folder.path().join("a.py")).unwrap();
        let config = Config::from_toml(&converted.toml, "a.toml").unwrap();
        let steps = EPOCHS * LENGTH;
        let rates = LearningRate { schedule: &config.schedule, base: config.optimizer.lr, epochs: EPOCHS, steps };
        ((0..steps).map(|step| rates.at(step / LENGTH, step).plain()).collect(), converted.report.to_string())
    }

    fn assert_rates(schedule: &str, expected: &[f64]) {
        let (rates, report) = converted(schedule);
        for (step, (rate, expected)) in rates.iter().zip(expected).enumerate() {
            assert!(
                (rate - expected).abs() <= 1e-9 * BASE,
                "{schedule}: {rate} for {expected} in step {step}\n{report}"
            );
        }
        assert!(!report.contains("without counterpart"), "{schedule}\n{report}");
    }

    /// `LrUpdaterHook` of MMCV 1.x: `regular` gives the rate after this share of the job and number of epochs or steps.
    fn mmcv(by_epoch: bool, regular: impl Fn(f64, usize) -> f64, warmup: (&str, usize, f64)) -> Vec<f64> {
        let (kind, warmup_steps, ratio) = warmup;
        let rate = |step: usize| {
            let (progress, all) = if by_epoch { (step / LENGTH, EPOCHS) } else { (step, EPOCHS * LENGTH) };
            let regular = regular(progress as f64 / all as f64, progress);
            let k = (1.0 - step as f64 / warmup_steps as f64) * (1.0 - ratio);
            match kind {
                _ if step >= warmup_steps => regular,
                "constant" => regular * ratio,
                "linear" => regular * (1.0 - k),
                "exp" => regular * ratio.powf(1.0 - step as f64 / warmup_steps as f64),
                _ => panic!("{kind}"),
            }
        };
        (0..EPOCHS * LENGTH).map(rate).collect()
    }

    #[test]
    fn schedules_of_mmdetection_2_have_the_rates_of_mmcv() {
        let none = ("", 0, 1.0);
        let stepped = |at: &'static [usize], gamma: f64, least: f64| {
            move |_: f64, progress: usize| {
                let passed = at.iter().filter(|step| progress >= **step).count() as i32;
                (BASE * gamma.powi(passed)).max(least)
            }
        };
        let cosine = |least: f64| move |share: f64, _: usize| least + 0.5 * (BASE - least) * ((PI * share).cos() + 1.0);
        assert_rates(
            "lr_config = dict(policy='step', warmup='linear', warmup_iters=15, warmup_ratio=0.001, step=[2, 3])",
            &mmcv(true, stepped(&[2, 3], 0.1, 0.0), ("linear", 15, 0.001)),
        );
        assert_rates(
            "lr_config = dict(policy='Step', step=1, gamma=0.5, min_lr=0.004)",
            &mmcv(true, stepped(&[1, 2, 3], 0.5, 0.004), none),
        );
        assert_rates(
            "lr_config = dict(policy='step', by_epoch=False, step=[5, 33], warmup='exp', warmup_iters=7)",
            &mmcv(false, stepped(&[5, 33], 0.1, 0.0), ("exp", 7, 0.1)),
        );
        assert_rates(
            "lr_config = dict(policy='CosineAnnealing', min_lr=0.001, warmup='constant', warmup_iters=2, \
             warmup_ratio=0.25, warmup_by_epoch=True)",
            &mmcv(true, cosine(0.001), ("constant", 2 * LENGTH, 0.25)),
        );
        assert_rates(
            "lr_config = dict(policy='CosineAnnealing', by_epoch=False, min_lr_ratio=0.05)",
            &mmcv(false, cosine(BASE * 0.05), none),
        );
        let poly = |share: f64, _: usize| (BASE - 1e-4) * (1.0 - share).powf(0.9) + 1e-4;
        assert_rates(
            "lr_config = dict(policy='poly', power=0.9, min_lr=1e-4, by_epoch=False)",
            &mmcv(false, poly, none),
        );
        assert_rates("lr_config = dict(policy='fixed')", &[BASE; EPOCHS * LENGTH]);
        let (rates, report) = converted("lr_config = dict(policy='exp', gamma=0.9)");
        assert_eq!(rates, [BASE; EPOCHS * LENGTH]);
        assert!(
            report.contains("lr_config.policy = 'exp'") && report.contains("schedule.policy = \"constant\""),
            "{report}"
        );
    }

    /// A scheduler of MMEngine in its own, chained form: the new value from the number of its steps so far and the value now.
    struct Scheduler {
        begin: usize,
        end: usize,
        by_epoch: bool,
        value: Box<dyn Fn(usize, f64) -> f64>,
    }

    /// `_ParamScheduler.step` of MMEngine, called after every step or epoch.
    fn mmengine(schedulers: &[Scheduler]) -> Vec<f64> {
        let mut value = BASE;
        let mut rates = Vec::new();
        for step in 0..EPOCHS * LENGTH {
            for scheduler in schedulers {
                let unit = if scheduler.by_epoch { LENGTH } else { 1 };
                if step % unit == 0 && (scheduler.begin..scheduler.end).contains(&(step / unit)) {
                    value = (scheduler.value)(step / unit - scheduler.begin, value);
                }
            }
            rates.push(value);
        }
        rates
    }

    fn linear(start: f64, end: usize) -> Scheduler {
        let (total, change) = ((end - 1) as f64, 1.0 - start);
        let value = move |step: usize, value: f64| match step {
            0 => value * start,
            _ => value * (1.0 + change / (total * start + (step as f64 - 1.0) * change)),
        };
        Scheduler { begin: 0, end, by_epoch: false, value: Box::new(value) }
    }

    fn multi_step(milestones: &'static [usize], gamma: f64, begin: usize) -> Scheduler {
        let value = move |step: usize, value: f64| if milestones.contains(&step) { value * gamma } else { value };
        Scheduler { begin, end: usize::MAX, by_epoch: true, value: Box::new(value) }
    }

    fn cosine(length: usize, least: f64, by_epoch: bool) -> Scheduler {
        let wave = move |step: usize| 1.0 + (PI * step as f64 / length as f64).cos();
        let value = move |step: usize, value: f64| match step {
            0 => value,
            _ => wave(step) / wave(step - 1) * (value - least) + least,
        };
        Scheduler { begin: 0, end: usize::MAX, by_epoch, value: Box::new(value) }
    }

    #[test]
    fn schedules_of_mmdetection_3_have_the_rates_of_mmengine() {
        assert_rates(
            "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=15), \
             dict(type='MultiStepLR', begin=0, end=4, by_epoch=True, milestones=[1, 3], gamma=0.1)]",
            &mmengine(&[linear(0.001, 15), multi_step(&[1, 3], 0.1, 0)]),
        );
        assert_rates(
            "param_scheduler = [dict(type='LinearLR', by_epoch=False, end=8), \
             dict(type='MultiStepLR', begin=1, milestones=[1, 2], gamma=0.3, convert_to_iter_based=True)]",
            &mmengine(&[linear(1.0 / 3.0, 8), multi_step(&[1, 2], 0.3, 1)]),
        );
        assert_rates(
            "param_scheduler = dict(type='CosineAnnealingLR', T_max=4, eta_min=0.001)",
            &mmengine(&[cosine(EPOCHS, 0.001, true)]),
        );
        assert_rates(
            "param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6), \
             dict(type='CosineAnnealingLR', begin=0, end=4, T_max=4, by_epoch=True, convert_to_iter_based=True)]",
            &mmengine(&[linear(0.1, 6), cosine(EPOCHS * LENGTH, 0.0, false)]),
        );
        assert_rates(
            "param_scheduler = [dict(type='ConstantLR', factor=0.5, by_epoch=False, end=6), dict(type='StepLR', step_size=2)]",
            &mmengine(&[
                Scheduler {
                    begin: 0,
                    end: 6,
                    by_epoch: false,
                    value: Box::new(|step, value| match step {
                        0 => value * 0.5,
                        5 => value / 0.5,
                        _ => value,
                    }),
                },
                multi_step(&[2], 0.1, 0),
            ]),
        );
        let (rates, report) = converted(
            "param_scheduler = [dict(type='LinearLR', by_epoch=True, end=2), dict(type='ExponentialLR', gamma=0.5)]",
        );
        assert_eq!(rates, [BASE; EPOCHS * LENGTH]);
        for words in ["param_scheduler[LinearLR]", "param_scheduler[ExponentialLR]", "warmup_iters = 0", "\"constant\""]
        {
            assert!(report.contains(words), "{words}:\n{report}");
        }
    }

    /// Half of MMDetection's schedule: the report says that this is another one.
    #[test]
    fn a_policy_over_a_part_of_the_training_and_a_second_one_are_reported() {
        for (schedulers, words) in [
            (
                "dict(type='CosineAnnealingLR', begin=2, end=4, T_max=2)",
                "param_scheduler[CosineAnnealingLR] from 2 to 4 epochs",
            ),
            ("dict(type='PolyLR', end=40, by_epoch=False)", "param_scheduler[PolyLR] from 0 to 40 steps"),
            ("dict(type='PolyLR', end=4)", "param_scheduler[PolyLR] has its eta_min in the last epoch"),
            (
                "dict(type='MultiStepLR', milestones=[1]), dict(type='CosineAnnealingLR', T_max=4)",
                "[CosineAnnealingLR]: there is one",
            ),
        ] {
            let (_, report) = converted(&format!("param_scheduler = [{schedulers}]"));
            assert!(report.contains("without counterpart") && report.contains(words), "{words}:\n{report}");
        }
    }
}

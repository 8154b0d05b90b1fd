//! Schedules of the learning rate: `lr_config` of MMDetection 2 and the list `param_scheduler` of MMDetection 3.
//!
//! MMEngine counts step `i` of a warm-up of `end` steps as `i / (end - 1)`, MMCV and fnet as `i / warmup_iters`, so
//! `warmup_iters` is `end - 1`: then all rates are equal.

use toml::Value as Toml;

use crate::value::{Value, fields};

/// Schedulers that become a policy, in the order in which the rows of the table take them.
pub const POLICIES: [&str; 4] = ["MultiStepLR", "StepLR", "CosineAnnealingLR", "PolyLR"];
/// Where a policy begins and how long it lasts, and whether both are epochs. No fields of fnet.
pub const SPAN: [&str; 3] = ["=schedule.begin", "=schedule.length", "=schedule.in_epochs"];

type Converted = Result<Toml, &'static str>;

/// The policy of `lr_config`.
pub fn policy(value: &Value) -> Converted {
    let policy = match value.as_text().map(str::to_lowercase).as_deref() {
        Some("step") => "step",
        Some("cosineannealing") => "cosine",
        Some("poly") => "poly",
        Some("fixed") => "constant",
        _ => return Err("'step', 'CosineAnnealing', 'poly' or 'fixed'"),
    };
    Ok(Toml::String(policy.to_owned()))
}

/// The warm-up of `lr_config`.
pub fn warmup(value: &Value) -> Converted {
    match value.as_text() {
        Some(kind @ ("linear" | "exp" | "constant")) => Ok(Toml::String(kind.to_owned())),
        _ => Err("'linear', 'exp' or 'constant'"),
    }
}

/// `LinearLR`: a linear warm-up.
pub fn linear(value: &Value) -> Converted {
    if Unit::of(value)? == Unit::Epochs {
        return Err("by_epoch=False or convert_to_iter_based=True, as a linear warm-up grows at every step");
    }
    if number(value, "end_factor", 1.0)? != 1.0 {
        return Err("end_factor=1, as a warm-up ends at the full learning rate");
    }
    warmup_fields(value, "linear", number(value, "start_factor", 1.0 / 3.0)?)
}

/// `ConstantLR`: a constant warm-up.
pub fn constant(value: &Value) -> Converted {
    warmup_fields(value, "constant", number(value, "factor", 1.0 / 3.0)?)
}

fn warmup_fields(value: &Value, kind: &str, ratio: f64) -> Converted {
    let end = whole(value, "end")?.ok_or("a warm-up with an `end`")?;
    if whole(value, "begin")?.unwrap_or(0) != 0 {
        return Err("begin=0, as a warm-up starts with the training");
    }
    let unit = Unit::of(value)?;
    // A whole epoch has too many steps for one of them to matter.
    let steps = if unit == Unit::StepsOfEpochs { end } else { end - 1 };
    Ok(fields([
        ("schedule.warmup", Toml::String(kind.to_owned())),
        ("schedule.warmup_iters", Toml::Integer(steps.max(0))),
        ("schedule.warmup_by_epoch", Toml::Boolean(unit != Unit::Steps)),
        ("schedule.warmup_ratio", Toml::Float(ratio)),
    ]))
}

/// `MultiStepLR`: the policy step. Its milestones count from `begin`.
pub fn multi_step(value: &Value) -> Converted {
    const EXPECTED: &str = "a list of whole numbers as milestones";
    let milestones = value.get("milestones").map(|item| item.value.items()).ok_or(EXPECTED)?;
    let begin = whole(value, "begin")?.unwrap_or(0);
    let end = whole(value, "end")?.unwrap_or(i64::MAX);
    let steps = milestones.iter().map(|item| match item.value {
        Value::Int(milestone) => Ok(milestone.saturating_add(begin)),
        _ => Err(EXPECTED),
    });
    let steps = steps.collect::<Result<Vec<_>, _>>()?.into_iter().filter(|step| *step < end);
    step_fields(value, Toml::Array(steps.map(Toml::Integer).collect()))
}

/// `StepLR`: the policy step, after every `step_size`.
pub fn every(value: &Value) -> Converted {
    if whole(value, "begin")?.unwrap_or(0) != 0 {
        return Err("begin=0");
    }
    step_fields(value, Toml::Integer(whole(value, "step_size")?.ok_or("a step_size")?))
}

fn step_fields(value: &Value, steps: Toml) -> Converted {
    Ok(fields([
        ("schedule.policy", Toml::String("step".to_owned())),
        // At the start of an epoch, whether it is counted in steps or not.
        ("schedule.by_epoch", Toml::Boolean(Unit::of(value)? != Unit::Steps)),
        ("schedule.steps", steps),
        ("schedule.gamma", Toml::Float(number(value, "gamma", 0.1)?)),
    ]))
}

/// `CosineAnnealingLR`: the policy cosine.
pub fn cosine(value: &Value) -> Converted {
    let begin = whole(value, "begin")?.unwrap_or(0);
    let length = match (whole(value, "T_max")?, whole(value, "end")?) {
        (Some(length), _) => length,
        (None, Some(end)) => end - begin,
        (None, None) => return Err("a T_max or an `end`"),
    };
    let ratio = number(value, "eta_min_ratio", 0.0)?;
    annealed(value, ("cosine", begin, length), [("schedule.min_lr_ratio", Toml::Float(ratio))])
}

/// `PolyLR`: the policy poly.
pub fn poly(value: &Value) -> Converted {
    let begin = whole(value, "begin")?.unwrap_or(0);
    let length = whole(value, "end")?.ok_or("an `end`")? - begin;
    let power = number(value, "power", 1.0)?;
    annealed(value, ("poly", begin, length), [("schedule.power", Toml::Float(power))])
}

fn annealed(value: &Value, (policy, begin, length): (&str, i64, i64), own: [(&str, Toml); 1]) -> Converted {
    let unit = Unit::of(value)?;
    let [own] = own;
    let [begin_name, length_name, unit_name] = SPAN;
    Ok(fields([
        ("schedule.policy", Toml::String(policy.to_owned())),
        ("schedule.by_epoch", Toml::Boolean(unit == Unit::Epochs)),
        ("schedule.min_lr", Toml::Float(number(value, "eta_min", 0.0)?)),
        own,
        (begin_name, Toml::Integer(begin)),
        (length_name, Toml::Integer(length)),
        (unit_name, Toml::Boolean(unit != Unit::Steps)),
    ]))
}

/// What a scheduler of MMDetection 3 counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Epochs,
    /// Epochs, converted to their steps.
    StepsOfEpochs,
    Steps,
}

impl Unit {
    fn of(value: &Value) -> Result<Self, &'static str> {
        let flag = |key: &str, default| match value.get(key).map(|item| item.value) {
            None | Some(Value::None) => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            _ => Err("by_epoch and convert_to_iter_based to be True or False"),
        };
        Ok(match (flag("by_epoch", true)?, flag("convert_to_iter_based", false)?) {
            (false, _) => Self::Steps,
            (true, true) => Self::StepsOfEpochs,
            (true, false) => Self::Epochs,
        })
    }
}

fn whole(value: &Value, key: &str) -> Result<Option<i64>, &'static str> {
    match value.get(key).map(|item| item.value) {
        None | Some(Value::None) => Ok(None),
        // Any number above all steps of a training.
        Some(Value::Int(number)) => Ok(Some(number.clamp(0, 1 << 40))),
        _ => Err("whole numbers for begin, end, T_max and step_size"),
    }
}

fn number(value: &Value, key: &str, default: f64) -> Result<f64, &'static str> {
    match value.get(key).map(|item| item.value) {
        None | Some(Value::None) => Ok(default),
        Some(value) => value.as_number().ok_or("numbers for factors, gamma, power and eta_min"),
    }
}
